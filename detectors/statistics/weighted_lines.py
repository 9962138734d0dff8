"""A cost for ruptures: weighted residuals about the line, or the level, of each segment."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from ruptures.base import BaseCost

Array = NDArray[np.float64]


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


def _standard(x: Array) -> Array:
    """Places within [-1, 1], so that their squares lose no digits."""
    middle, half = (x[0] + x[-1]) / 2.0, (x[-1] - x[0]) / 2.0
    standard: Array = (x - middle) / (half or 1.0)
    return standard
