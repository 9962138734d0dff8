"""Courses fitted to a short stream with weights: jumps, ramps, slow ones and fast ones.

"Gain" is what their χ² is smaller by than that of one level. Shapes: values and weights (n,).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RELAXATIONS = (1.5, 3.0, 6.0, 12.0)
"""Rates of the exponential courses, in e-folds per half of the stream."""

BENDS = (-0.5, 0.0, 0.5)
"""Where a straight approach to a level ends; the stream lies over [−1, 1]."""

STEEPEST = (*RELAXATIONS, *(1.0 for _ in BENDS))
"""Largest slope of each approach to a level."""

POWER = 0.5
"""Fastest honest growth as a power of the step: the way of a random walk."""

LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192)
"""Ramps that are over took one of these numbers of points; 1 is a jump."""

STARTS = 4
"""A ramp's start is looked for in steps of this share of its length."""

LAST = (3, 4, 6, 8, 12, 16)
"""How many points a fast course may have."""

LEAST_UNKNOWN = 6
"""Points of a fast course where standard errors are not known."""

MOST_CORRELATED = 0.8
"""Largest correlation of neighbours that is believed: short streams cannot tell more."""


class Change(NamedTuple):
    """The most likely level → ramp → level.

    Attributes:
        gain: What χ² is smaller by than that of one level.
        start: Last point of the old level.
        end: First point of the new level; the last point of all if the ramp goes on.
        before: The old level.
        size: New level minus old.
    """

    gain: float
    start: int
    end: int
    before: float
    size: float


class Slow(NamedTuple):
    """A slow course: level + slope u + bend u² + size · approach(u) + power · log step.

    u goes from −1 to 1 over the points.

    Attributes:
        gain: What χ² is smaller by than that of one level.
        num_points: Points it was fitted to; the first lies at u = −1, the last at 1.
        level: Constant part.
        slope: Linear part.
        bend: Quadratic part.
        approach: Which approach to a level it has a part of.
        size: How much of it.
        power: How much of the logarithm of the step.
    """

    gain: float
    num_points: int
    level: float
    slope: float
    bend: float
    approach: int
    size: float
    power: float

    def at(self, index: int, log_step: float) -> float:
        """Its value at a point, also beyond those it was fitted to."""
        u = 2.0 * index / (self.num_points - 1) - 1.0
        value = self.level + u * (self.slope + u * self.bend) + self.power * log_step
        return value + self.size * _approach(self.approach, u) if self.size else value


class Fast(NamedTuple):
    """A line through the last points that is steeper than a slow one may be.

    Attributes:
        ratio: 2 log Λ against the steepest slow line, over-dispersion allowed for.
        num_points: Its points.
        slope: Its slope per point.
    """

    ratio: float
    num_points: int
    slope: float


