"""A change of level in a sparse stream whose values come with their own standard errors.

The stream since the last change is held in a window of at most `window` points. Where all of its
values are of one sign and well clear of zero, their logarithms are taken (relative changes count,
and exponential decay is a straight line). For every split of the window that leaves `min_before`
points before and `min_after` to `max_after` points after it, the generalised likelihood ratio of
"two levels" against "one level" is taken,

    2 log Λ = (m₂ − m₁)² / (V₁ + V₂),   mᵢ = Vᵢ Σ xⱼ/vⱼ,   1/Vᵢ = Σ 1/vⱼ,   vⱼ = σⱼ² + τ²,

with the known, unequal σⱼ (standard errors) and an extra variance τ² between measurements, taken
from what neighbouring values differ by beyond their standard errors (a robust median, so that one
jump does not hide itself). The largest ratio alarms when it passes `threshold`, and when

- the first point after the split and the median of all after it lie nearer to the new level (one
  wild point is no change);
- effect: the levels differ by more than `effect`, relative to the larger one;
- not a trend: two levels fit better by `margin` than a parabola, a bent line and an exponential
  approach to a level through the same points: a slow drift is no change of level.

The points before the change are then forgotten; the episode lasts `min_after` more points.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phasewatch.detectors.base import BaseDetector, require
from phasewatch.detectors.types import Alarm, Direction

MEDIAN_CHI_SQUARE = 0.4549
"""Median of χ² with one degree of freedom."""

RELAXATIONS = (1.5, 3.0, 6.0, 12.0)
"""Rates of the exponential courses, in e-folds per half a window."""

BENDS = (-0.5, 0.0, 0.5)
"""Where a bent line may bend; the window is [−1, 1]."""

CLEAR_OF_ZERO = 2.0
"""Standard errors between a value and zero from which on its logarithm makes sense."""

RELATIVE_FLOOR = 1e-6
"""Smallest noise assumed; values are taken relative to the largest in the window."""


class LevelShift(BaseDetector):
    """Sequential likelihood-ratio test of a level change with known, unequal standard errors.

    With the default threshold of 25 (five standard errors) no alarm was seen on 100 stable Gaussian
    streams of 20, 60 and 200 points each, nor on linear and exponential trends. A value without a
    standard error counts as exact: its noise is taken from its neighbours. Cost: about 50 µs a
    point, which is nothing beside what such a value costs to measure; memory of `window` points.

    Args:
        threshold: Smallest 2 log Λ, dimensionless.
        effect: Smallest change relative to the larger level.
        margin: By how much two levels must fit better (in χ²) than a smooth course.
        min_before: Points needed before the change.
        min_after: Points needed after it.
        max_after: Points after it at most: what was not seen by then was not abrupt.
        window: Points held.

    Raises:
        ValueError: A parameter is out of its range.

    Example:
        >>> detector = LevelShift()
        >>> stream = [10.0, 10.2, 9.9, 10.1, 9.8, 10.0, 6.1, 5.9, 6.0, 6.1]
        >>> alarms = [detector.update(100 * i, x, 0.15) for i, x in enumerate(stream)]
        >>> [(alarm.onset_step, alarm.detected_step) for alarm in alarms if alarm]
        [(600, 800)]
    """

    name = "level_shift"
    symmetric = True

    def __init__(
        self,
        *,
        threshold: float = 25.0,
        effect: float = 0.15,
        margin: float = 9.0,
        min_before: int = 5,
        min_after: int = 3,
        max_after: int = 12,
        window: int = 64,
    ) -> None:
        for key, value in (("threshold", threshold), ("effect", effect)):
            require(value > 0.0, key, value, "above 0")
        require(margin >= 0.0, "margin", margin, "at least 0")
        for key, count in (("min_before", min_before), ("min_after", min_after)):
            require(count >= 2, key, count, "at least 2")
        require(max_after >= min_after, "max_after", max_after, f"at least min_after = {min_after}")
        require(
            window >= min_before + min_after,
            "window", window, f"at least min_before + min_after = {min_before + min_after}",
        )  # fmt: skip
        self._threshold, self._effect, self._margin = threshold, effect, margin
        self._min_before, self._window = min_before, window
        self._min_after, self._max_after = min_after, max_after
        super().__init__(
            {
                "threshold": threshold, "effect": effect, "margin": margin,
                "min_before": min_before, "min_after": min_after,
                "max_after": max_after, "window": window,
            }
        )  # fmt: skip

    @property
    def threshold(self) -> float:
        """Smallest 2 log Λ that may alarm."""
        return self._threshold

    @property
    def statistic(self) -> float:
        """Largest 2 log Λ over all splits; 0 while an effect is too small or it is a trend."""
        return self._statistic

    @property
    def _in_episode(self) -> bool:
        return self._left > 0

    def _reset(self) -> None:
        self._steps: deque[int] = deque(maxlen=self._window)
        self._values: deque[float] = deque(maxlen=self._window)
        self._errors: deque[float] = deque(maxlen=self._window)
        self._statistic = 0.0
        self._left = 0

    def _observe(self, step: int, value: float, stderr: float | None) -> Alarm | None:
        known = stderr is not None and math.isfinite(stderr) and stderr > 0.0
        self._steps.append(step)
        self._values.append(value)
        self._errors.append(float(stderr or 0.0) if known else 0.0)
        if self._left > 0:
            self._left -= 1
            return None
        self._statistic = 0.0
        if len(self._values) < self._min_before + self._min_after:
            return None
        return self._search(step)

    def _search(self, step: int) -> Alarm | None:
        unit = max(abs(value) for value in self._values)
        if unit == 0.0:
            return None
        values, errors, logarithmic = _natural_scale(
            np.array(self._values) / unit, np.array(self._errors) / unit
        )
        variances = _variances(values, errors)
        first = max(self._min_before, values.size - self._max_after)
        ratios, before, after = _two_levels(values, variances, first, self._min_after)
        best = int(np.argmax(ratios))
        ratio, m1, m2 = float(ratios[best]), float(before[best]), float(after[best])
        if ratio < self._threshold:
            self._statistic = ratio
            return None
        small = self._effect if logarithmic else self._effect * max(abs(m1), abs(m2))
        moved = (values[first + best :] - m1) / (m2 - m1) if m2 != m1 else np.zeros(1)
        if min(float(moved[0]), float(np.median(moved))) < 0.5:
            return None  # one wild point, or points of the new level behind one of the old
        if abs(m2 - m1) <= small or _smooth_gain(values, variances) + self._margin > ratio:
            return None
        self._statistic = ratio
        split = first + best
        old, new = np.array(self._values)[:split], np.array(self._values)[split:]
        alarm = Alarm(
            detected_step=step,
            onset_step=self._steps[split],
            direction=Direction.UP if m2 > m1 else Direction.DOWN,
            score=ratio / self._threshold,
            run_length=values.size - split,
            value_before=float(np.average(old, weights=1.0 / variances[:split])),
            value_after=float(np.average(new, weights=1.0 / variances[split:])),
        )
        for series in (self._steps, self._values, self._errors):
            for _ in range(split):
                series.popleft()
        self._left = self._min_after
        return alarm

    def _state(self) -> dict[str, Any]:
        return {
            "steps": list(self._steps),
            "values": list(self._values),
            "errors": list(self._errors),
            "statistic": self._statistic,
            "left": self._left,
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        self._steps.extend(int(step) for step in state["steps"])
        self._values.extend(float(value) for value in state["values"])
        self._errors.extend(float(error) for error in state["errors"])
        self._statistic = float(state["statistic"])
        self._left = int(state["left"])


def _natural_scale(
    values: NDArray[np.float64], errors: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], bool]:
    """Logarithms (odd in the sign) with relative errors, if all values are clear of zero."""
    sign = np.sign(values[0])
    if np.all(values * sign > CLEAR_OF_ZERO * errors):
        return sign * np.log(values * sign), errors / np.abs(values), True
    return values, errors, False


def _variances(values: NDArray[np.float64], errors: NDArray[np.float64]) -> NDArray[np.float64]:
    """σⱼ² + τ², shape (n,): τ² is what neighbours differ by beyond their standard errors."""
    known = errors**2
    between = np.diff(values) ** 2 / (2.0 * MEDIAN_CHI_SQUARE)
    expected = (known[1:] + known[:-1]) / 2.0
    extra = max(float(np.median(between - expected)), 0.0)
    return np.asarray(known + extra + RELATIVE_FLOOR**2, dtype=np.float64)


def _two_levels(
    values: NDArray[np.float64], variances: NDArray[np.float64], min_before: int, min_after: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """2 log Λ and both levels for each split that leaves enough points on either side."""
    weights = np.cumsum(1.0 / variances)
    sums = np.cumsum(values / variances)
    w1, s1 = weights[min_before - 1 : -min_after], sums[min_before - 1 : -min_after]
    w2, s2 = weights[-1] - w1, sums[-1] - s1
    m1, m2 = s1 / w1, s2 / w2
    return (m2 - m1) ** 2 / (1.0 / w1 + 1.0 / w2), m1, m2


def _smooth_gain(values: NDArray[np.float64], variances: NDArray[np.float64]) -> float:
    """How much better (χ²) the best smooth course fits than one level.

    Smooth are a parabola and a bent line (with the line in both) and an exponential approach.
    """
    x = np.linspace(-1.0, 1.0, values.size)
    shapes = [np.stack([x, x * x])]
    shapes += [np.stack([x, np.maximum(x - bend, 0.0)]) for bend in BENDS]
    shapes += [np.exp(-rate * (x[None, :] + 1.0)) for rate in RELAXATIONS]
    root = 1.0 / np.sqrt(variances)
    target = values * root
    level = root * ((root @ target) / (root @ root))
    flat = float((target - level) @ (target - level))
    best = 0.0
    for shape in shapes:
        design = np.concatenate([np.ones((1, x.size)), shape]).T * root[:, None]
        residual = target - design @ np.linalg.lstsq(design, target, rcond=None)[0]
        best = max(best, flat - float(residual @ residual))
    return best
