"""Superposition: features that share hidden dimensions (Elhage et al. 2022, Toy Models).

A matrix W holds one vector W_i of hidden dimensions for each feature. In a toy model
x̂ = ReLU(Wᵀ W x + b) with W of shape (hidden, features) they are the columns.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.errors import ConfigError, RefusedError
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.meaning import FORMATION, SUPPORTING
from phasewatch.monitor.core.work import Cost, Work
from phasewatch.monitor.observables.evaluation import finite, named_weight
from phasewatch.monitor.observables.weights.matrices import matrix, wide
from phasewatch.monitor.observables.weights.norms import MAX_GROUPS, OTHER, observed
from phasewatch.monitor.observables.work import reads

REPRESENTED = 0.5
"""A feature is represented where ‖W_i‖ is above this."""

MIN_CORNERS = 3
RIGID_CORNERS = 5
"""Polygons of fewer corners sit on a kink of the ReLU: half the Hessian's rank is not their λ."""


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


class _Features:
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


class FeatureDimensionality(_Features):
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


class RepresentedFeatures(_Features):
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


class Polygon(_Features):
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