@lru_cache(maxsize=512)
def _ramps(count: int, min_before: int) -> tuple[NDArray[np.intp], Array, Array]:
    """Start and end (2, m) of every ramp looked at; the starts and 1 / lengths as floats (m,)."""
    last = count - 1
    pairs = {(start, last) for start in range(min_before - 1, last)}
    for length in LENGTHS:
        starts = range(min_before - 1, last - length + 1, -(-length // STARTS))
        pairs.update((start, start + length) for start in starts)
    both = np.array(sorted(pairs), dtype=np.intp).T
    return both, both[0].astype(np.float64), 1.0 / (both[1] - both[0])


def best_change(values: Array, weights: Array, min_before: int) -> Change:
    """The level → ramp → level of largest likelihood, by prefix sums.

    Args:
        values: Values, shape (n,).
        weights: Inverse variances, shape (n,).
        min_before: Fewest points of the first level.
    """
    count = values.size
    ends, start, inverse = _ramps(count, min_before)
    index = np.arange(count, dtype=np.float64)
    mean = float(weights @ values) / float(weights.sum())
    centred = weights * (values - mean)
    parts = np.empty((5, count))
    parts[0] = weights
    np.multiply(weights, index, out=parts[1])
    np.multiply(parts[1], index, out=parts[2])
    parts[3] = centred
    np.multiply(centred, index, out=parts[4])
    sums = parts.cumsum(axis=1)
    to_end = sums.take(ends[1], axis=1)
    inner = to_end - sums.take(ends[0], axis=1)
    beyond = float(sums[0, -1]) - to_end[0]
    # Over the ramp r = (i − start) / length, beyond it 1: Σ w r, Σ w r², Σ w r (y − ȳ).
    first = (inner[1] - start * inner[0]) * inverse + beyond
    second = (inner[2] - start * (2.0 * inner[1] - start * inner[0])) * inverse**2 + beyond
    cross = (inner[4] - start * inner[3]) * inverse - to_end[3]
    spread = second - first * first / float(sums[0, -1])
    gains = cross * cross / spread
    best = int(gains.argmax())
    size = float(cross[best] / spread[best])
    before = mean - size * float(first[best]) / float(sums[0, -1])
    return Change(float(gains[best]), int(ends[0, best]), int(ends[1, best]), before, size)


def ramp(change: Change, count: int) -> Array:
    """The course of a change, shape (count,)."""
    rise = (np.arange(count) - change.start) / (change.end - change.start)
    return np.asarray(change.before + change.size * rise.clip(0.0, 1.0))


@lru_cache(maxsize=512)
def _slow_shapes(count: int) -> Array:
    """u, u² and the approaches to a level over u in [−1, 1], shape (9, count)."""
    u = np.linspace(-1.0, 1.0, count)
    approaches = [[_approach(k, x) for x in u.tolist()] for k in range(len(STEEPEST))]
    return np.array([u, u * u, *approaches])


def _approach(which: int, u: float) -> float:
    """An approach to 0 from above, exponential or straight."""
    if which < len(RELAXATIONS):
        return math.exp(-RELAXATIONS[which] * (u + 1.0))
    return max(BENDS[which - len(RELAXATIONS)] - u, 0.0)


def best_slow(values: Array, weights: Array, log_steps: Array, slow: float) -> Slow:
    """The slow line, parabola, approach to a level or power law of largest likelihood.

    A power law is a line over `log_steps`, of a slope up to `POWER`. Another fit that is anywhere
    faster than `slow` per point is made flatter by the factor f < 1 that this takes; its gain is
    then f (2 − f) of what it was.

    Args:
        values: Values, shape (n,).
        weights: Inverse variances, shape (n,).
        log_steps: Logarithms of the steps, shape (n,).
        slow: Largest speed, as a share of the level a point.
    """
    count = values.size
    shapes = np.concatenate([_slow_shapes(count), log_steps[None]])
    total = float(weights.sum())
    mean = float(weights @ values) / total
    weighted = shapes * weights
    sums = weighted.sum(axis=1)
    squares = weighted @ shapes.T - np.outer(sums, sums / total)
    centre: list[float] = (sums / total).tolist()
    cross: list[float] = (weighted @ (values - mean)).tolist()
    own: list[float] = squares.diagonal().tolist()
    allowed = slow * (count - 1) / 2.0  # per unit of u
    best = Slow(0.0, count, mean, 0.0, 0.0, 0, 0.0, 0.0)

    slope = cross[0] / own[0]
    flatter = min(allowed / abs(slope), 1.0) if slope else 1.0
    gain = slope * cross[0] * flatter * (2.0 - flatter)
    slope *= flatter
    if gain > best.gain:
        best = Slow(gain, count, mean - slope * centre[0], slope, 0.0, 0, 0.0, 0.0)

    both = float(squares[0, 1])
    if (determinant := own[0] * own[1] - both * both) > 0.0:
        b = (own[1] * cross[0] - both * cross[1]) / determinant
        c = (own[0] * cross[1] - both * cross[0]) / determinant
        speed = abs(b) + 2.0 * abs(c)
        flatter = min(allowed / speed, 1.0) if speed else 1.0
        gain = (b * cross[0] + c * cross[1]) * flatter * (2.0 - flatter)
        if gain > best.gain:
            b, c = b * flatter, c * flatter
            best = Slow(gain, count, mean - b * centre[0] - c * centre[1], b, c, 0, 0.0, 0.0)

    for k, steepest in enumerate(STEEPEST):
        if own[k + 2] <= 0.0:
            continue  # no point lies before the bend
        size = cross[k + 2] / own[k + 2]
        speed = steepest * abs(size)
        flatter = min(allowed / speed, 1.0) if speed else 1.0
        gain = size * cross[k + 2] * flatter * (2.0 - flatter)
        if gain > best.gain:
            size *= flatter
            best = Slow(gain, count, mean - size * centre[k + 2], 0.0, 0.0, k, size, 0.0)

    power = cross[-1] / own[-1] if own[-1] > 0.0 else 0.0
    flatter = min(POWER / abs(power), 1.0) if power else 1.0
    gain = power * cross[-1] * flatter * (2.0 - flatter)
    if gain > best.gain:
        power *= flatter
        best = Slow(gain, count, mean - power * centre[-1], 0.0, 0.0, 0, 0.0, power)
    return best


def fastest(
    values: Sequence[float],
    variances: Sequence[float],
    stretches: Sequence[tuple[int, float, float]],
) -> Fast | None:
    """The clearest fast course that ends at the last point, or None.

    Args:
        values: The last points of the stream.
        variances: Their variances.
        stretches: How many of them to look at, and the steepest slopes of a slow line upwards and
            downwards over these, per point.
    """
    best = None
    for points, up, down in stretches:
        fit = _line(values[-points:], variances[-points:], up, down)
        if fit is not None and (best is None or fit.ratio > best.ratio):
            best = fit
    return best


def _line(
    values: Sequence[float], variances: Sequence[float], up: float, down: float
) -> Fast | None:
    weights = [1.0 / variance for variance in variances]
    total = sum(weights)
    mx = sum(w * x for x, w in enumerate(weights)) / total
    my = sum(w * y for w, y in zip(weights, values, strict=True)) / total
    sxx = sxy = syy = 0.0
    for x, (w, y) in enumerate(zip(weights, values, strict=True)):
        dx, dy = x - mx, y - my
        sxx += w * dx * dx
        sxy += w * dx * dy
        syy += w * dy * dy
    slope = sxy / sxx
    excess = slope - up if slope > 0.0 else -slope - down
    if excess <= 0.0:
        return None
    scatter = max((syy - slope * sxy) / (len(values) - 2), 1.0)
    return Fast(excess * excess * sxx / scatter, len(values), slope)


def slope_of(values: Array, weights: Array) -> tuple[float, float]:
    """Slope per point of the least-squares line, and its standard error."""
    x = np.arange(float(values.size))
    x -= float(weights @ x) / float(weights.sum())
    weighted = weights * x
    spread = float(weighted @ x)
    return float(weighted @ values) / spread, 1.0 / math.sqrt(spread)


def scatter_of(residuals: Array, weights: Array, num_parameters: int) -> float:
    """φ: χ² per degree of freedom, at least 1, times (1 + ρ) / (1 − ρ) for correlation ρ ≥ 0.

    Args:
        residuals: Residuals of a fit, shape (n,).
        weights: Inverse variances, shape (n,).
        num_parameters: Parameters of the fit.
    """
    z = residuals * np.sqrt(weights)
    square = float(z @ z)
    phi = max(square / max(z.size - num_parameters, 1), 1.0)
    rho = float(z[1:] @ z[:-1]) / square if square > 0.0 else 0.0
    rho = min(max(rho, 0.0), MOST_CORRELATED)
    return phi * (1.0 + rho) / (1.0 - rho)
