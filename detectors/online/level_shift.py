"""A change of level in a sparse stream whose values come with their own standard errors.

Values yⱼ are logarithms where all values held are of one sign and well clear of zero (relative
changes count, and exponential decay is a straight line), else the values themselves. Their
variances are vⱼ = σⱼ² + τ², with the known, unequal standard errors σⱼ and a scatter τ² between
measurements beyond them, taken on line from what each value differs by from the mean of its two
neighbours (a median: neither a jump nor a slope adds to it). A value that sticks out from both its
neighbours, the same way, is wild: its variance grows to a ninth of that difference squared.

Four kinds of course are fitted to the stream by least squares with weights 1/vⱼ:

- level: one mean;
- slow: a line, a parabola or an approach to a level (exponential or straight), nowhere faster than
  `slow` per measurement, or growth no faster than √step: λ̂ that rises slowly over training is
  normal;
- change: level → ramp → level, with the ramp anywhere, of any length (1 is a jump), over or not;
- fast: a line through the last 3 to 16 points alone, which need not have a level before it.

With χ² the weighted squared error of a fit and ν its degrees of freedom, the generalised likelihood
ratio between two of them is

    2 log Λ = (χ²₀ − χ²₁) / φ,   φ = max(1, χ²₁/ν₁),

where φ makes up for scatter that the best course does not explain, and grows with the correlation
of what it leaves. An alarm needs either

- a change: 2 log Λ ≥ `threshold` against one level, ≥ `margin` · `threshold` against every slow
  course, and levels that differ by more than `effect`, relative to the larger one; or
- a fast course: 2 log Λ ≥ `threshold` against the steepest slow line through the same points.

One wild point is no change: the median of the last `min_after` points must have moved by half of
it, and the φ of a straight line through a single jump is large.

The onset is the most likely start of the ramp. The episode lasts until the stream is surely slow,
below a third of its highest speed, or turns back; what lies before is then forgotten.

Gaussian noise and independence are assumed for the ratio alone; how often it errs where they do not
hold is simulated: see `false_alarms`.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from phasewatch.detectors.base import BaseDetector, require
from phasewatch.detectors.statistics import level_fits as fits
from phasewatch.detectors.types import Alarm, Direction

Array = NDArray[np.float64]

MEDIAN_CHI_SQUARE = 0.4549
"""Median of χ² with one degree of freedom."""

CLEAR_OF_ZERO = 2.0
"""Standard errors between a value and zero from which on its logarithm makes sense."""

RELATIVE_FLOOR = 1e-6
"""Smallest noise assumed, relative to the largest value held."""

LARGEST, SMALLEST = 1e100, 1e-100
"""Beyond and below these sizes squares would over- and underflow: values count as these, or 0."""

WILD = 3.0
"""A value counts as no more exact than this share of what it sticks out by."""

ENOUGH = 6
"""Differences from neighbours that the scatter between measurements is taken from, at least."""

SLACK = 0.75
"""The full test is made again where this share of what an alarm needs is possible.

