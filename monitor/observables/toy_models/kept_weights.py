"""Lottery tickets: what the kept weights weigh."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.meaning import SUPPORTING
from phasewatch.monitor.core.work import Cost, Work
from phasewatch.monitor.observables.toy_models.magnitude_masks import (
    KEEP,
    MINEGISHI,
    MaskedObservable,
    magnitude_mask,
)
from phasewatch.monitor.observables.weights.norms import observed
from phasewatch.monitor.observables.work import SELECTED, reads


class KeptWeights(MaskedObservable):
    """L1 and L2 norms of the weights that the magnitude mask keeps, and of those it prunes.

    With m_i = 1 where weight i is kept, "kept_weights" is (Σ m_i w_i²)^½; "/l1_kept" Σ m_i |w_i|;
    "/l1_pruned" and "/l2_pruned" the same of 1 − m; "/l1" and "/l2" of all ranked weights; in units
    of a weight. "/sparsity" is the share pruned: 1 − s, or more where sizes are equal at the edge.
    Which weights are ranked, and what is done with many, is as for `MaskOverlap`; sums over a
    sample are scaled to all weights and carry the standard error of a sum over a random sample.

    Args:
        keep: s, the share of the weights that the mask keeps.
        parameters: Names or shell patterns of the matrices that are ranked; None is all.

    Raises:
        ConfigError: `keep` is no share.

    Example:
        >>> import torch
        >>> from phasewatch.monitor.observables.once import measure_once
        >>> model = torch.nn.Linear(4, 1, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[4.0, 3.0, 2.0, 1.0]]))
        >>> found = measure_once(KeptWeights(keep=0.5), model)
        >>> found[0].name, found[0].value
        ('kept_weights', 5.0)
    """

    name = "kept_weights"
    unit = "weight"
    cost = Cost.WEIGHTS
    reads_live = True
    needs = "trainable weight matrices"
    source = MINEGISHI
    streams: ClassVar = {"kept_weights": SUPPORTING}

    def __init__(self, keep: float = KEEP, parameters: str | Sequence[str] | None = None) -> None:
        super().__init__(keep, parameters)

    def work(self, context: MeasureContext) -> Work:
        """The ranking, and six norms of what is kept and pruned."""
        return reads(context, (SELECTED + 24.0) * self._num_ranked(context))

    def measure(self, context: MeasureContext) -> list[Observation]:
        """Norms at w*, the L2 norm of what is kept first.

        Raises:
            MeasurementError: A weight is not finite.
        """
        sizes, every = self._sizes(context)
        kept = magnitude_mask(sizes, self._keep)
        sizes = sizes.to(torch.promote_types(sizes.dtype, torch.float32))
        parts = {"kept": sizes * kept, "pruned": sizes * ~kept, "": sizes}
        result = []
        for part, values in parts.items():
            for power in (2, 1):
                norm, error = _norm(values, power, every)
                label = "_".join(filter(None, (f"/l{power}", part)))
                name = self.name + ("" if label == "/l2_kept" else label)
                result.append(observed(context, name, self.unit, norm, error))
        pruned = 1.0 - float(kept.double().mean())
        error = math.sqrt(pruned * (1.0 - pruned) / kept.numel()) if every > 1 else None
        result.append(observed(context, f"{self.name}/sparsity", "1", pruned, error))
        return result


def _norm(values: Tensor, power: int, every: int) -> tuple[float, float | None]:
    """L1 or L2 norm of all weights, from one in `every`; its standard error, if that is not all."""
    powers = values**power
    total = every * float(powers.sum())
    norm = total ** (1.0 / power)
    if every == 1:
        return norm, None
    error = every * math.sqrt(values.numel()) * float(powers.std())
    return norm, error / (power * norm ** (power - 1)) if norm else error
