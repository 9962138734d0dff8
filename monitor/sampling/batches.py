"""Looking into probe batches, whatever nest of containers they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from phasewatch.monitor.isolation.batches import tensors_in


@dataclass(frozen=True)
class Draw:
    """A probe batch, and the seed of what the loss draws on it."""

    batch: Any
    seed: int


def in_double(batch: Any) -> Any:
    """A batch with its floating-point tensors in fp64. Plain objects stay as they are."""

    def wide(leaf: Any) -> Any:
        is_float = isinstance(leaf, Tensor) and leaf.is_floating_point()
        return leaf.double() if is_float else leaf

    return tree_map(wide, batch)


def same(left: Any, right: Any) -> bool:
    """Whether two nests hold equal tensors (NaN equals NaN)."""
    lefts, rights = list(tensors_in(left)), list(tensors_in(right))
    return len(lefts) == len(rights) and all(map(_equal, lefts, rights))


def _equal(left: Tensor, right: Tensor) -> bool:
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    if left.is_floating_point() or left.is_complex():
        return torch.allclose(left, right, rtol=0.0, atol=0.0, equal_nan=True)
    return torch.equal(left, right)


def describe(batch: Any) -> str:
    """A batch in a few words: its type and the shapes of its tensors."""
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors_in(batch)) or "no tensors"
    return f"{type(batch).__name__}: {shapes}"