The bound would be exact if weights stayed the same; τ² moves them. Of 600 simulated streams with a
change, 2 then alarmed at another point than with the full test at every point, or not at all.
"""

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

NUM_ROWS = 8
STEP, LOG_STEP, VALUE, ERROR, CLEAR, Y, KNOWN, EXTRA = range(NUM_ROWS)
"""Rows of what is held of each point: EXTRA estimates the scatter between measurements."""


class _Verdict(NamedTuple):
    """An alarm in the making."""

    ratio: float
    onset: int
    end: int
    sign: int
    speed: float


@dataclass(slots=True)
class _Standing:
    """The latest full test, and by how much the points since then can have changed its outcome.

    With weights that stay the same, a new point raises the χ² of the best course of a kind by at
    most what it raises that of any one of them, and never makes it smaller. So a level → ramp →
    level can by now fit better than one level, or than the slow courses, by at most what it did
    then, plus what the new points add to the χ² of the level and of the slow course found then.

    Attributes:
        course: The slow course found.
        unit: Unit of what was fitted.
        first: What was subtracted from the values first.
        mean: The level found.
        flat: How much better than one level a change can fit.
        slow: How much better than a slow course a change can fit.
        shift: Points forgotten since.
    """

    course: fits.Slow
    unit: float
    first: float
    mean: float
    flat: float
    slow: float
    shift: int = 0

    def take(
        self, index: int, log_step: float, value: float, variance: float
    ) -> tuple[float, float]:
        """Take a new point; gives how much better than a level and a slow course at most."""
        value = (value - self.first) / self.unit
        weight = self.unit**2 / variance
        self.flat += weight * (value - self.mean) ** 2
        self.slow += weight * (value - self.course.at(index + self.shift, log_step)) ** 2
        return self.flat, self.slow

    def forget(self, count: int) -> None:
        """The oldest points were dropped."""
        self.shift += count

    def state(self) -> list[Any]:
        """As plain containers."""
        course, *rest = astuple(self)
        return [list(course), *rest]

    @classmethod
    def restored(cls, state: Sequence[Any]) -> Self:
        """What `state` gave."""
        course, *rest = state
        return cls(fits.Slow(*course), *rest)


class LevelShift(BaseDetector):
    """Sequential likelihood-ratio test of a change with known, unequal standard errors.

    A value without a standard error counts as exact: its noise is taken from its neighbours.
    Memory of `window` points.

    Args:
        threshold: Smallest 2 log Λ, dimensionless; `false_alarms` says what it costs.
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
        threshold: float = 21.0,
        effect: float = 0.15,
        slow: float = 0.07,
        margin: float = 0.5,
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
    def min_points(self) -> int:
        """Fewest points with which it can alarm."""
        return self._min_before + self._min_after

    @property
    def statistic(self) -> float:
        """2 log Λ of the best change or fast course, as far as the other conditions hold."""
        return self._statistic

    @property
    def _in_episode(self) -> bool:
        return self._sign != 0

    def _reset(self) -> None:
        self._points: list[list[float]] = [[] for _ in range(NUM_ROWS)]
        self._sorted: list[float] = []
        self._clear = 0.0
        self._statistic = 0.0
        self._logarithmic = True
        self._standing: _Standing | None = None
        self._calm()

    def _calm(self) -> None:
        self._sign, self._peak, self._over = 0, 0.0, True

    def _observe(self, step: int, value: float, stderr: float | None) -> Alarm | None:
        known = stderr is not None and math.isfinite(stderr) and stderr > 0.0
        self._push(step, value, float(stderr or 0.0) if known else 0.0)
        if self._sign:
            self._statistic = 0.0
            self._follow()
            return None
        verdict = self._fast() or self._change()
        return None if verdict is None else self._alarm(step, verdict)

    def _push(self, step: int, value: float, error: float) -> None:
        """Hold a point, and forget the oldest if there are too many."""
        clear = math.copysign(1.0, value) if abs(value) > CLEAR_OF_ZERO * error else 0.0
        point = (float(step), math.log(max(step, 1)), value, error, clear, 0.0, 0.0, 0.0)
        for row, number in zip(self._points, point):  # noqa: B905 (as many of both)
            row.append(number)
        count = len(self._points[Y])
        self._clear += clear
        if count > self._window:
            self._forget(1)
            count -= 1
        logarithmic = abs(self._clear) == count
        if logarithmic == self._logarithmic:
            self._derive(count - 1)
            return
        self._logarithmic, self._standing = logarithmic, None
        self._sorted.clear()
        for index in range(count):
            self._derive(index)

    def _forget(self, count: int) -> None:
        """Drop the oldest points."""
        for _ in range(count):
            if len(self._points[Y]) > 2 and self._sorted:
                del self._sorted[bisect_left(self._sorted, self._points[EXTRA][1])]
            self._clear -= self._points[CLEAR][0]
            for row in self._points:
                del row[0]
        if self._standing is not None:
            self._standing.forget(count)

    def _derive(self, index: int) -> None:
        """Put a point on the scale in use, and judge the one before it by its neighbours."""
        y, known = self._points[Y], self._points[KNOWN]
        value, error = self._points[VALUE][index], self._points[ERROR][index]
        if self._logarithmic:
            y[index] = math.copysign(1.0, value) * math.log(abs(value))
            known[index] = (error / value) ** 2
        else:
            y[index] = min(max(value, -LARGEST), LARGEST) if abs(value) > SMALLEST else 0.0
            known[index] = min(error, LARGEST) ** 2
        if index < 2:
            return
        rise, fall = y[index - 1] - y[index - 2], y[index - 1] - y[index]
        if rise * fall > 0.0:
            wild = (min(abs(rise), abs(fall)) / WILD) ** 2
            known[index - 1] = max(known[index - 1], wild)
        # y₁ − (y₀ + y₂)/2 has the variance v₁ + (v₀ + v₂)/4, of which 3τ²/2.
        expected = known[index - 1] + (known[index - 2] + known[index]) / 4.0
        square = ((rise + fall) / 2.0) ** 2
        extra = (square / MEDIAN_CHI_SQUARE - expected) / 1.5
        self._points[EXTRA][index - 1] = extra
        insort(self._sorted, extra)

    @property
    def _scatter(self) -> float:
        """τ² and the least noise, on the scale in use: to be added to the known variances."""
        count = len(self._sorted)
        extra = (self._sorted[(count - 1) // 2] + self._sorted[count // 2]) / 2.0 if count else 0.0
        unit = 1.0 if self._logarithmic else max(map(abs, self._points[Y])) or 1.0
        return (max(extra, 0.0) if count >= ENOUGH else 0.0) + (RELATIVE_FLOOR * unit) ** 2

    def _stream(self) -> tuple[Array, Array, float]:
        """Values and weights (n,) in units, and the unit: the largest value on the linear scale."""
        unit = 1.0 if self._logarithmic else max(map(abs, self._points[Y])) or 1.0
        values, known = np.array([self._points[Y], self._points[KNOWN]])
        return (values - values[0]) / unit, unit**2 / (known + self._scatter), unit

    def _fast(self) -> _Verdict | None:
        """A course through the last points that is faster than a slow one may be."""
        longest = fits.LAST[-1]
        values, count = self._points[Y], len(self._points[Y])
        least = self._min_after
        if not all(self._points[ERROR][-longest:]):
            least = fits.LEAST_UNKNOWN if count >= ENOUGH + 2 else longest + 1
        slow = self._slow * (1.0 if self._logarithmic else abs(values[-1]))
        stretches = [
            (points, *self._limits(points))
            for points in fits.LAST
            if least <= points <= count and abs(values[-1] - values[-points]) > slow * (points - 1)
        ]
        if not stretches:
            return None
        scatter, values = self._scatter, values[-longest:]
        variances = [known + scatter for known in self._points[KNOWN][-longest:]]
        fast = fits.fastest(values, variances, stretches)
        if fast is None or fast.ratio < self._threshold:
            return None
        if not self._is_effect(fast.slope * (fast.num_points - 1), max(map(abs, values))):
            return None
        self._statistic = fast.ratio
        sign = 1 if fast.slope > 0.0 else -1
        y, onset = self._points[Y], count - fast.num_points
        slow = self._limits(fast.num_points)[sign < 0]
        while onset > 0 and sign * (y[onset] - y[onset - 1]) > slow:
            onset -= 1
        return _Verdict(fast.ratio, onset + 1, count - 1, sign, abs(fast.slope))

    def _limits(self, count: int) -> tuple[float, float]:
        """Steepest slow slopes up and down over the last points: a size may grow as √step."""
        if not self._logarithmic:
            limit = self._slow * max(map(abs, self._points[Y][-count:]))
            return limit, limit
        logs = self._points[LOG_STEP]
        grows = max(fits.POWER * (logs[-1] - logs[-count]) / (count - 1), self._slow)
        return (grows, self._slow) if self._points[VALUE][-1] > 0.0 else (self._slow, grows)

    def _change(self) -> _Verdict | None:
        """Level → ramp → level against one level and against slow courses."""
        count = len(self._points[Y])
        if count < self._min_before + self._min_after:
            return None
        if self._standing is not None:
            y, variance = self._points[Y][-1], self._points[KNOWN][-1] + self._scatter
            log_step = self._points[LOG_STEP][-1]
            flat, slow = self._standing.take(count - 1, log_step, y, variance)
            needed = SLACK * self._threshold
            if flat < needed or slow < self._margin * needed:
                return None
        values, weights, unit = self._stream()
        mean = float(weights @ values) / float(weights.sum())
        course = fits.best_slow(values, weights, np.array(self._points[LOG_STEP]), self._slow)
        change = fits.best_change(values, weights, self._min_before)
        first = self._points[Y][0]
        self._standing = _Standing(
            course, unit, first, mean,
            flat=change.gain, slow=change.gain - course.gain,
        )  # fmt: skip
        if change.size == 0.0 or count - change.start <= self._min_after:
            return None  # too few points since then to tell it from a wild one
        residuals = values - fits.ramp(change, count)
        scatter = fits.scatter_of(residuals, weights, CHANGE_PARAMETERS)
        ratio = min(change.gain, (change.gain - course.gain) / self._margin) / scatter
        before = change.before + first / unit
        moved = sorted(((values[-self._min_after :] - change.before) / change.size).tolist())
        effect = self._is_effect(change.size, max(abs(before), abs(before + change.size)))
        if not effect or moved[(len(moved) - 1) // 2] < 0.5:
            ratio = 0.0  # too small, or one wild point, or it went back
        self._statistic = max(ratio, 0.0)
        if ratio < self._threshold:
            return None
        sign = 1 if change.size > 0.0 else -1
        speed = abs(change.size) * unit / (change.end - change.start)
        return _Verdict(ratio, change.start + 1, change.end, sign, speed)

    def _is_effect(self, size: float, level: float) -> bool:
        """Whether a difference is large enough, relative to the larger level."""
        if self._logarithmic:
            return -math.expm1(-abs(size)) > self._effect
        return abs(size) > self._effect * level

    def _alarm(self, step: int, verdict: _Verdict) -> Alarm:
        """Say it, and forget what lies before it."""
        steps = self._points[STEP]
        onset, end, count = verdict.onset, verdict.end, len(self._points[STEP])
        alarm = Alarm(
            detected_step=step,
            onset_step=int(steps[onset]),
            direction=Direction.UP if verdict.sign > 0 else Direction.DOWN,
            score=verdict.ratio / self._threshold,
            run_length=count - onset,
            value_before=self._mean(slice(self._level_from(onset - 1), onset)),
            value_after=self._mean(slice(end, count)),
        )
        self._sign, self._peak = verdict.sign, verdict.speed
        self._over = count - end >= self._min_after
        self._standing = None
        self._forget(end if self._over else onset - 1)
        return alarm

    def _level_from(self, last: int) -> int:
        """First point of the level that ends at `last`: what moved fast to get there is not in it.

        A fall that follows a rise at once comes from the peak, not from the mean of the way up.
        """
        y, known, scatter = self._points[Y], self._points[KNOWN], self._scatter
        first = last
        while first > 0:
            slow = self._slow * (1.0 if self._logarithmic else abs(y[first]))
            noise = math.sqrt(known[first] + known[first - 1] + 2.0 * scatter)
            if abs(y[first] - y[first - 1]) > slow + CLEARLY * noise:
                break
            first -= 1
        return first

    def _mean(self, part: slice) -> float:
        """Mean value with the weights of the scale in use."""
        weights = 1.0 / (np.array(self._points[KNOWN][part]) + self._scatter)
        return float(weights @ np.array(self._points[VALUE][part])) / float(weights.sum())

    def _follow(self) -> None:
        """End the episode once the stream is surely slow, below a third of its highest speed."""
        if len(self._points[Y]) < KEPT:
            return
        values, weights, unit = self._stream()
        latest, weights = self._sign * values[-LATEST:], weights[-LATEST:]
        speed, doubt = fits.slope_of(latest, weights)
        back, error = fits.slope_of(latest[-KEPT:], weights[-KEPT:])
        self._peak = max(self._peak, speed * unit)
        limit = min(RELEASE * self._peak / unit, self._slow)
        if back < -max(self._slow, CLEARLY * error):
            self._forget(values.size - latest.size + int(latest.argmax()))
        elif speed + min(doubt, limit / 2.0) >= limit:
            self._over = self._over and speed < self._slow
            return
        elif not self._over:
            self._forget(values.size - KEPT)
        self._calm()

    def _state(self) -> dict[str, Any]:
        return {
            "points": [list(row) for row in self._points],
            "statistic": self._statistic,
            "logarithmic": self._logarithmic,
            "episode": [self._sign, self._peak, self._over],
            "standing": None if self._standing is None else self._standing.state(),
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        self._points = [[float(number) for number in row] for row in state["points"]]
        self._sorted = sorted(self._points[EXTRA][1:-1])
        self._clear = sum(self._points[CLEAR])
        self._statistic = float(state["statistic"])
        self._logarithmic = bool(state["logarithmic"])
        self._sign, self._peak, self._over = state["episode"]
        standing = state["standing"]
        self._standing = None if standing is None else _Standing.restored(standing)
