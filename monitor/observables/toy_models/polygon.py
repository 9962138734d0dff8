"""Superposition in two hidden dimensions: the regular polygon that features form."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.errors import ConfigError, RefusedError
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.meaning import FORMATION
from phasewatch.monitor.core.work import Cost
from phasewatch.monitor.observables.evaluation import finite, named_weight
from phasewatch.monitor.observables.toy_models.feature_vectors import REPRESENTED, FeatureVectors
from phasewatch.monitor.observables.weights.matrices import wide
from phasewatch.monitor.observables.weights.norms import observed

MIN_CORNERS = 3


RIGID_CORNERS = 5
"""Polygons of fewer corners sit on a kink of the ReLU: half the Hessian's rank is not their λ."""


def polygon_corners(vectors: Tensor, tolerance: float) -> int:
    """Number of corners of the regular polygon that the represented features form; 0 if none.

    Args:
        vectors: Shape (features, 2).
        tolerance: How far each length may be from their mean, and each angle between neighbours
            from 2π/k, as a share of it.
    """
    lengths = vectors.norm(dim=1)
    up = lengths > REPRESENTED
    k = int(up.sum())
    if k < MIN_CORNERS:
        return 0
    angles = torch.atan2(vectors[up, 1], vectors[up, 0]).sort().values
    gaps = torch.diff(torch.cat([angles, angles[:1] + 2 * math.pi])) * (k / (2 * math.pi))
    uneven = torch.cat([gaps, lengths[up] / lengths[up].mean()]).sub(1).abs().max()
    return k if float(uneven) <= tolerance else 0


def polygon_lambda(corners: int, positive: int) -> float | None:
    """Closed-form λ of a k-gon of the toy model with 2 hidden dimensions; None if unknown.

    λ = (3 (k + σ) − 1)/2 for k ≥ 5: each corner, and each of the σ features left over at positive
    bias, has three parameters that the loss depends on; one rotation is free; the loss is flat
    along features that are dead. It is half the rank of the Hessian, and the flat directions are
    exact, so it is λ (Chen et al. 2023, arXiv 2310.06301). It holds for inputs with one feature on
    at a time, uniform on [0, 1], and the squared error as negative log-likelihood.

    Args:
        corners: k.
        positive: σ.
    """
    return (3 * (corners + positive) - 1) / 2 if corners >= RIGID_CORNERS else None


def polygon_name(corners: int, positive: int) -> str:
    """The k-gon as Chen et al. write it: one ⁺ for each left-over feature at positive bias."""
    return f"{corners}{'⁺' * positive}" if corners else "none"


class Polygon(FeatureVectors):
    """The regular polygon that features form in two hidden dimensions: k, or 0 where none.

    The k features with ‖W_i‖ > ½ are its corners. It is recognised where k ≥ 3, each length is
    within `tolerance` of their mean and each angle between neighbours within `tolerance` of 2π/k.

    With a bias for each feature, "polygon/positive" and "polygon/negative" count the features left
    over whose bias is above zero or not: Chen et al. write k⁺ for a k-gon with one left over at
    positive bias, k where all that are left over are dead. "polygon/llc" is the closed-form λ of
    that polygon, to be held beside λ̂; it is missing where none is known: below 5 corners, and
    where a left-over feature at negative bias is not dead, b_i + max_j W_i·W_j > 0.

    Args:
        weight: The matrix, by the name of its parameter or module; None where the model has one.
        bias: The features' biases, by the name of the parameter; None takes the only vector of
            that length, if there is one.
        features: Whether they are the matrix's "rows" or "columns"; None takes the longer side.
        tolerance: See above.

    Raises:
        ConfigError: `features` is something else, or `tolerance` is not between 0 and 1.

    Example:
        >>> import torch
        >>> from phasewatch.monitor.observables.once import measure_once
        >>> model = torch.nn.Linear(3, 2, bias=False)
        >>> angles = 2 * torch.pi * torch.arange(3) / 3
        >>> _ = model.weight.data.copy_(torch.stack([angles.cos(), angles.sin()]))
        >>> found = measure_once(Polygon(bias=None), model)
        >>> found[0].name, found[0].value
        ('polygon', 3.0)
    """

    name = "polygon"
    unit = "corners"
    cost = Cost.WEIGHTS
    reads_live = True
    _reads = 600.0
    needs = "one weight matrix with two hidden dimensions, or the name of one"
    source = "Chen et al. 2023, arXiv 2310.06301, §3"
    streams: ClassVar = {"polygon": FORMATION}

    def __init__(
        self,
        weight: str | None = None,
        bias: str | None = None,
        *,
        features: str | None = None,
        tolerance: float = 0.1,
    ) -> None:
        super().__init__(weight, features=features)
        if not 0 < tolerance < 1:
            raise ConfigError(f"{self.name}: tolerance is {tolerance}; it must be in (0, 1)")
        self._bias = bias
        self._tolerance = tolerance

    def check(self, context: MeasureContext) -> None:
        """Refuse before the first step what cannot be measured.

        Raises:
            RefusedError: Names what was looked for, and what the model has.
        """
        self._biases(context, len(self._find(context)))

    def _find(self, context: MeasureContext) -> Tensor:
        vectors = super()._find(context)
        if vectors.shape[1] != 2 or vectors.is_complex():
            raise RefusedError(
                f"{self.name}: looked for features in two real hidden dimensions; "
                f"{'they are complex' if vectors.is_complex() else f'{vectors.shape[1]} are there'}"
            )
        return vectors

    def _biases(self, context: MeasureContext, num: int) -> Tensor | None:
        if self._bias is None:
            found = [p for p in context.params.values() if p.shape == (num,)]
            return wide(found[0]) if len(found) == 1 else None
        bias = named_weight(context, self._bias, self.name)
        if bias.shape != (num,):
            raise RefusedError(
                f"{self.name}: {self._bias!r} has the shape {tuple(bias.shape)}; needed is one "
                f"bias for each of {num} features"
            )
        return wide(bias)

    def measure(self, context: MeasureContext) -> list[Observation]:
        """The number of corners, then what is known of the features left over.

        Raises:
            RefusedError: There is no such matrix.
            MeasurementError: A weight or bias is not finite.
        """
        vectors = self._vectors(context)
        corners = polygon_corners(vectors, self._tolerance)
        result = [observed(context, self.name, self.unit, float(corners))]
        bias = self._biases(context, len(vectors))
        if bias is None:
            return result
        finite(bias, f"the bias of {self.name}")
        rest = vectors.norm(dim=1) <= REPRESENTED
        positive, negative = int((rest & (bias > 0)).sum()), int((rest & (bias <= 0)).sum())
        result += [
            observed(context, f"{self.name}/positive", "features", float(positive)),
            observed(context, f"{self.name}/negative", "features", float(negative)),
        ]
        value = polygon_lambda(corners, positive)
        if value is not None and _dead(vectors, bias, rest & (bias <= 0)):
            result.append(observed(context, f"{self.name}/llc", "1", value))
        return result


def _dead(vectors: Tensor, bias: Tensor, which: Tensor) -> bool:
    """Whether these left-over features stay off, whatever single feature in [0, 1] is on."""
    if not which.any():
        return True
    lengths = vectors.norm(dim=1)
    up = lengths > REPRESENTED
    by_corner = (vectors[which] @ vectors[up].T).amax(dim=1)
    by_another = lengths[which] * lengths[~up].max()  # at most
    return bool((torch.maximum(by_corner, by_another) + bias[which] <= 0).all())
