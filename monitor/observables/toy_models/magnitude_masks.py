"""Lottery tickets: the magnitude mask of a network.

The mask keeps the share s of the weights that is largest in magnitude, over all weight matrices
together: with k = ⌊(1 − s)N⌋, those above the k-th smallest (Frankle and Carbin 2019, arXiv
1803.03635). Of more than `LARGEST` weights every j-th is looked at: the values are then estimates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.errors import ConfigError, RefusedError
from phasewatch.monitor.observables.evaluation import device_of, finite
from phasewatch.monitor.observables.weights.norms import widened
from phasewatch.monitor.sampling.restrictions import names_of

LARGEST = 2**23
"""Weights that are ranked at most: 1 MB for a mask, some 150 ms on one CPU core."""


KEEP = 0.4
"""Share of the weights that a ticket keeps: that of Minegishi et al."""


MINEGISHI = "Minegishi et al. 2023, arXiv 2310.19470, section 3"


def magnitude_mask(sizes: Tensor, keep: float) -> Tensor:
    """True where a size is above the k-th smallest of them, k = ⌊(1 − keep)N⌋.

    Where several are as large as the k-th smallest, none of them is kept.

    Args:
        sizes: Magnitudes, shape (N,).
        keep: s, the share to keep.
    """
    pruned = math.floor(round((1.0 - keep) * sizes.numel(), 6))  # (1 - 0.9) * 10 is 0.9999…
    if pruned == 0:
        return torch.ones_like(sizes, dtype=torch.bool)
    return sizes > torch.kthvalue(sizes, pruned).values


def check_share(keep: float) -> float:
    """The same number.

    Raises:
        ConfigError: It is no share that leaves something and prunes something.
    """
    if not 0.0 < keep < 1.0:
        raise ConfigError(f"keep is {keep!r}; it must be a share of the weights, in (0, 1)")
    return keep


class MaskedObservable:
    """Checks its arguments, and finds the weights that are ranked."""

    def __init__(self, keep: float, parameters: str | Sequence[str] | None) -> None:
        self._keep = check_share(keep)
        self._parameters = parameters

    def check(self, context: MeasureContext) -> None:
        """Refuse a model without trainable weight matrices.

        Raises:
            RefusedError: It has none, or `parameters` names none of them.
        """
        self._names(context)

    def _num_ranked(self, context: MeasureContext) -> float:
        """Weights that are ranked."""
        total = sum(context.params[name].numel() for name in self._names(context))
        return total / stride_of(total)

    def _names(self, context: MeasureContext) -> list[str]:
        matrices = [name for name, p in context.params.items() if p.dim() >= 2]
        if not matrices:
            raise RefusedError(
                "looked for trainable parameters of two or more dimensions; the model has none, so "
                "there is nothing a ticket could prune"
            )
        return names_of(matrices, self._parameters)

    def _sizes(self, context: MeasureContext) -> tuple[Tensor, int]:
        """Magnitudes of the ranked weights, and which share of all they are: one in so many."""
        tensors = [widened(context.params[name]) for name in self._names(context)]
        every = stride_of(sum(t.numel() for t in tensors))
        position, parts = 0, []
        for tensor in tensors:
            picked = tensor.reshape(-1)[-position % every :: every]
            parts.append(picked.abs().to(device_of(context)))
            position += tensor.numel()
        return finite(torch.cat(parts), "a weight"), every


def stride_of(total: int) -> int:
    """Every how manieth weight is looked at: a prime, so as not to stay in some columns."""
    every = -(-total // LARGEST)
    while any(every % factor == 0 for factor in range(2, math.isqrt(every) + 1)):
        every += 1
    return every


def share_error(value: float, first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Standard error of a Jaccard overlap: that of a share of the union.

    Args:
        value: The overlap.
        first: One mask.
        second: The other, of the same shape.
    """
    union = max(int(np.count_nonzero(first | second)), 1)
    return math.sqrt(value * (1.0 - value) / union)
