"""What can be said of a possible change from the numbers just before it and the few since.

One question for each m: do the last m values belong to what the values before them were doing? The
values before are carried on along a robust line; how far the m values lie from it is measured in
the noise around that line, against the largest jumps nearby, against the recent range, the level
and the trend. All of these are ratios: neither unit, nor name, nor length of a run matters. Values
that are positive and span a factor are watched in log10, all others as they are: the values decide,
again at each look, unless the caller asks for them as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

NEW = (1, 2, 3, 4, 6, 9, 14)
"""Numbers of latest values that are asked about."""

MIN_OLD, MAX_OLD = 6, 48
"""Values before them that a line needs, and that it uses at most."""

LOG_SPAN = 2.5
"""Positive values are watched in log10 where the largest is so many times the smallest."""

TINY = 1e-300

SIGNIFICANT, FEW = 5.0, 5.0
"""Standard errors that a change must have whatever else speaks for it: the first where the noise is
known from many values, twice that where it is from so few. With 6 and 6 one change in twelve of
thinned curves is lost; with 4 and 2 noise that remembers alarms twice as often."""

ROUNDING = 1e-6

LEAST, ROUNDED = 1e-15, 1e-12
"""Noise is no smaller where values are watched as they are; of both signs, they may be sums that
should be 0, and are about 1e-15.
"""

NAMES = (
    "up", "log", "m", "old", "z_mean", "z_least", "over_residual", "over_jump", "over_far_jump",
    "over_range", "over_far_range", "dex", "over_level", "over_trend", "over_noise_dex",
    "tail", "phi", "bend", "hold", "level", "seen", "since",
    "surprise", "run", "over_past", "run_over_past", "gap", "gap_range", "spread",
)  # fmt: skip
"""The features, in their order."""

RISING = frozenset(
    {
        "z_mean", "z_least", "over_residual", "over_jump", "over_far_jump", "over_range",
        "over_far_range", "dex", "over_level", "over_trend", "surprise", "over_past",
        "run_over_past", "gap", "gap_range",
    }
)  # fmt: skip
"""Features of which more can only make a change more likely: the model is held to that."""


class Past(NamedTuple):
    """How the values of a level surprised a running forecast, in running mean errors.

    Attributes:
        surprise: Largest error of the latest few values.
        run: Largest sum of errors to one side, forgetting, of the latest few.
        usual_surprise: Largest error of the past, forgetting.
        usual_run: Largest such sum of the past.
    """

    surprise: float = 0.0
    run: float = 0.0
    usual_surprise: float = 0.0
    usual_run: float = 0.0


class Looks(NamedTuple):
    """What the latest values look like, for each number m of them.

    Attributes:
        sizes: The numbers m, shape (q,).
        features: Shape (q, len(NAMES)).
        change: Signed difference of the m values from the old line, on the scale used; 0 where
            the line and the level disagree on its sign. Shape (q,).
        sigma: Noise around the old line, on that scale, shape (q,).
        before: Where the old line ends, in the stream's unit, shape (q,).
        after: Mean of the m values, in the stream's unit, shape (q,).
        log: Whether the scale is log10.
        old: Values that the old line was fitted to.
    """

    sizes: tuple[int, ...]
    features: Array
    change: Array
    sigma: Array
    before: Array
    after: Array
    log: bool
    old: int


class _Shape(NamedTuple):
    """What follows from the number of values alone: where looks at each m of them read.

    Attributes:
        sizes: The numbers m.
        ms: The same, as an array.
        old: Values before them that a line is fitted to.
        windows: Indices of these, shape (q, old).
        begins: Where the m values begin.
        ago: How long before the newest old value each of them lies.
        ahead: How far beyond that the middle of the m values lies.
        errors: Standard error of the difference, in units of the noise.
        least: The smallest difference that counts, in the same.
    """

    sizes: tuple[int, ...]
    ms: Array
    old: int
    windows: NDArray[np.intp]
    begins: NDArray[np.intp]
    ago: Array
    ahead: Array
    errors: Array
    least: Array


@lru_cache(maxsize=256)
def _shape(n: int) -> _Shape:
    sizes = tuple(m for m in NEW if 3 * m <= n and n - m >= MIN_OLD)
    k = min(n - sizes[-1], MAX_OLD)
    whole = np.array(sizes, dtype=np.intp)
    ms = whole.astype(np.float64)
    errors = np.sqrt(1.0 / ms + 4.0 / k * (1.0 + ms / k))
    return _Shape(
        sizes=sizes,
        ms=ms,
        old=k,
        windows=(n - k) - whole[:, None] + np.arange(k),
        begins=n - whole,
        ago=np.arange(1.0 - k, 1.0),
        ahead=(ms + 1.0) / 2.0,
        errors=errors,
        least=(1.0 - ROUNDING) * least_errors(k) * errors,
    )


def least_errors(old: int) -> float:
    """Standard errors that a change must have, with so many values before it."""
    return SIGNIFICANT * (1.0 + FEW / old)


def look(
    values: Array,
    far: Sequence[float],
    *,
    level: int,
    seen: int,
    since: int,
    past_of: Callable[[bool], Past],
    whole: bool = True,
    as_they_are: bool = False,
) -> Looks | None:
    """Features of a change at each of the latest values.

    Args:
        values: The latest values of one level, the newest last, none from before the last change;
            more than `MIN_OLD`.
        far: Values of longer ago, coarser; for the range and the jumps that are usual.
        level: How often fours of points were joined to one value.
        seen: Points of the stream so far.
        since: Points since the last change.
        past_of: How the level surprised a forecast, now and before: that of the values, or, given
            True, that of their logarithms.
        whole: Whether features are asked for also where no change has `least_errors`.
        as_they_are: Whether the values are watched so also where log10 fits them.

    Returns:
        None where they are not.
    """
    n = values.size
    shape = _shape(n)
    k, ms, allowed = shape.old, shape.ms, shape.sizes
    low, high = float(values.min()), float(values.max())
    positive = low > 0.0
    log = positive and high > LOG_SPAN * low and not as_they_are
    y = np.log10(values) if log else values
    shift = float(y[-1 - allowed[-1]])
    y = y - shift  # keeps the sums exact
    q = len(allowed)
    old = y[shape.windows]
    third = max(k // 3, 2)
    i, j = (third - 1) // 2, third // 2
    first, last = old[:, :third].copy(), old[:, k - third :].copy()
    first.sort(axis=1)
    last.sort(axis=1)
    slope = (last[:, i] + last[:, j] - first[:, i] - first[:, j]) * (0.5 / (k - third))
    rest = old - slope[:, None] * shape.ago
    ordered = rest.copy()
    ordered.sort(axis=1)
    i, j = (k - 1) // 2, k // 2
    base = 0.5 * (ordered[:, i] + ordered[:, j])
    largest = np.maximum(ordered[:, -1] - base, base - ordered[:, 0])
    sums = np.empty(n + 1)
    sums[0] = 0.0
    y.cumsum(out=sums[1:])
    flat = (sums[n] - sums[shape.begins]) / ms - base
    ahead = flat - slope * shape.ahead
    far_off, farther_on = np.abs(flat), np.abs(ahead)
    nearer = far_off < farther_on
    much = np.minimum(far_off, farther_on)
    much[flat * ahead <= 0.0] = 0.0
    # The noise is no smaller than a quarter of the largest residual: most looks end here.
    if not (whole or (much >= shape.least * (0.25 * largest)).any()):
        return None
    rest -= base[:, None]
    size = np.abs(rest)
    size.sort(axis=1)
    rough = np.abs(old[:, 1:] - old[:, :-1])
    rough.sort(axis=1)
    height = np.ones(q) if log else np.abs(base + shift)
    floor = 1e-7 * height + (LEAST if positive else ROUNDED)
    sigma = np.maximum.reduce([1.4826 * size[:, j], 1.05 * rough[:, i], 0.25 * largest, floor])
    if not (whole or (much >= shape.least * sigma).any()):
        return None
    error = sigma * shape.errors
    change = np.where(nearer, flat, ahead)
    change[much == 0.0] = 0.0
    past = past_of(log)
    sign = np.sign(change)
    least, newest, jump = np.empty(q), np.empty(q), np.empty(q)
    gap, spread = np.empty(q), np.empty(q)
    rare = k // 16
    highest = np.where(sign < 0.0, base - ordered[:, rare], ordered[:, k - 1 - rare] - base)
    for row, m in enumerate(allowed):
        d = sign[row] * (y[n - m :] - base[row])
        if not nearer[row]:
            d = d - sign[row] * slope[row] * np.arange(1, m + 1)
        newest[row] = d[-1]
        d = np.sort(d)
        least[row] = d[0]
        gap[row] = d[m // 8] - highest[row]
        spread[row] = d[m - 1 - m // 8] - d[m // 8]
        if k >= 2 * m:
            means = sums[n - k : n - m + 1] - sums[n - k - m : n - 2 * m + 1]
            jump[row] = np.abs(means[m:] - means[:-m]).max() / m
        else:
            jump[row] = old[row].max() - old[row].min()
    power = np.einsum("ij,ij->i", rest, rest)
    phi = np.einsum("ij,ij->i", rest[:, 1:], rest[:, :-1]) / np.maximum(power, TINY)
    bend = sign * rest[:, k - max(k // 4, 2) :].mean(axis=1) / sigma
    far_jump = far_range = 0.0
    if len(far) > 1:
        far_y = np.array(far)
        if log:
            far_y = np.log10(np.maximum(far_y, low * 1e-3))
        far_jump = float(np.abs(far_y[1:] - far_y[:-1]).max())
        far_range = float(far_y.max() - far_y.min())
    top = np.array([much, least, much, much, much, much, much, much, sigma, largest, much])
    bottom = np.array(
        [
            error, sigma, largest, jump, np.full(q, far_jump),
            ordered[:, -1] - ordered[:, 0] + np.abs(slope) * k, np.full(q, far_range),
            np.abs(slope) * np.maximum(ms, 3), height, sigma, height,
        ]
    )  # fmt: skip
    ratios = _log_ratio(np.maximum(top, 0.0), bottom)
    before, after = _back(base + shift, log=log), _back(base + shift + change, log=log)
    if log:
        dex = much
    elif positive:
        least_height = 1e-6 * low
        dex = np.abs(np.log10(np.maximum(after, least_height) / np.maximum(before, least_height)))
    else:
        dex = np.zeros(q)
    features = np.empty((q, len(NAMES)))
    features[:, 0] = sign > 0.0
    features[:, 1] = float(log) if positive else -1.0
    features[:, 2] = ms
    features[:, 3] = k
    features[:, 4:11] = ratios[:7].T
    features[:, 11] = dex
    features[:, 12] = much if log else ratios[10]
    features[:, 13:16] = ratios[7:10].T
    features[:, 16] = phi
    features[:, 17] = bend
    features[:, 18] = np.clip(newest / np.maximum(much, TINY), -9.0, 9.0)
    features[:, 19] = level
    features[:, 20] = math.log10(seen)
    features[:, 21] = math.log10(max(since, 1))
    features[:, 22] = math.log10(past.surprise + 0.1)
    features[:, 23] = past.run
    features[:, 24] = math.log10((past.surprise + 0.1) / (past.usual_surprise + 0.1))
    features[:, 25] = math.log10((past.run + 0.1) / (past.usual_run + 0.1))
    features[:, 26] = np.arcsinh(np.clip(gap / sigma, -100.0, 100.0))
    features[:, 27] = np.clip(gap / np.maximum(bottom[5], TINY), -3.0, 3.0)
    features[:, 28] = np.log10(spread / sigma + 0.01)
    return Looks(allowed, features, change, sigma, before, after, log, k)


def _back(y: Array, *, log: bool) -> Array:
    return np.asarray(10.0 ** np.clip(y, -300.0, 300.0)) if log else y


def _log_ratio(a: Array, b: Array) -> Array:
    """log10 of a / b, cut at ±4; a and b of at least 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.log10(a) - np.log10(b)
    cut: Array = np.clip(np.nan_to_num(found, nan=0.0, posinf=4.0, neginf=-4.0), -4.0, 4.0)
    return cut
