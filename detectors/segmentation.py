"""A whole history in hindsight: where it changes, and which of its falls and rises are abrupt.

`segment` cuts a series into straight pieces, or into levels, by binary segmentation (ruptures
`Binseg`, `jump=1`) under a weighted least-squares cost. A cut must lower the cost by

    penalty = max(3 log n · max(σ², floor²), share · Σ wᵢ (yᵢ − ȳ)²).

3 log n is the price of a cut by BIC: its place and the two numbers of a line. σ² is the *long-run*
variance of the noise: the largest over block lengths b = 1, 2, 4, … of b · scale²/6, scale the
robust standard deviation of the second differences of block means; autocorrelated noise is louder
in longer blocks, a slow trend is not. With known standard errors the weights are 1/stderr² and
σ = 1. The floor and the share keep a series without noise from shattering.

`find_changes` reads abrupt changes from the straight pieces: steep neighbours that move the same
way are one change, and it counts where it is steep against what is before and what is after.

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
from ruptures.base import BaseCost

from phasewatch.detectors.base import require
from phasewatch.detectors.noise import MAX_CORRELATION
from phasewatch.detectors.noise import scale as robust_scale
from phasewatch.detectors.types import Direction

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

GATE, RELATIVE_GATE = 0.1, 0.03
"""Smallest abrupt change: in dex (or as a share of the range), and as a share of the range."""

LARGEST_SCORE = 1e6
TINY = 1e-300

NOISE_FLOOR = 0.1
"""Noise below this share of the gate counts as that much."""

STEEP_BEFORE, STEEP_AFTER = 0.2, 0.35
"""Neighbours at least this steep, against the steepest piece, belong to the same change. It begins
with the first sign of it; it is over where the detectors, too, call it over."""

RESOLUTION = 0.01
"""Pieces shorter than this share of the history (and than `MIN_SIZE`) count as that long: a jump of
one point within a fall is no change of its own."""

NEAR = 3.0
"""A series that was, or is back, half-way within so many widths has not changed."""

ABRUPT = 3.0
"""An abrupt change is so many times as steep, where it is steepest, as what is around it."""


class WeightedLines(BaseCost):  # type: ignore[misc]
    """Weighted residual sum of squares about each segment's own line or level.

    Sums over prefixes make the cost of any segment one of constant time.

    Args:
        x: Where the points lie, shape (n,); None for levels.
        weights: One over the variance of each point, shape (n,); None weighs all alike.
    """

    model = "weighted_lines"

    def __init__(self, x: Array | None = None, weights: Array | None = None) -> None:
        self._x, self._weights = x, weights
        self.min_size = 1 if x is None else 2

    def fit(self, signal: Array) -> WeightedLines:
        """Take the values, shape (n,) or (n, 1)."""
        y = np.asarray(signal, dtype=np.float64).reshape(-1)
        self.signal = y[:, None]
        y = y - y.mean()
        w = np.ones_like(y) if self._weights is None else self._weights
        moments = [w, w * y, w * y * y]
        if self._x is not None:
            x = _standard(self._x)
            moments += [w * x, w * x * x, w * x * y]
        self._sums = np.concatenate(
            [np.zeros((1, len(moments))), np.cumsum(np.stack(moments, axis=1), axis=0)]
        ).tolist()
        return self

    def error(self, start: int, end: int) -> float:
        """Cost of points `start` to `end`, the latter excluded."""
        w, y, yy, *rest = (b - a for a, b in zip(self._sums[start], self._sums[end], strict=True))
        cost = yy - y * y / w
        if rest:
            x, xx, xy = rest
            spread = xx - x * x / w
            if spread > 1e-12 * w:
                cost -= (xy - x * y / w) ** 2 / spread
        return max(float(cost), 0.0)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One abrupt change, as the whole history shows it.

    Attributes:
        onset_step: Step at which it begins.
        end_step: Step at which it is over.
        direction: Which way the stream moved.
        size: By how much, on the scale of the search; dex for positive streams.
        score: How many times as steep it is, where it is steepest, as equally wide stretches before
            and after it, whichever of these is steeper.
        open: Whether the history ends within it, so that nothing is known of what follows.
    """

    onset_step: int
    end_step: int
    direction: Direction
    size: float
    score: float
    open: bool


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
    x, y, errors = _checked(steps, values, stderr, scale)
    if errors is not None and floor > 0.0:
        errors = np.hypot(errors, floor)
    weights = None if errors is None else errors**-2.0
    cuts = _cuts(x, y, weights, shape, penalty, share, floor, min_size)
    bounds = [0, *cuts, y.size]
    return [_fitted(x, y, weights, shape, a, b) for a, b in pairwise(bounds)]


