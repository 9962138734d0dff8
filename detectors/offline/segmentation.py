"""A whole history in hindsight: where it changes.

`segment` cuts a series into straight pieces, or into levels, by binary segmentation (ruptures
`Binseg`, `jump=1`) under a weighted least-squares cost. A cut must lower the cost by

    penalty = max(3 log n · max(σ², floor²), share · Σ wᵢ (yᵢ − ȳ)²).

3 log n is the price of a cut by BIC: its place and the two numbers of a line. σ² is the *long-run*
variance of the noise: the largest over block lengths b = 1, 2, 4, … of b · scale²/6, scale the
robust standard deviation of the second differences of block means; autocorrelated noise is louder
in longer blocks, a slow trend is not. With known standard errors the weights are 1/stderr² and
σ = 1. The floor and the share keep a series without noise from shattering.

`detectors/offline/changes.py` reads from the pieces which falls and rises are abrupt.

A history is thinned to at most `MAX_POINTS` block means before the search; the cuts are then placed
at full resolution. Cost: about 20 ms for 2000 points, and 2 µs for each further one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import ruptures
from numpy.typing import ArrayLike, NDArray

from phasewatch.detectors.base import require
from phasewatch.detectors.statistics.noise import scale as robust_scale
from phasewatch.detectors.statistics.weighted_lines import WeightedLines

Array = NDArray[np.float64]
Shape = Literal["line", "level"]
ScaleName = Literal["auto", "log", "linear"]

MAX_POINTS = 1500
"""Points that are searched at most; a longer history is searched on means of equal blocks."""

MIN_SIZE = 3
"""Points of a segment: a line through two would fit any noise."""

SHARE = 0.05
"""Smallest part of the total variation that a change point must explain."""

FEWEST_BLOCKS = 12
"""So many blocks at least, for a variance from their means; and at least as many as each is long,
so that a slow trend does not pass for noise."""

TINY = 1e-300


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One piece of a series.

    Attributes:
        start: Index of its first point.
        end: Index after its last point.
        first: Fitted value at its first point, on the scale of the search.
        last: The same at its last point.
    """

    start: int
    end: int
    first: float
    last: float


def segment(
    steps: ArrayLike,
    values: ArrayLike,
    stderr: ArrayLike | None = None,
    *,
    scale: ScaleName = "linear",
    shape: Shape = "line",
    penalty: float | None = None,
    share: float = SHARE,
    floor: float = 0.0,
    min_size: int = MIN_SIZE,
) -> list[Segment]:
    """Cut a series where it changes.

    Args:
        steps: Optimizer steps, increasing, shape (n,).
        values: Shape (n,).
        stderr: Known standard errors, all above 0, shape (n,); None estimates the noise.
        scale: "log" searches log10 of the values, "auto" does where all are above 0.
        shape: Straight lines, or levels.
        penalty: What a cut must gain, in squared units of the scale, or of the standard errors;
            None takes it from the rule above.
        share: Part of the total variation that a cut must explain.
        floor: Noise assumed at least, in units of the scale.
        min_size: Points of a segment at least.

    Returns:
        The segments, in order, without gaps; one where nothing changes or points are too few.

    Raises:
        ValueError: Lengths differ, a number is not finite, steps do not increase, a standard error
            is not above 0, a loss on a log scale is not above 0, or a parameter is out of range.
    """
    require(shape in ("line", "level"), "shape", shape, "'line' or 'level'")
    require(penalty is None or penalty > 0.0, "penalty", penalty, "above 0")
    require(0.0 <= share < 1.0, "share", share, "in [0, 1)")
    require(floor >= 0.0, "floor", floor, "at least 0")
    require(min_size >= 2, "min_size", min_size, "at least 2")
    x, y, errors = checked(steps, values, stderr, scale)
    if errors is not None and floor > 0.0:
        errors = np.hypot(errors, floor)
    weights = None if errors is None else errors**-2.0
    cuts = _cuts(x, y, weights, shape, penalty, share, floor, min_size)
    bounds = [0, *cuts, y.size]
    return [_fitted(x, y, weights, shape, a, b) for a, b in pairwise(bounds)]


def change_points(segments: Sequence[Segment]) -> list[int]:
    """Indices at which a segment begins, but for the first."""
    return [piece.start for piece in segments[1:]]


# ---- input


def is_log(values: ArrayLike, scale: ScaleName) -> bool:
    """Whether values are searched by their logarithms."""
    return scale == "log" or (scale == "auto" and bool((np.asarray(values) > 0.0).all()))


