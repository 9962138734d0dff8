"""A change of level in a sparse stream whose values come with their own standard errors.

Values yⱼ are logarithms where all values held are of one sign and well clear of zero (relative
changes count, and exponential decay is a straight line), else the values themselves. Their
variances are vⱼ = σⱼ² + τ², with the known, unequal standard errors σⱼ and a scatter τ² between
measurements beyond them, taken on line from what each value differs by from the mean of its two
neighbours (a median: neither a jump nor a slope adds to it). A value that sticks out from both its
neighbours, the same way, is wild: its variance grows to a ninth of that difference squared.

Four courses are fitted to the stream by least squares with weights 1/vⱼ:

- level: one mean;
- slow: a line, a parabola or an exponential approach to a level, nowhere faster than `slow` per
  measurement: λ̂ that rises slowly over training is normal;
- change: level → ramp → level, with the ramp anywhere, of any length (1 is a jump), over or not;
- fast: a line through the last few points alone, faster than `slow`, which need not have a level
  before it.

With χ² the weighted squared error of a fit and ν its degrees of freedom, the generalised likelihood
ratio between two of them is

    2 log Λ = (χ²₀ − χ²₁) / φ,   φ = max(1, χ²₁/ν₁),

where φ makes up for scatter that the best course does not explain, and grows with the correlation
of what it leaves. An alarm needs either

- a change: 2 log Λ ≥ `threshold` against one level, ≥ `margin` · `threshold` against every slow
  course, and levels that differ by more than `effect`, relative to the larger one; or
- a fast course: 2 log Λ ≥ `threshold` against the same line as slow as it must be.

The onset is the most likely start of the ramp. The episode lasts until the stream moves on with
less than a third of its speed, or back; the points before are then forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from phasewatch.detectors import level_fits as fits
from phasewatch.detectors.base import BaseDetector, require
from phasewatch.detectors.types import Alarm, Direction

Array = NDArray[np.float64]

MEDIAN_CHI_SQUARE = 0.4549
"""Median of χ² with one degree of freedom."""

CLEAR_OF_ZERO = 2.0
"""Standard errors between a value and zero from which on its logarithm makes sense."""

RELATIVE_FLOOR = 1e-6
"""Smallest noise assumed, relative to the largest value held."""

WILD = 3.0
"""A value counts as no more exact than this share of what it sticks out by."""

ENOUGH = 6
"""Differences from neighbours that the scatter between measurements is taken from, at least."""

RAMP_SHARE = 0.75
"""The best jump gains at least this share of what a ramp gains (8/9 for a long one)."""

CHANGE_PARAMETERS = 4
"""Parameters of level → ramp → level: two levels, start and end."""

LATEST = 8
"""Points that the speed within an episode is taken from."""

KEPT = 3
"""Points that remain of an episode which ends in motion."""

CLEARLY = 3.0
"""Standard errors from which on a slope has a sign."""

RELEASE = 1.0 / 3.0
"""An episode is over below this share of its highest speed."""

STEP, VALUE, ERROR, CLEAR, Y, KNOWN, EXTRA = range(7)
"""Rows of what is held of each point: EXTRA estimates the scatter between measurements."""


class _Verdict(NamedTuple):
    """An alarm in the making."""

    ratio: float
    onset: int
    end: int
    sign: int
    speed: float


class LevelShift(BaseDetector):
    """Sequential likelihood-ratio test of a change with known, unequal standard errors.

    A value without a standard error counts as exact: its noise is taken from its neighbours.
    Memory of `window` points.

    Args:
        threshold: Smallest 2 log Λ, dimensionless; `FALSE_ALARMS` says what it costs.
        effect: Smallest change relative to the larger level.
        slow: Fastest honest trend, relative change per measurement (0.07: ten double it).
        margin: Share of the threshold by which a change must fit better than a slow course.
        min_before: Points a level before a change needs.
        min_after: Points since the start of a change, at least.
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
        slow: float = 0.07,
        margin: float = 0.36,
        min_before: int = 5,
        min_after: int = 3,
        window: int = 128,
    ) -> None:
        for key, value in (("threshold", threshold), ("slow", slow), ("margin", margin)):
            require(value > 0.0, key, value, "above 0")
        require(0.0 < effect < 1.0, "effect", effect, "between 0 and 1")
        for key, count in (("min_before", min_before), ("min_after", min_after)):
            require(count >= 2, key, count, "at least 2")
        require(
            window >= min_before + min_after,
            "window", window, f"at least min_before + min_after = {min_before + min_after}",
        )  # fmt: skip
        self._threshold, self._effect = threshold, effect
        self._slow, self._margin = slow, margin
        self._min_before, self._min_after, self._window = min_before, min_after, window
        super().__init__(
            {
                "threshold": threshold, "effect": effect, "slow": slow, "margin": margin,
                "min_before": min_before, "min_after": min_after, "window": window,
            }
        )  # fmt: skip

    @property
    def threshold(self) -> float:
        """Smallest 2 log Λ that may alarm."""
        return self._threshold

    @property
    def statistic(self) -> float:
        """2 log Λ of the best change or fast course, as far as the other conditions hold."""
        return self._statistic

    @property
    def _in_episode(self) -> bool:
        return self._sign != 0

    def _reset(self) -> None:
        self._held = np.zeros((7, 2 * self._window))
        self._start = self._stop = 0
        self._statistic = 0.0
        self._logarithmic = True
        self._calm()

    def _calm(self) -> None:
        self._sign, self._peak, self._over = 0, 0.0, True

    def _observe(self, step: int, value: float, stderr: float | None) -> Alarm | None:
        known = stderr is not None and math.isfinite(stderr) and stderr > 0.0
        self._push(step, value, float(stderr or 0.0) if known else 0.0)
        self._statistic = 0.0
        if self._stop - self._start < self._min_after:
            return None
        values, variances = self._stream()
        if self._sign:
            self._follow(values, variances)
            return None
        verdict = self._fast(values, variances) or self._change(values, variances)
        return None if verdict is None else self._alarm(step, variances, verdict)

    def _push(self, step: int, value: float, error: float) -> None:
        """Hold a point, and forget the oldest if there are too many."""
        if self._stop == self._held.shape[1]:
            count = self._stop - self._start
            self._held[:, :count] = self._held[:, self._start :]
            self._start, self._stop = 0, count
        clear = math.copysign(1.0, value) if abs(value) > CLEAR_OF_ZERO * error else 0.0
        self._held[:, self._stop] = step, value, error, clear, 0.0, 0.0, 0.0
        self._stop += 1
        self._start = max(self._start, self._stop - self._window)
        count = self._stop - self._start
        logarithmic = abs(float(self._held[CLEAR, self._start : self._stop].sum())) == count
        if logarithmic == self._logarithmic:
            self._derive(self._stop - 1)
        else:
            self._logarithmic = logarithmic
            for index in range(self._start, self._stop):
                self._derive(index)

    def _derive(self, index: int) -> None:
        """Put a point on the scale in use, and judge the one before it by its neighbours."""
        y, known, extra = self._held[Y], self._held[KNOWN], self._held[EXTRA]
        value, error = float(self._held[VALUE, index]), float(self._held[ERROR, index])
        if self._logarithmic:
            y[index] = math.copysign(1.0, value) * math.log(abs(value))
            known[index] = (error / value) ** 2
        else:
            y[index] = value
            known[index] = error * error
        if index - self._start < 2:
            return
        rise = float(y[index - 1] - y[index - 2])
        fall = float(y[index - 1] - y[index])
        if rise * fall > 0.0:
            wild = (min(abs(rise), abs(fall)) / WILD) ** 2
            known[index - 1] = max(float(known[index - 1]), wild)
        # y₁ − (y₀ + y₂)/2 has the variance v₁ + (v₀ + v₂)/4, of which 3τ²/2.
        expected = float(known[index - 1]) + float(known[index - 2] + known[index]) / 4.0
        square = ((rise + fall) / 2.0) ** 2
        extra[index - 1] = (square / MEDIAN_CHI_SQUARE - expected) / 1.5

    def _stream(self) -> tuple[Array, Array]:
        """Values and variances (n,), in units of the largest value on the linear scale."""
        held = slice(self._start, self._stop)
        values, variances = self._held[Y, held], self._held[KNOWN, held]
        extra = self._held[EXTRA, self._start + 1 : self._stop - 1]
        scatter = max(float(np.median(extra)), 0.0) if extra.size >= ENOUGH else 0.0
        if not self._logarithmic:
            unit = float(np.abs(values).max()) or 1.0
            values, variances, scatter = values / unit, variances / unit**2, scatter / unit**2
        return values - values[0], variances + (scatter + RELATIVE_FLOOR**2)

    def _fast(self, values: Array, variances: Array) -> _Verdict | None:
        """A course through the last points that is faster than a slow one may be."""
        errors = self._held[ERROR, self._start : self._stop][-max(fits.LAST) :]
        if errors.all():
            least = self._min_after
        elif values.size >= ENOUGH + 2:
            least = fits.LEAST_UNKNOWN
        else:
            return None
        latest = values[-max(fits.LAST) :].tolist()
        fast = fits.fastest(latest, variances[-max(fits.LAST) :].tolist(), self._slow, least)
        if fast is None or not self._is_effect(fast.slope * (fast.count - 1), 1.0):
            return None
        self._statistic = fast.ratio
        if fast.ratio < self._threshold:
            return None
        sign = 1 if fast.slope > 0.0 else -1
        onset = values.size - fast.count
        while onset > 0 and sign * float(values[onset] - values[onset - 1]) > self._slow:
            onset -= 1
        return _Verdict(fast.ratio, onset + 1, values.size - 1, sign, abs(fast.slope))

    def _change(self, values: Array, variances: Array) -> _Verdict | None:
        """Level → ramp → level against one level and against slow courses."""
        if values.size < self._min_before + self._min_after:
            return None
        weights = 1.0 / variances
        jump = fits.jump_gain(values, weights, self._min_before, self._min_after)
        if jump < RAMP_SHARE * self._threshold:
            self._statistic = max(self._statistic, jump)
            return None
        flat = values - float(weights @ values) / float(weights.sum())
        chi_square = float(weights * flat @ flat)
        slow = fits.slow_gain(values, weights, self._slow)
        if chi_square - slow <= values.size:
            return None  # a slow course explains all there is
        change = fits.best_change(values, weights, self._min_before)
        if values.size - change.start <= self._min_after:
            return None  # too few points since then to tell it from a wild one
        residuals = values - fits.ramp(change, values.size)
        scatter = fits.scatter_of(residuals, weights, CHANGE_PARAMETERS)
        ratio = min(change.gain, (change.gain - slow) / self._margin) / scatter
        before = change.before + float(self._held[Y, self._start])
        if not self._is_effect(change.size, max(abs(before), abs(before + change.size))):
            return None
        moved = sorted(((values[-self._min_after :] - change.before) / change.size).tolist())
        if moved[(len(moved) - 1) // 2] < 0.5:
            return None  # one wild point, or it went back
        self._statistic = max(self._statistic, ratio)
        if ratio < self._threshold:
            return None
        sign = 1 if change.size > 0.0 else -1
        speed = abs(change.size) / (change.end - change.start)
        return _Verdict(ratio, change.start + 1, change.end, sign, speed)

    def _is_effect(self, size: float, level: float) -> bool:
        """Whether a difference is large enough, relative to the larger level."""
        if self._logarithmic:
            return -math.expm1(-abs(size)) > self._effect
        return abs(size) > self._effect * level

    def _alarm(self, step: int, variances: Array, verdict: _Verdict) -> Alarm:
        """Say it, and forget what lies before it."""
        steps, values = self._held[STEP : VALUE + 1, self._start : self._stop]
        weights = 1.0 / variances
        onset, end = verdict.onset, verdict.end
        alarm = Alarm(
            detected_step=step,
            onset_step=int(steps[onset]),
            direction=Direction.UP if verdict.sign > 0 else Direction.DOWN,
            score=verdict.ratio / self._threshold,
            run_length=values.size - onset,
            value_before=_mean(values[:onset], weights[:onset]),
            value_after=_mean(values[end:], weights[end:]),
        )
        self._sign, self._peak = verdict.sign, verdict.speed
        self._over = values.size - end >= self._min_after
        self._start += end if self._over else onset - 1
        return alarm

    def _follow(self, values: Array, variances: Array) -> None:
        """End the episode once the stream is slow, below a third of its highest speed."""
        latest, weights = self._sign * values[-LATEST:], 1.0 / variances[-LATEST:]
        speed, doubt = fits.slope_of(latest, weights)
        back, error = fits.slope_of(latest[-KEPT:], weights[-KEPT:])
        self._peak = max(self._peak, speed)
        limit = min(RELEASE * self._peak, self._slow)
        if back < -max(self._slow, CLEARLY * error):
            self._start = self._stop - latest.size + int(latest.argmax())
        elif speed + min(doubt, limit / 2.0) >= limit:
            self._over = self._over and speed < self._slow
            return
        elif not self._over:
            self._start = max(self._start, self._stop - KEPT)
        self._calm()

    def _state(self) -> dict[str, Any]:
        return {
            "held": self._held[:, self._start : self._stop].tolist(),
            "statistic": self._statistic,
            "logarithmic": self._logarithmic,
            "episode": [self._sign, self._peak, self._over],
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        held = np.asarray(state["held"], dtype=np.float64)
        self._start, self._stop = 0, held.shape[1]
        self._held[:, : self._stop] = held
        self._statistic = float(state["statistic"])
        self._logarithmic = bool(state["logarithmic"])
        self._sign, self._peak, self._over = state["episode"]


def _mean(values: Array, weights: Array) -> float:
    return float(values @ weights) / float(weights.sum())
