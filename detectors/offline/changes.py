"""The abrupt changes of a whole history, read from its straight pieces.

Steep neighbours that move the same way are one change, and it counts where it is steep against
what is before and what is after. The pieces are those of `segmentation.segment`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from phasewatch.detectors.base import require
from phasewatch.detectors.offline.segmentation import (
    MIN_SIZE,
    TINY,
    Array,
    ScaleName,
    Segment,
    block_size,
    checked,
    is_log,
    segment,
)
from phasewatch.detectors.statistics.noise import MAX_CORRELATION
from phasewatch.detectors.statistics.noise import scale as robust_scale
from phasewatch.detectors.types import Direction

GATE, RELATIVE_GATE = 0.1, 0.03
"""Smallest abrupt change: in dex (or as a share of the range), and as a share of the range."""

LARGEST_SCORE = 1e6

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
    x, y, errors = checked(steps, values, stderr, scale)
    extent = float(np.ptp(y)) if y.size else 0.0
    unit = gate if is_log(values, scale) else gate * extent
    smallest = max(unit, RELATIVE_GATE * extent)
    if y.size < 4 * MIN_SIZE or smallest <= 0.0:
        return []
    floor = NOISE_FLOOR * smallest
    if errors is None:
        floor = max(floor, _autoregressive_scale(y) / math.sqrt(block_size(y.size)))
    segments = segment(x, y, errors, share=0.0, floor=floor)
    pieces = _pieces(x, segments, smallest)
    wanted = [1.0, -1.0]
    if direction is not None:
        wanted = [1.0 if direction is Direction.UP else -1.0]
    found = [change for sign in wanted for change in _abrupt(pieces, sign, smallest, abrupt)]
    return sorted(found, key=lambda change: change.onset_step)


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
