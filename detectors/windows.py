"""Two adjacent sliding windows with a straight line in each, at many scales, at O(1) a point."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phasewatch.detectors.noise import PastScale

OLD_OVER_NEW = 3
"""The old window is this many times as long as the new one."""

REFRESH = 256
"""The running sums are computed afresh after so many points, so that rounding cannot pile up."""

LOOKS = 4
"""Values of a window's statistic kept a window width: neighbours say nearly the same."""


class TwinLines:
    """Least-squares lines of the last w points ("new") and of the 3w before them ("old").

    Positions are counted in points from the centre of the old window, whose centre lies 2w before
    that of the new one.

    Args:
        width: w.
        memory: How long the past of `excess` is remembered, in widths.

    Attributes:
        width: w, in points.
        ready: Whether 4w points have been seen.
        old_mean: Mean of the old window.
        old_slope: Slope of the old line, per point.
        old_end: The old line at the last point of its window.
        new_mean: Mean of the new window.
        new_slope: Slope of the new line, per point.
        excess: Extrapolation of the old line to the new window's centre, minus the new mean.
        past: Past of `excess`.
        hits: Consecutive points at which a fall was found.
        rises: Consecutive points at which a rise was found.
        score: Smallest margin of all conditions for a fall at the latest point; 1 is a hit.
    """

    __slots__ = (
        "_looks", "_new_half", "_new_moment", "_new_scale", "_new_sum", "_old_half", "_old_moment",
        "_old_scale", "_old_sum", "excess", "hits", "new_mean", "new_slope", "old_end", "old_mean",
        "old_slope", "past", "ready", "rises", "score", "width",
    )  # fmt: skip

    def __init__(self, width: int, memory: int) -> None:
        n = OLD_OVER_NEW * width
        self.width = width
        self._new_half, self._old_half = (width - 1) / 2.0, (n - 1) / 2.0
        self._new_scale = 12.0 / (width * (width * width - 1.0))
        self._old_scale = 12.0 / (n * (n * n - 1.0))
        self._looks = max(width // LOOKS, 1)
        self.past = PastScale(memory * width // self._looks, width // self._looks)
        self._old_sum = self._old_moment = self._new_sum = self._new_moment = 0.0
        self.ready = False
        self.hits = self.rises = 0
        self.score = 0.0
        self.old_mean = self.old_slope = self.old_end = 0.0
        self.new_mean = self.new_slope = self.excess = 0.0

    def update(self, values: deque[float], count: int) -> None:
        """Move on to the latest of `values`, of which `count` (at least 4w) have been seen."""
        if not self.ready or count % REFRESH == 0:
            self._refresh(values)
        else:
            w = self.width
            newest, crossing, leaving = values[-1], values[-w - 1], values[-4 * w - 1]
            # Σ (j−1) y_j over the points that stay, and the newcomer at the end.
            self._old_moment += (3 * w - 1) * crossing - (self._old_sum - leaving)
            self._new_moment += (w - 1) * newest - (self._new_sum - crossing)
            self._old_sum += crossing - leaving
            self._new_sum += newest - crossing
        self._fit()

    def _refresh(self, values: Sequence[float] | deque[float]) -> None:
        old, new = self.split(values)
        self._old_sum, self._old_moment = float(old.sum()), float(np.arange(old.size) @ old)
        self._new_sum, self._new_moment = float(new.sum()), float(np.arange(new.size) @ new)
        self.ready = True

    def _fit(self) -> None:
        w = self.width
        old_half = self._old_half
        mean = self.old_mean = self._old_sum / (3 * w)
        slope = self.old_slope = (self._old_moment - old_half * self._old_sum) * self._old_scale
        self.old_end = mean + slope * old_half
        self.new_mean = self._new_sum / w
        self.new_slope = (self._new_moment - self._new_half * self._new_sum) * self._new_scale
        self.excess = mean + slope * 2.0 * w - self.new_mean

    def sleep(self) -> None:
        """Look no more until the next `update`, which computes the sums afresh."""
        if self.ready:
            self.ready = False
            self.hits = self.rises = 0
            self.score = 0.0

    def learn(self, count: int) -> None:
        """Add the excess to its past: a few times a window width."""
        if count % self._looks == 0:
            self.past.update(self.excess)

    def split(
        self, values: Sequence[float] | deque[float]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The points of the old and of the new window, shapes (3w,) and (w,)."""
        w = self.width
        both = np.array(values, dtype=np.float64)[-4 * w :]
        return both[: 3 * w], both[3 * w :]

    def standard_error(self, old: NDArray[np.float64]) -> float:
        """Standard error of `excess` for white noise of the old window's residual scale.

        Var = σ² (1/w + 1/(3w) + (2w)²/Sxx), Sxx = 3w(9w² − 1)/12 of the old window.
        """
        n, w = old.size, self.width
        residual = old - self.old_mean - self.old_slope * (np.arange(n) - self._old_half)
        sigma = math.sqrt(float(residual @ residual) / (n - 2))
        return sigma * math.sqrt(1.0 / w + 1.0 / n + 4.0 * w * w * self._old_scale)

    def crossing(self) -> float:
        """How many points before the latest one the two lines cross, within [0, 3w/2]."""
        w = self.width
        bend = self.old_slope - self.new_slope
        if bend == 0.0:
            return float(w)
        position = (self.new_mean - 2.0 * w * self.new_slope - self.old_mean) / bend
        return min(max(2.0 * w + self._new_half - position, 0.0), 1.5 * w)

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes."""
        return {
            "sums": [self._old_sum, self._old_moment, self._new_sum, self._new_moment],
            "ready": self.ready,
            "counts": [self.hits, self.rises, self.score],
            "past": self.past.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._old_sum, self._old_moment, self._new_sum, self._new_moment = state["sums"]
        self.hits, self.rises, self.score = state["counts"]
        self.past.load_state_dict(state["past"])
        self.ready = bool(state["ready"])
        if self.ready:
            self._fit()


class Level:
    """The stream in means of 2^k points, with the windows that look at it.

    Args:
        stride: 2^k, points in a mean.
        widths: Window widths, in means.
        memory: Memory of the past, in widths.

    Attributes:
        stride: Points in a mean.
        windows: One pair of windows for each width.
        values: The latest means.
        steps: Step at which each of them was complete.
        count: Means so far.
        looking: Whether one of the windows looked at the latest mean.
    """

    __slots__ = (
        "_half", "_narrowest", "_widest", "count", "looking", "steps", "stride", "values",
        "windows",
    )  # fmt: skip

    def __init__(self, stride: int, widths: Sequence[int], memory: int) -> None:
        self.stride = stride
        self.windows = [TwinLines(width, memory) for width in widths]
        length = (OLD_OVER_NEW + 1) * max(widths) + 1
        self.values: deque[float] = deque(maxlen=length)
        self.steps: deque[int] = deque(maxlen=length)
        self.count = 0
        self._half: float | None = None
        self._widest = stride * max(widths)
        self._narrowest = min(widths)
        self.looking = False

    def push(self, step: int, value: float, finest: float = 0.0) -> float | None:
        """Take a mean of this level; every second call gives the next level its mean.

        Args:
            step: Step at which the mean is complete.
            value: The mean.
            finest: Windows of fewer points than this sleep.
        """
        self.values.append(value)
        self.steps.append(step)
        self.count += 1
        if self._widest >= finest:
            self._move(finest)
        elif self.looking:
            self.looking = False
            for window in self.windows:
                window.sleep()
        if self._half is None:
            self._half = value
            return None
        mean = (self._half + value) / 2.0
        self._half = None
        return mean

    def _move(self, finest: float) -> None:
        self.looking = self.count >= 4 * self._narrowest
        for window in self.windows:
            if window.width * self.stride < finest:
                window.sleep()
            elif self.count >= 4 * window.width:
                window.update(self.values, self.count)

    @property
    def latest(self) -> float:
        """Mean of the last three values: where the stream is now."""
        values = self.values
        return (values[-1] + values[-2] + values[-3]) / 3.0

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes."""
        return {
            "values": list(self.values),
            "steps": list(self.steps),
            "count": self.count,
            "half": self._half,
            "windows": [window.state_dict() for window in self.windows],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.values.extend(float(value) for value in state["values"])
        self.steps.extend(int(step) for step in state["steps"])
        self.count = int(state["count"])
        self._half = state["half"]
        self.looking = any(saved["ready"] for saved in state["windows"])
        for window, saved in zip(self.windows, state["windows"], strict=True):
            window.load_state_dict(saved)
