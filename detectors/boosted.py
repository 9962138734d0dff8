"""Boosted trees of depth three, run by numpy: the sum over trees of one leaf each.

Each tree asks three questions "is feature f above t?"; the answers lead to one of eight leaves. The
sum of the leaves is the log-odds of a change.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

DEPTH = 3
INNER, LEAVES = 2**DEPTH - 1, 2**DEPTH
NEVER = 1e9
"""A threshold that no feature passes: the question of a branch that has ended."""


class BoostedTrees:
    """A model of that form.

    Args:
        features: Which feature each inner node asks about, shape (trees, 7), parents first.
        thresholds: Above which value the answer leads to the right, shape (trees, 7).
        leaves: Shape (trees, 8).
        base: Log-odds before any tree.
    """

    def __init__(
        self,
        features: Sequence[Sequence[int]],
        thresholds: Sequence[Sequence[float]],
        leaves: Sequence[Sequence[float]],
        base: float,
    ) -> None:
        trees = len(features)
        self._features = np.array(features, dtype=np.intp).reshape(trees, INNER)
        self._thresholds = np.array(thresholds, dtype=np.float64).reshape(trees, INNER)
        self._leaves = np.array(leaves, dtype=np.float64).reshape(trees, LEAVES)
        self._base = float(base)
        self._rows = np.arange(trees)

    def log_odds(self, features: Array) -> Array:
        """Log-odds of a change, shape (n,), from features of shape (n, number of features)."""
        node = np.zeros((len(features), self._rows.size), dtype=np.intp)
        for _ in range(DEPTH):
            asked = np.take_along_axis(features, self._features[self._rows, node], axis=1)
            node = 2 * node + 1 + (asked > self._thresholds[self._rows, node])
        return np.asarray(self._leaves[self._rows, node - INNER].sum(axis=1) + self._base)

    def as_dict(self) -> dict[str, object]:
        """The model as plain containers."""
        return {
            "base": self._base,
            "features": self._features.tolist(),
            "thresholds": self._thresholds.tolist(),
            "leaves": self._leaves.tolist(),
        }


@lru_cache(maxsize=4)
def shipped(name: str) -> BoostedTrees:
    """The model in the file of that name beside this one, read once."""
    content = json.loads(files(__package__).joinpath(name).read_text(encoding="utf-8"))
    return BoostedTrees(
        content["features"], content["thresholds"], content["leaves"], content["base"]
    )