def checked(
    steps: ArrayLike, values: ArrayLike, stderr: ArrayLike | None, scale: ScaleName
) -> tuple[Array, Array, Array | None]:
    """Steps, values on their scale, and standard errors on it.

    Args:
        steps: Steps, shape (n,), increasing.
        values: Values, shape (n,).
        stderr: Standard errors, shape (n,); None where values are exact.
        scale: Scale on which the values are looked at.
    """
    require(scale in ("auto", "log", "linear"), "scale", scale, "'auto', 'log' or 'linear'")
    x, y = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    errors = None if stderr is None else np.asarray(stderr, dtype=np.float64)
    for name, array in (("steps", x), ("values", y), ("stderr", errors)):
        if array is None:
            continue
        if array.shape != (x.size,):
            raise ValueError(f"{name} has shape {array.shape}, but must be ({x.size},) as steps")
        if not np.isfinite(array).all():
            wrong = int(np.flatnonzero(~np.isfinite(array))[0])
            raise ValueError(
                f"{name}[{wrong}] is {array[wrong]}, but must be finite: leave such points out"
            )
    if (np.diff(x) <= 0.0).any():
        wrong = int(np.flatnonzero(np.diff(x) <= 0.0)[0])
        raise ValueError(f"steps must increase, but {x[wrong]:g} is followed by {x[wrong + 1]:g}")
    if errors is not None and (errors <= 0.0).any():
        raise ValueError(f"stderr has {errors.min()}, but must be above 0")
    if is_log(y, scale):
        if (y <= 0.0).any():
            raise ValueError(f"values has {y.min()}, but must be above 0 on a log scale")
        if errors is not None:
            errors = errors / (y * math.log(10.0))
        y = np.log10(y)
    return x, y, errors


# ---- cuts


def _cuts(
    x: Array,
    y: Array,
    weights: Array | None,
    shape: Shape,
    penalty: float | None,
    share: float,
    floor: float,
    min_size: int,
) -> list[int]:
    """Indices at which a new segment begins, at full resolution."""
    block = block_size(y.size)
    coarse_x, coarse_y, coarse_w = _thinned(x, y, weights, block)
    n = coarse_y.size
    if n < 2 * min_size:
        return []
    total = np.ones_like(coarse_y) if coarse_w is None else coarse_w
    variation = float(total @ (coarse_y - np.average(coarse_y, weights=total)) ** 2)
    if variation <= 1e-20 * float(total @ coarse_y**2):
        return []
    if penalty is None:
        noise = 1.0 if coarse_w is not None else max(_long_run_scale(coarse_y), floor)
        penalty = max(3.0 * math.log(n) * noise**2, share * variation)
    elif coarse_w is None:
        penalty /= block
    cost = WeightedLines(coarse_x if shape == "line" else None, coarse_w)
    search = ruptures.Binseg(custom_cost=cost, min_size=min_size, jump=1)
    ends = search.fit(coarse_y).predict(pen=max(penalty, TINY))
    ruptures.Binseg.single_bkp.cache_clear()  # it would keep the series alive
    cuts = [end * block for end in ends[:-1]]
    return cuts if block == 1 else _refined(x, y, weights, shape, cuts, block)


def block_size(count: int) -> int:
    """Points of a block, so that there are at most `MAX_POINTS` blocks."""
    return max(-(-count // MAX_POINTS), 1)


def _thinned(
    x: Array, y: Array, weights: Array | None, block: int
) -> tuple[Array, Array, Array | None]:
    """Means of blocks of points; the last may be shorter."""
    if block == 1:
        return x, y, weights
    starts = np.arange(0, y.size, block)
    counts = np.diff(np.append(starts, y.size))
    if weights is None:
        return np.add.reduceat(x, starts) / counts, np.add.reduceat(y, starts) / counts, None
    sums = np.add.reduceat(weights, starts)
    return (
        np.add.reduceat(weights * x, starts) / sums,
        np.add.reduceat(weights * y, starts) / sums,
        sums,
    )


def _long_run_scale(y: Array) -> float:
    """Standard deviation of the noise as block means see it, times √ block length; the largest."""
    largest, block = 0.0, 1
    while block == 1 or y.size >= block * max(block, FEWEST_BLOCKS):
        means = y[: y.size // block * block].reshape(-1, block).mean(axis=1)
        if means.size >= 4:
            bend = robust_scale(np.diff(means, 2)) / math.sqrt(6.0)
            largest = max(largest, math.sqrt(block) * bend)
        block *= 2
    return largest


def _refined(
    x: Array, y: Array, weights: Array | None, shape: Shape, cuts: list[int], block: int
) -> list[int]:
    """Each cut moved to where the pieces on both sides fit best, within two blocks of it."""
    cost = WeightedLines(x if shape == "line" else None, weights).fit(y)
    bounds = [0, *cuts, y.size]
    for k in range(1, len(bounds) - 1):
        before, cut, after = bounds[k - 1 : k + 2]
        low, high = max(before + 2, cut - 2 * block), min(after - 2, cut + 2 * block)
        bounds[k] = min(
            range(low, high + 1),
            key=lambda at: cost.error(before, at) + cost.error(at, after),
            default=cut,
        )
    return bounds[1:-1]


def _fitted(
    x: Array, y: Array, weights: Array | None, shape: Shape, start: int, end: int
) -> Segment:
    x, y = x[start:end], y[start:end]
    w = np.ones_like(y) if weights is None else weights[start:end]
    first = last = middle = float(np.average(y, weights=w)) if y.size else math.nan
    if shape == "line" and y.size > 1:
        centred = x - np.average(x, weights=w)
        slope = float(w * centred @ y) / float(w * centred @ centred)
        first, last = (middle + slope * float(centred[at]) for at in (0, -1))
    return Segment(start=start, end=end, first=first, last=last)
