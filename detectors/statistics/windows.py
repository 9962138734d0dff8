"""Two adjacent windows with a straight line in each, at many scales, as functions of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from phasewatch.detectors.statistics.noise import LaggedNoise, PastScale, extrapolation_inflation
from phasewatch.detectors.statistics.packed import pack, unpack

LOOKS = 6
"""Times a window looks while it moves by its width: neighbours say nearly the same."""


class TwinLines:
    """Least-squares lines of the last w points ("new") and of those before them ("old").

    Args:
        width: w.
        old: Points of the old window.
        memory: How long the past of `excess` is remembered, in widths.

    Attributes:
        width: w, in points.
        old: Points of the old window.
        pace: Points from look to look.
        old_mean: Mean of the old window.
        old_slope: Slope of the old line, per step.
        old_end: The old line at the last point of its window.
        new_mean: Mean of the new window.
        new_slope: Slope of the new line, per step.
        excess: Extrapolation of the old line to the new window's centre, minus the new mean.
        span: Steps that the new window covers.
        past: Past of `excess`.
        hits: Consecutive looks at which a fall was found.
        rises: Consecutive looks at which a rise was found.
        score: Smallest margin of all conditions for a fall at the latest look; 1 is a hit.
    """

    __slots__ = (
        "_distance", "_new_x", "_old_sxx", "_old_x", "excess", "hits", "new_mean", "new_slope",
        "old", "old_end", "old_mean", "old_slope", "pace", "past", "rises", "score", "span",
        "width",
    )  # fmt: skip

    def __init__(self, width: int, old: int, memory: int) -> None:
        self.width, self.old = width, old
        self.pace = max(width // LOOKS, 1)
        self.past = PastScale(memory * width // self.pace, width // self.pace)
        self.hits = self.rises = 0
        self.score = 0.0
        self.old_mean = self.old_slope = self.old_end = 0.0
        self.new_mean = self.new_slope = self.excess = self.span = 0.0
        self._old_x = self._new_x = self._old_sxx = self._distance = 0.0

    def look(self, level: Level) -> None:
        """Fit both lines to the latest points of a level, which holds at least w + old of them."""
        w, n = self.width, self.old
        sums = level.sums
        x2, y2, xx2, xy2 = sums[-1]
        x1, y1, xx1, xy1 = sums[-1 - w]
        x0, y0, xx0, xy0 = sums[-1 - w - n]
        new_x, old_x = (x2 - x1) / w, (x1 - x0) / n
        new_y, old_y = (y2 - y1) / w, (y1 - y0) / n
        self.new_slope = ((xy2 - xy1) - new_x * (y2 - y1)) / ((xx2 - xx1) - w * new_x * new_x)
        sxx = (xx1 - xx0) - n * old_x * old_x
        slope = self.old_slope = ((xy1 - xy0) - old_x * (y1 - y0)) / sxx
        origin, steps = level.origin, level.steps
        self.old_mean, self.new_mean = old_y + level.base, new_y + level.base
        self.old_end = self.old_mean + slope * (steps[-1 - w] - origin - old_x)
        self.excess = old_y + slope * (new_x - old_x) - new_y
        self.span = steps[-1] - steps[-1 - w]
        self._old_x, self._new_x, self._old_sxx = old_x + origin, new_x + origin, sxx
        self._distance = new_x - old_x

    def learn(self) -> None:
        """Add the excess to its past."""
        self.past.update(self.excess)

    def old_values(self, level: Level) -> list[float]:
        """The points of the old window."""
        return level.values[-self.width - self.old : -self.width]

    def standard_errors(self, level: Level) -> tuple[float, float]:
        """Standard error of `excess`, by the residuals of the windows and by the running noise.

        √(σ² (1/n + d²/Sxx) + τ²/w): d from centre to centre, Sxx of the old window's steps, σ the
        residual scale of the old line, τ that of the new one where it is larger. For the running
        noise τ = σ, and the autocorrelation inflates the whole.
        """
        w, n = self.width, self.old
        steps = np.array(level.steps[-w - n :], dtype=np.float64)
        values = np.array(level.values[-w - n :])
        old = values[:n] - self.old_mean - self.old_slope * (steps[:n] - self._old_x)
        new = values[n:] - self.new_mean - self.new_slope * (steps[n:] - self._new_x)
        variance = float(old @ old) / (n - 2)
        newer = max(variance, min(float(new @ new) / (w - 2), float(values[n + 1 :].var(ddof=1))))
        lever = 1.0 / n + self._distance * self._distance / self._old_sxx
        noise = level.noise
        running = noise.sigma * extrapolation_inflation(w, n, noise.phi)
        return math.sqrt(variance * lever + newer / w), running * math.sqrt(lever + 1.0 / w)

    def crossing(self, level: Level) -> int:
        """How many points before the latest one the two lines cross, within [0, 3w/2]."""
        bend = self.old_slope - self.new_slope
        w = self.width
        if bend == 0.0:
            return w
        step = self._new_x - self.excess / bend
        back = 0
        while back < 3 * w // 2 and level.steps[-1 - back] > step:
            back += 1
        return back

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes."""
        return {
            "counts": [self.hits, self.rises, self.score],
            "past": self.past.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.hits, self.rises, self.score = state["counts"]
        self.past.load_state_dict(state["past"])


class Level:
    """The stream in means of 2^k points, with the windows that look at it.

    Args:
        stride: 2^k, points in a mean.
        shapes: (new, old) points of each pair of windows, in means.
        memory: Memory of the past, in widths.

    Attributes:
        stride: Points in a mean.
        windows: One pair of windows for each shape.
        values: The latest means; at least as many as the longest pair of windows needs.
        steps: Mean step of each of them.
        sums: Running sums of x, y, x², xy (x, y from `origin`, `base`) before and after each.
        count: Means so far.
        noise: Running autocorrelation of the means.
    """

    __slots__ = (
        "_half", "_length", "base", "count", "noise", "origin", "steps", "stride",
        "sums", "values", "windows",
    )  # fmt: skip

    def __init__(self, stride: int, shapes: Sequence[tuple[int, int]], memory: int) -> None:
        self.stride = stride
        self.windows = [TwinLines(new, old, memory) for new, old in shapes]
        self._length = max(new + old for new, old in shapes) + 1
        self.values: list[float] = []
        self.steps: list[float] = []
        self.sums: list[tuple[float, float, float, float]] = [(0.0, 0.0, 0.0, 0.0)]
        self.origin = self.base = 0.0
        self.count = 0
        self._half: tuple[float, float] | None = None
        self.noise = LaggedNoise()

    def push(self, step: float, value: float) -> tuple[float, float] | None:
        """Take a mean of this level; every second call gives the next level its mean."""
        values, steps = self.values, self.steps
        if len(values) >= 2 * self._length:
            del values[: self._length], steps[: self._length]
            self._sum_afresh()
        elif not values:
            self.origin, self.base = step, value
        values.append(value)
        steps.append(step)
        self.count += 1
        x, y = step - self.origin, value - self.base
        sx, sy, sxx, sxy = self.sums[-1]
        self.sums.append((sx + x, sy + y, sxx + x * x, sxy + x * y))
        self.noise.update(values)
        if self._half is None:
            self._half = (step, value)
            return None
        mean = (self._half[0] + step) / 2.0, (self._half[1] + value) / 2.0
        self._half = None
        return mean

    def _sum_afresh(self) -> None:
        """Sums from the first point that is held: so rounding cannot pile up."""
        sums = [(0.0, 0.0, 0.0, 0.0)]
        if self.values:
            self.origin, self.base = self.steps[0], self.values[0]
        for step, value in zip(self.steps, self.values, strict=True):
            x, y = step - self.origin, value - self.base
            sx, sy, sxx, sxy = sums[-1]
            sums.append((sx + x, sy + y, sxx + x * x, sxy + x * y))
        self.sums = sums

    @property
    def latest(self) -> float:
        """Median of the last three values: where the stream is now."""
        a, b, c = self.values[-3:]
        return max(min(a, b), min(max(a, b), c))

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes."""
        return {
            "values": pack(self.values),
            "steps": pack(self.steps),
            "count": self.count,
            "half": list(self._half) if self._half else None,
            "noise": self.noise.state_dict(),
            "windows": [window.state_dict() for window in self.windows],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.values = unpack(state["values"])
        self.steps = unpack(state["steps"])
        self._sum_afresh()
        self.count = int(state["count"])
        self._half = tuple(state["half"]) if state["half"] else None
        self.noise.load_state_dict(state["noise"])
        for window, saved in zip(self.windows, state["windows"], strict=True):
            window.load_state_dict(saved)
