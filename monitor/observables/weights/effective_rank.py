"""How many directions of a matrix carry weight: its effective rank."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.errors import ConfigError, RefusedError
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.meaning import SUPPORTING
from phasewatch.monitor.core.work import Cost, Work
from phasewatch.monitor.observables.weights.end_to_end import EndToEnd, spectrum
from phasewatch.monitor.observables.weights.matrices import matrix, shapes
from phasewatch.monitor.observables.weights.norms import observed
from phasewatch.monitor.observables.work import (
    added,
    decomposition,
    reads,
)

MAX_MATRICES = 16
"""Effective ranks are reported for so many matrices, the largest; one of n×n costs n³."""


def effective_rank(singular_values: Tensor) -> float:
    """exp(−Σ p_i ln p_i) with p_i = σ_i/Σσ: 1 for rank one, r for r equal values; 0 for no map."""
    total = singular_values.sum()
    if not total > 0:
        return 0.0
    p = singular_values / total
    return math.exp(float(torch.special.entr(p).sum()))


class EffectiveRank:
    """Effective rank exp(−Σ p_i ln p_i), p_i = σ_i/Σσ, of weight matrices and of the whole map.

    1 for a map of rank one, r for r equal singular values, 0 for none; dimensionless. Each matrix
    is "effective_rank/<matrix>", and their mean is "effective_rank". The weight of a convolution
    counts as a matrix of shape (outputs, the rest). Of more than 16 matrices the largest 16 are
    measured. Where there is an end-to-end map, its effective rank is "effective_rank_end_to_end"
    (see `SingularValues` for how it is found).

    Args:
        layers: Modules or parameters of shape (outputs, inputs), the first to be applied first.
        input_size: Numbers in an input of a model that is linear.
        weights: Matrices, by the name of their parameter or module; None takes the trainable ones.

    Raises:
        ConfigError: `layers` and `input_size` are both given, or an argument makes no sense.

    Example:
        >>> import torch
        >>> from phasewatch.monitor.observables.once import measure_once
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> _ = model.weight.data.copy_(torch.eye(2))
        >>> found = measure_once(EffectiveRank(), model, [torch.ones(1, 2)])
        >>> found[0].name, round(found[0].value, 3)
        ('effective_rank', 2.0)
    """

    name = "effective_rank"
    unit = "1"
    cost = Cost.FORWARD
    needs = "a trainable weight matrix"
    source = "Roy & Vetterli 2007, The effective rank, eq. (3)"
    streams: ClassVar = {"effective_rank": SUPPORTING, "effective_rank_end_to_end": SUPPORTING}

    def __init__(
        self,
        layers: Sequence[str] | None = None,
        input_size: int | None = None,
        weights: Sequence[str] | None = None,
    ) -> None:
        if isinstance(weights, str):
            raise ConfigError(f"{self.name}: weights is {weights!r}; it must be a list of names")
        self._map = EndToEnd(layers, input_size, self.name)
        self._named = layers is not None or input_size is not None
        self._weights = weights
        self.cost = self._map.cost

    @property
    def reads_live(self) -> bool:
        """Whether it may be measured on the weights as they are."""
        return self._map.reads_live

    def check(self, context: MeasureContext) -> None:
        """Refuse before the first step what cannot be measured.

        Raises:
            RefusedError: Names what was looked for, and what the model has.
        """
        if self._has_map(context):
            self._map.check(context)
        if not self._matrices(context):
            raise RefusedError(
                f"{self.name}: looked for trainable weights of two or more dimensions; the model "
                f"has {shapes(context.params)}"
            )

    def _has_map(self, context: MeasureContext) -> bool:
        return self._named or self._map.found(context) is not None

    def _matrices(self, context: MeasureContext) -> Mapping[str, Tensor]:
        if self._weights is not None:
            return {name: matrix(context, name, self.name)[1] for name in self._weights}
        found = {
            name: p
            for name, p in context.params.items()
            if p.ndim > 1 and min(len(p), p[:1].numel()) > 1
        }
        largest = sorted(found, key=lambda name: -found[name].numel())[:MAX_MATRICES]
        return {name: found[name] for name in largest}

    def work(self, context: MeasureContext) -> Work:
        """Singular values of each matrix, and what the end-to-end map takes."""
        own = reads(context, sum(map(decomposition, self._matrices(context).values())))
        return added(own, self._map.work(context)) if self._has_map(context) else own

    def measure(self, context: MeasureContext) -> list[Observation]:
        """The mean first, then the end-to-end map's, then each matrix's.

        Raises:
            RefusedError: There is no such map or matrix.
            MeasurementError: A weight is not finite.
        """
        ranks = {
            name: effective_rank(spectrum(weight, name))
            for name, weight in self._matrices(context).items()
        }
        result = [observed(context, self.name, self.unit, sum(ranks.values()) / len(ranks))]
        if self._has_map(context):
            whole = effective_rank(self._map.values(context))
            result.append(observed(context, f"{self.name}_end_to_end", self.unit, whole))
        return [
            *result,
            *(observed(context, f"{self.name}/{n}", self.unit, rank) for n, rank in ranks.items()),
        ]
