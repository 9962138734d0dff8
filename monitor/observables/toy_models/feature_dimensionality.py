"""Superposition: the share of a hidden dimension that each feature has for itself."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.meaning import SUPPORTING
from phasewatch.monitor.core.work import Cost
from phasewatch.monitor.observables.toy_models.feature_vectors import FeatureVectors
from phasewatch.monitor.observables.weights.norms import MAX_GROUPS, OTHER, observed


def dimensionality(vectors: Tensor) -> Tensor:
    """D_i = ‖W_i‖² / Σ_j (Ŵ_i·W_j)², shape (features,), for vectors of shape (features, hidden).

    Ŵ_i = W_i/‖W_i‖. D_i is the share of a hidden dimension that a feature has for itself: 1 where
    it is orthogonal to all others, ½ in an antipodal pair, 0 where W_i = 0.
    """
    scale = vectors.abs().max()
    unit = vectors / scale if scale > 0 else vectors
    square = unit.abs().square().sum(dim=1)
    # Σ_j |W_i·W_j|² = W_i M W_i* with M = Σ_j W_j* W_j: never as large as features × features.
    overlap = ((unit @ (unit.mH @ unit)) * unit.conj()).sum(dim=1).real
    return torch.where(square > 0, square.square() / overlap, torch.zeros_like(square))


class FeatureDimensionality(FeatureVectors):
    """Share of the hidden dimensions that features have: Σ_i D_i, and D_i of each.

    D_i = ‖W_i‖² / Σ_j (Ŵ_i·W_j)², with Ŵ_i = W_i/‖W_i‖; 0 where W_i = 0. Σ_i D_i is at most the
    number of hidden dimensions. Dimensionless. The total is "feature_dimensionality"; feature i,
    counted from 0, is "feature_dimensionality/<i>"; beyond 32 features the sum of the rest is
    "feature_dimensionality/other".

    Args:
        weight: The matrix, by the name of its parameter or module; None where the model has one.
        features: Whether they are its "rows" or its "columns"; None takes the longer side.

    Raises:
        ConfigError: `features` is something else.

    Example:
        >>> import torch
        >>> from phasewatch.monitor.observables.once import measure_once
        >>> model = torch.nn.Linear(4, 2, bias=False)
        >>> pairs = [[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]]
        >>> _ = model.weight.data.copy_(torch.tensor(pairs))
        >>> found = measure_once(FeatureDimensionality(), model)
        >>> [(o.name, round(o.value, 3)) for o in found[:2]]  # two antipodal pairs
        [('feature_dimensionality', 2.0), ('feature_dimensionality/0', 0.5)]
    """

    name = "feature_dimensionality"
    unit = "1"
    cost = Cost.WEIGHTS
    reads_live = True
    _reads = 110.0
    needs = "one weight matrix, or the name of one"
    source = "Elhage et al. 2022, Toy Models of Superposition, §Geometry"
    streams: ClassVar = {"feature_dimensionality": SUPPORTING}

    def measure(self, context: MeasureContext) -> list[Observation]:
        """The total first, then each feature.

        Raises:
            RefusedError: There is no such matrix.
            MeasurementError: A weight is not finite.
        """
        each = dimensionality(self._vectors(context))
        parts = {str(i): float(d) for i, d in enumerate(each[:MAX_GROUPS])}
        if len(each) > MAX_GROUPS:
            parts[OTHER] = float(each[MAX_GROUPS:].sum())
        total = observed(context, self.name, self.unit, float(each.sum()))
        return [
            total,
            *(observed(context, f"{self.name}/{p}", self.unit, d) for p, d in parts.items()),
        ]
