"""Scale and autocorrelation of a stream: how large a change must be to mean something."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phasewatch.detectors.statistics.packed import pack, unpack

MAD_TO_SIGMA = 1.4826
"""Standard deviation of a Gaussian over its median absolute deviation."""

MAX_CORRELATION = 0.95


def scale(values: NDArray[np.float64]) -> float:
    """Robust standard deviation: 1.4826 × the median absolute deviation from the median."""
    if values.size == 0:
        return 0.0
    return float(MAD_TO_SIGMA * np.median(np.abs(values - np.median(values))))


def autocorrelation(values: NDArray[np.float64]) -> float:
    """Lag-one autocorrelation, corrected for its bias in short series, within [0, 0.95].

    The plain estimate r falls short of φ by about (1 + 3φ)/n (Kendall 1954, Biometrika 41:403).
    """
    centred = values - values.mean() if values.size else values
    power = float(centred @ centred)
    if values.size < 3 or power <= 0.0:
        return 0.0
    raw = float(centred[1:] @ centred[:-1]) / power
    return min(max(raw + (1.0 + 3.0 * raw) / values.size, 0.0), MAX_CORRELATION)


def inflation(phi: float) -> float:
    """Factor on the standard error of a mean under AR(1) noise: √((1+φ)/(1−φ))."""
    return math.sqrt((1.0 + phi) / (1.0 - phi))


class PastScale:
    """How large a statistic used to be, in each direction: root mean squares over its own past.

    A statistic that is measured against its own past needs no model of the noise: correlation,
    heavy tails and a scale that drifts are all in it. Each direction counts alone (doubled, as if
    the noise were symmetric), so that a trend in the harmless direction costs no power, and the
    latest `delay` values are held back, so that a change does not hide itself.

    Args:
        memory: Values over which the mean squares forget.
        delay: Values held back.
    """

    __slots__ = ("_count", "_delay", "_down", "_memory", "_up", "_waiting")

    def __init__(self, memory: int, delay: int) -> None:
        self._memory = memory
        self._delay = delay
        self._waiting: deque[float] = deque()
        self._up = self._down = 0.0
        self._count = 0

    @property
    def up(self) -> float:
        """Root mean square of the positive values; 0 before the first came through the delay."""
        return math.sqrt(self._up)

    @property
    def down(self) -> float:
        """The same of the negative values; not negative itself."""
        return math.sqrt(self._down)

    def update(self, statistic: float) -> None:
        """Take the statistic's next value."""
        waiting = self._waiting
        waiting.append(statistic)
        if len(waiting) <= self._delay:
            return
        past = waiting.popleft()
        if self._count < self._memory:
            self._count += 1
        square = 2.0 * past * past
        self._up += ((square if past > 0.0 else 0.0) - self._up) / self._count
        self._down += ((square if past < 0.0 else 0.0) - self._down) / self._count

    def forget_latest(self) -> None:
        """Drop the values held back: a change was found in them."""
        self._waiting.clear()

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes."""
        return {"waiting": pack(self._waiting), "squares": [self._up, self._down, self._count]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._waiting = deque(unpack(state["waiting"]))
        self._up, self._down, self._count = state["squares"]


class RunningCorrelation:
    """Lag-one autocorrelation of a stream whose scale is about 1 while nothing happens.

    Values are cut at ±3, the latest 20 are held back, and less power than that of scale 1 counts as
    that: neither a change, nor rounding noise below the scale, passes for correlation.
    """

    CUT, DELAY, MEMORY = 3.0, 20, 200

    __slots__ = ("_last", "_power", "_product", "_waiting")

    def __init__(self) -> None:
        self._waiting: deque[float] = deque()
        self._last = self._product = self._power = 0.0

    @property
    def phi(self) -> float:
        """The autocorrelation, within [0, 0.95]; small at first."""
        return min(max(self._product / max(self._power, 1.0), 0.0), MAX_CORRELATION)

    def update(self, value: float) -> None:
        """Take the stream's next value."""
        self._waiting.append(min(max(value, -self.CUT), self.CUT))
        if len(self._waiting) <= self.DELAY:
            return
        value = self._waiting.popleft()
        self._product += (value * self._last - self._product) / self.MEMORY
        self._power += (value * value - self._power) / self.MEMORY
        self._last = value

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes."""
        return {
            "waiting": list(self._waiting), "means": [self._last, self._product, self._power],
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._waiting = deque(float(value) for value in state["waiting"])
        self._last, self._product, self._power = state["means"]


class LaggedNoise:
    """Scale σ and lag-one autocorrelation φ of AR(1) noise on a moving level, from differences.

    First differences of the noise have lag-one correlation −(1−φ)/2, second differences have the
    variance 2σ²(1−φ)(3−φ), whatever the level does slowly. Both are running means in which a
    square counts as 4 times the mean at most, so that one spike does not decide. The latest
    `DELAY` values are held back, so that a change does not pass for noise.

    Attributes:
        count: Differences seen, `MEMORY` at most: the degrees of freedom.
    """

    DELAY, MEMORY = 20, 200

    __slots__ = ("_power", "_product", "_second", "_square", "count")

    def __init__(self) -> None:
        self.count = 0
        self._power = self._second = 0.0
        self._square = self._product = 0.0

    @property
    def phi(self) -> float:
        """The autocorrelation, within [0, 0.95]; 0 before there is an estimate."""
        if self._square == 0.0:
            return 0.0
        return min(max(1.0 + 2.0 * self._product / self._square, 0.0), MAX_CORRELATION)

    @property
    def sigma(self) -> float:
        """The standard deviation; 0 before there is an estimate."""
        phi = self.phi
        return math.sqrt(self._second / (2.0 * (1.0 - phi) * (3.0 - phi)))

    def update(self, values: Sequence[float]) -> None:
        """Take the newest of the stream's values, of which the latest few are held."""
        if len(values) < self.DELAY + 3:
            return
        a, b, c = values[-self.DELAY - 3 : -self.DELAY]
        first, then = b - a, c - b
        square = (first * first + then * then) / 2.0
        second = (then - first) ** 2
        count = self.count = min(self.count + 1, self.MEMORY)
        self._power += (square - self._power) / count
        if count > 5 and second > 4.0 * self._second:
            second = 4.0 * self._second
        self._second += (second - self._second) / count
        if square > 0.0:
            weight = 1.0 / max(self._power, square / 4.0)
            self._square += (square * weight - self._square) / count
            self._product += (first * then * weight - self._product) / count

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes."""
        return {
            "count": self.count,
            "means": [self._power, self._second, self._square, self._product],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.count = int(state["count"])
        self._power, self._second, self._square, self._product = state["means"]


def extrapolation_inflation(new: int, old: int, phi: float) -> float:
    """Factor on the standard error of an extrapolation under AR(1) noise: √(cᵀRc / cᵀc).

    A line through `old` points is carried on to the mean of the `new` points after them, all
    equally spaced; R is the correlation of the noise, c the weights of the points in the error.

    Args:
        new: Points whose mean is foretold.
        old: Points of the line.
        phi: Autocorrelation of the noise at lag one, in (−1, 1).
    """
    return _extrapolation_inflation(new, old, round(20.0 * phi))


@lru_cache(maxsize=1024)
def _extrapolation_inflation(new: int, old: int, twentieths: int) -> float:
    n = new + old
    apart = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    correlation = (twentieths / 20.0) ** apart
    x = np.arange(old) - (old - 1) / 2.0
    weights = np.concatenate([1.0 / old + 0.5 * n * x / float(x @ x), np.full(new, -1.0 / new)])
    return math.sqrt(float(weights @ correlation @ weights) / float(weights @ weights))
