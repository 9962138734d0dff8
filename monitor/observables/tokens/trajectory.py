"""A path in few dimensions: its principal components, and where it turns."""

from __future__ import annotations

import math
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


COMPONENTS = 3
"""Components that are reported."""

OUTGROWN = 2.0
"""Components keep their order from fit to fit until one has so many times the share of variance of
the one before it. Then they are put in order anew, which their streams show as a jump."""

REACH = 0.1
"""Length of the two chords whose angle is the turn of the path, over its largest extent. What
jitters by less, such as a path that rests, does not turn."""


CLEAR = 10.0
"""The same over the scatter of the points, where that is more: the chords' directions are then
known to within 0.3 radians."""


SECOND_DIFFERENCE = 1.538 * math.sqrt(6.0)
"""Median length of the second difference of independent points in three dimensions, over their
standard deviation along each."""


SHARP = math.pi / 3
"""A turn from which on it is a turning point."""


class Fit(NamedTuple):
    """Principal components of a path.

    Attributes:
        scores: Where the path is, centred over time, shape (T, 3).
        shares: Share of the variance of each component, shape (3,).
        loadings: Unit directions, zero where there is no variance left, shape (3, D).
    """

    scores: Array
    shares: Array
    loadings: Array


def fit(rows: NDArray[Any], before: Array | None = None) -> Fit:
    """Principal components of the rows by their Gram matrix.

    With X the rows (T, D) less their mean over T: X Xᵀ = U Λ Uᵀ; scores U_k √λ_k, shares λ_k / Σλ,
    loadings Xᵀ U_k / √λ_k.

    Args:
        rows: Shape (T, D).
        before: Loadings of an earlier fit, of shape (3, D). Components are put in the order, and
            given the signs, in which they are most alike to those; see `OUTGROWN`. Without, the
            variance orders them, and no score is lower in the last row than in the first.
    """
    centred = rows.astype(np.float64)
    centred -= centred.mean(axis=0)
    gram = centred @ centred.T
    values, vectors = np.linalg.eigh(gram)
    total = float(np.trace(gram))
    scores = np.zeros((len(rows), COMPONENTS))
    loadings = np.zeros((COMPONENTS, rows.shape[1]))
    shares = np.zeros(COMPONENTS)
    for k, (value, vector) in enumerate(zip(values[::-1], vectors.T[::-1], strict=True)):
        if k == COMPONENTS or value <= len(rows) * np.finfo(np.float64).eps * total:
            break
        scores[:, k] = np.sqrt(value) * vector
        loadings[k] = centred.T @ vector / np.sqrt(value)
        shares[k] = value / total
    alike = np.zeros((COMPONENTS, COMPONENTS)) if before is None else before @ loadings.T
    every = np.arange(COMPONENTS)
    order = max(
        (np.array(p) for p in permutations(every)), key=lambda p: np.abs(alike[every, p]).sum()
    )
    if (shares[order][1:] > OUTGROWN * shares[order][:-1]).any():
        order = every
    facing = alike[np.abs(alike).argmax(axis=0), every]
    facing = np.where(facing == 0.0, scores[-1] - scores[0], facing)
    sign = np.where(facing < 0.0, -1.0, 1.0)
    return Fit((scores * sign)[:, order], shares[order], (loadings * sign[:, None])[order])


def reach(path: Array) -> float:
    """Length of the chords between which turns of a path are measured; see `REACH` and `CLEAR`."""
    extent = float(np.linalg.norm(path[:, None] - path[None, :], axis=-1).max())
    bends = np.linalg.norm(np.diff(path, n=2, axis=0), axis=-1)
    scatter = float(np.median(bends)) / SECOND_DIFFERENCE if len(bends) else 0.0
    return max(REACH * extent, CLEAR * scatter)


def turns(path: Array) -> Array:
    """Angle by which a path turns at each of its points, in radians, shape (T,).

    The angle between the chord that ends in a point and the chord that begins there. They go to the
    nearest points in time, on either side, that are out of `reach`. NaN where there is no such
    point: near both ends.
    """
    far = np.linalg.norm(path[:, None] - path[None, :], axis=-1) > reach(path)
    angles = np.full(len(path), np.nan)
    for i in range(len(path)):
        earlier, later = np.flatnonzero(far[i, :i]), np.flatnonzero(far[i, i:])
        if len(earlier) and len(later):
            came, goes = path[i] - path[earlier[-1]], path[i + later[0]] - path[i]
            cosine = came @ goes / (np.linalg.norm(came) * np.linalg.norm(goes))
            angles[i] = math.acos(min(1.0, max(-1.0, float(cosine))))
    return angles


def sharp_turns(path: Array) -> list[tuple[int, float]]:
    """Points where a path turns by more than `SHARP`, and the angles; of each bend the sharpest.

    Two points are of one bend if no point between them is out of the reach of the sharper one.
    """
    angles = np.nan_to_num(turns(path), nan=0.0)
    within = reach(path)
    found = []
    while angles.max(initial=0.0) > SHARP:
        i = int(np.argmax(angles))
        found.append((i, float(angles[i])))
        away = np.linalg.norm(path - path[i], axis=-1) > within
        first = np.flatnonzero(away[:i])[-1] + 1
        last = i + np.flatnonzero(away[i:])[0]
        angles[first:last] = 0.0
    return sorted(found)
