"""Superposition: how many features a matrix represents."""

from __future__ import annotations

from typing import ClassVar

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.meaning import FORMATION
from phasewatch.monitor.core.work import Cost
from phasewatch.monitor.observables.toy_models.feature_vectors import REPRESENTED, FeatureVectors
from phasewatch.monitor.observables.weights.norms import observed


class RepresentedFeatures(FeatureVectors):
    """How many features a matrix represents: ‖W‖_F², and the number of those with ‖W_i‖ > ½.

    ‖W‖_F² = Σ_i ‖W_i‖² is about the number of features, as each has a length of about 1 or 0; it
    is "represented_features" and moves smoothly. The count is "represented_features/count".

    Args:
        weight: The matrix, by the name of its parameter or module; None where the model has one.
        features: Whether they are its "rows" or its "columns"; None takes the longer side.

    Raises:
        ConfigError: `features` is something else.

    Example:
        >>> import torch
        >>> from phasewatch.monitor.observables.once import measure_once
        >>> model = torch.nn.Linear(4, 2, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]))
        >>> found = measure_once(RepresentedFeatures(), model)
        >>> [(o.name, o.value) for o in found]
        [('represented_features', 2.0), ('represented_features/count', 2.0)]
    """

    name = "represented_features"
    unit = "1"
    cost = Cost.WEIGHTS
    reads_live = True
    _reads = 36.0
    needs = "one weight matrix, or the name of one"
    source = "Elhage et al. 2022, Toy Models of Superposition, §Geometry"
    streams: ClassVar = {"represented_features": FORMATION}

    def measure(self, context: MeasureContext) -> list[Observation]:
        """The squared norm, then the count.

        Raises:
            RefusedError: There is no such matrix.
            MeasurementError: A weight is not finite.
        """
        square = self._vectors(context).abs().square().sum(dim=1)
        count = float((square > REPRESENTED**2).sum())
        return [
            observed(context, self.name, self.unit, float(square.sum())),
            observed(context, f"{self.name}/count", self.unit, count),
        ]
