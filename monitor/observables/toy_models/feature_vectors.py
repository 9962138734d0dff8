"""The vectors of features that share hidden dimensions (Elhage et al. 2022, Toy Models).

A matrix W holds one vector W_i of hidden dimensions for each feature. In a toy model
x̂ = ReLU(Wᵀ W x + b) with W of shape (hidden, features) they are the columns.
"""

from __future__ import annotations

from torch import Tensor

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.errors import ConfigError, RefusedError
from phasewatch.monitor.core.work import Work
from phasewatch.monitor.observables.evaluation import finite
from phasewatch.monitor.observables.weights.matrices import matrix, wide
from phasewatch.monitor.observables.work import reads

REPRESENTED = 0.5
"""A feature is represented where ‖W_i‖ is above this."""


class FeatureVectors:
    """Finds the matrix whose vectors are the features."""

    name: str
    _reads: float  # for each entry of the matrix

    def __init__(self, weight: str | None = None, *, features: str | None = None) -> None:
        if features not in (None, "rows", "columns"):
            raise ConfigError(
                f'{self.name}: features is {features!r}; it must be "rows" or "columns"'
            )
        self._weight = weight
        self._features = features

    def check(self, context: MeasureContext) -> None:
        """Refuse before the first step what cannot be measured.

        Raises:
            RefusedError: Names what was looked for, and what the model has.
        """
        self._find(context)

    def work(self, context: MeasureContext) -> Work:
        """The matrix in double precision, and some dozen looks at it."""
        weight = matrix(context, self._weight, self.name)[1]
        return reads(context, self._reads * weight.numel())

    def _find(self, context: MeasureContext) -> Tensor:
        """W_i as rows, shape (features, hidden), float64 or complex128."""
        name, weight = matrix(context, self._weight, self.name)
        rows, columns = weight.shape
        if self._features is None and rows == columns:
            raise RefusedError(
                f"{self.name}: {name} is square, {tuple(weight.shape)}, so its shape does not tell "
                'where the features are; say features="rows" or features="columns"'
            )
        by_row = rows > columns if self._features is None else self._features == "rows"
        vectors = wide(weight)
        return vectors if by_row else vectors.T

    def _vectors(self, context: MeasureContext) -> Tensor:
        return finite(self._find(context), f"the weight of {self.name}")