def change_points(segments: Sequence[Segment]) -> list[int]:
    """Indices at which a segment begins, but for the first."""
    return [piece.start for piece in segments[1:]]


def find_changes(
    steps: ArrayLike,
    values: ArrayLike,
    stderr: ArrayLike | None = None,
    *,
    scale: ScaleName = "auto",
    direction: Direction | None = None,
    gate: float = GATE,
    abrupt: float = ABRUPT,
) -> list[Change]:
    """The abrupt changes of a history, by onset.

    Args:
        steps: Optimizer steps, increasing, shape (n,).
        values: Shape (n,).
        stderr: Known standard errors, all above 0, shape (n,).
        scale: See `segment`.
        direction: Only changes that go this way.
        gate: Smallest change: in dex on a log scale, else as a share of the range. At least 3 % of
            the range in any case.
        abrupt: Smallest score of a change.

    Raises:
        ValueError: As `segment`; or a parameter is out of range.
    """
    require(gate > 0.0, "gate", gate, "above 0")
    require(abrupt >= 1.0, "abrupt", abrupt, "at least 1")
    x, y, errors = _checked(steps, values, stderr, scale)
    extent = float(np.ptp(y)) if y.size else 0.0
    unit = gate if _is_log(values, scale) else gate * extent
    smallest = max(unit, RELATIVE_GATE * extent)
    if y.size < 4 * MIN_SIZE or smallest <= 0.0:
        return []
    floor = NOISE_FLOOR * smallest
    if errors is None:
        floor = max(floor, _autoregressive_scale(y) / math.sqrt(_block(y.size)))
    segments = segment(x, y, errors, share=0.0, floor=floor)
    pieces = _pieces(x, segments, smallest)
    wanted = [1.0, -1.0]
    if direction is not None:
        wanted = [1.0 if direction is Direction.UP else -1.0]
    found = [change for sign in wanted for change in _abrupt(pieces, sign, smallest, abrupt)]
    return sorted(found, key=lambda change: change.onset_step)


# ---- input


def _is_log(values: ArrayLike, scale: ScaleName) -> bool:
    return scale == "log" or (scale == "auto" and bool((np.asarray(values) > 0.0).all()))


def _checked(
    steps: ArrayLike, values: ArrayLike, stderr: ArrayLike | None, scale: ScaleName
) -> tuple[Array, Array, Array | None]:
    """Steps, values on their scale, and standard errors on it."""
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
    if _is_log(y, scale):
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
    block = _block(y.size)
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


def _block(count: int) -> int:
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


def _autoregressive_scale(y: Array) -> float:
    """The same for AR(1) noise, from first differences d; 0 where these tell of a trend instead.

    corr(dᵢ, dᵢ₊₁) = −(1−φ)/2 and var d = 2 σ² (1−φ), so that σ² (1+φ)/(1−φ) follows. Differences
    are cut at ±3 scales: a change is not noise. It hears in short series what no block could.
    """
    differences = np.diff(y)
    size = robust_scale(differences)
    if size <= 0.0:
        return 0.0
    z = np.clip((differences - np.median(differences)) / size, -3.0, 3.0)
    phi = 1.0 + 2.0 * float(z[1:] @ z[:-1]) / float(z @ z)
    phi += (1.0 + 3.0 * phi) / y.size  # the bias that `noise.autocorrelation` allows for
    if not 0.0 < phi < 1.0:
        return 0.0
    phi = min(phi, MAX_CORRELATION)
    return size * math.sqrt((1.0 + phi) / 2.0) / (1.0 - phi)


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


def _standard(x: Array) -> Array:
    """Places within [-1, 1], so that their squares lose no digits."""
    middle, half = (x[0] + x[-1]) / 2.0, (x[-1] - x[0]) / 2.0
    standard: Array = (x - middle) / (half or 1.0)
    return standard


# ---- abrupt changes


@dataclass(frozen=True, slots=True)
class _Piece:
    """A straight piece between two steps, and its speed at the resolution of the search."""

    start: float
    end: float
    value: float
    rise: float
    speed: float

    def at(self, step: float) -> float:
        """The fit at a step, or at the piece's nearer end."""
        share = (step - self.start) / (self.end - self.start)
        return self.value + self.rise * min(max(share, 0.0), 1.0)


def _pieces(x: Array, segments: Sequence[Segment], smallest: float) -> list[_Piece]:
    """The fit as joined pieces: a jump is one of its own, unless it is small.

    A small jump between two lines is an accident of the fit: the lines then meet half-way.
    """
    knots = [(0.0, float(x[0]), segments[0].first)]
    for old, new in pairwise(segments):
        at, left, right = new.start, float(x[old.end - 1]), float(x[new.start])
        if abs(new.first - old.last) >= smallest:
            knots += [(at - 1.0, left, old.last), (float(at), right, new.first)]
        else:
            knots.append((at - 0.5, (left + right) / 2.0, (old.last + new.first) / 2.0))
    knots.append((x.size - 1.0, float(x[-1]), segments[-1].last))
    shortest = max(RESOLUTION * x.size, MIN_SIZE)
    pieces = []
    for (i, start, before), (j, end, after) in pairwise(knots):
        if j > i:
            width = (end - start) * max(shortest / (j - i), 1.0)
            pieces.append(_Piece(start, end, before, after - before, (after - before) / width))
    return pieces


def _abrupt(pieces: Sequence[_Piece], sign: float, smallest: float, abrupt: float) -> list[Change]:
    """Changes that go one way, the steepest piece first; each piece serves one change."""
    taken: set[int] = set()
    changes = []
    for seed in sorted(range(len(pieces)), key=lambda k: -sign * pieces[k].speed):
        peak = sign * pieces[seed].speed
        if seed in taken or peak <= 0.0:
            continue
        low = high = seed
        free = [k not in taken for k in range(len(pieces))]
        speeds = [sign * piece.speed for piece in pieces]
        while low > 0 and free[low - 1] and speeds[low - 1] >= STEEP_BEFORE * peak:
            low -= 1
        while high + 1 < len(pieces) and free[high + 1] and speeds[high + 1] >= STEEP_AFTER * peak:
            high += 1
        change = _judged(pieces, low, high, sign, peak)
        if change is not None and change.size >= smallest and change.score >= abrupt:
            changes.append(change)
            taken.update(range(low, high + 1))
    return changes


def _judged(
    pieces: Sequence[_Piece], low: int, high: int, sign: float, peak: float
) -> Change | None:
    """Pieces `low` to `high` as one change.

    None where nothing is known of what was before, and for a way there or back of an excursion.
    """
    start, end = pieces[low].start, pieces[high].end
    width = end - start
    size = sign * sum(piece.rise for piece in pieces[low : high + 1])
    if low == 0 or _is_excursion(pieces, low, high, sign):
        return None
    before = _mean_speed(pieces, start - width, start)
    after = _mean_speed(pieces, end, end + width)
    around = max(abs(before), 0.0 if math.isnan(after) else abs(after))
    return Change(
        onset_step=round(start),
        end_step=round(end),
        direction=Direction.UP if sign > 0.0 else Direction.DOWN,
        size=size,
        score=min(peak / max(around, TINY), LARGEST_SCORE),
        open=math.isnan(after),
    )


def _is_excursion(pieces: Sequence[_Piece], low: int, high: int, sign: float) -> bool:
    """Whether the series was there shortly before, or is back soon after: a spike is no change."""
    start, end = pieces[low].start, pieces[high].end
    reach = max(NEAR * (end - start), NEAR * RESOLUTION * (pieces[-1].end - pieces[0].start))
    old, new = sign * pieces[low].value, sign * pieces[high].at(end)
    middle = (old + new) / 2.0
    first, last = start - reach, end + reach
    before = (sign * piece.at(first) for piece in pieces[:low] if piece.end > first)
    after = (sign * piece.at(last) for piece in pieces[high + 1 :] if piece.start < last)
    return max(before, default=old) > middle or min(after, default=new) < middle


def _mean_speed(pieces: Sequence[_Piece], start: float, end: float) -> float:
    """Mean speed between two steps, as far as the history goes; NaN outside of it."""
    rise = length = 0.0
    for piece in pieces:
        common = min(end, piece.end) - max(start, piece.start)
        if common > 0.0:
            rise += piece.rise * common / (piece.end - piece.start)
            length += common
    return rise / length if length else math.nan
