"""Looking into probe batches, whatever nest of containers they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


@dataclass(frozen=True)
class Draw:
    """A probe batch, and the seed of what the loss draws on it."""

    batch: Any
    seed: int


def tensors_in(batch: Any) -> Iterator[Tensor]:
    """Every tensor in a nest of mappings, sequences and plain objects, in a fixed order."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from tensors_in(value)
    elif isinstance(batch, (list, tuple)):
        for value in batch:
            yield from tensors_in(value)
    elif hasattr(batch, "__dict__"):
        yield from tensors_in(vars(batch))


def graphs_in(batch: Any) -> int | None:
    """Graphs in a batch of graphs, whose tensors lead with nodes or edges; None if it is none."""
    count = getattr(batch, "num_graphs", None)
    return count if isinstance(count, int) and not isinstance(count, bool) else None


def leading_size(batch: Any) -> int:
    """Samples in a batch: its graphs, or the leading dimension of its first tensor that has one."""
    graphs = graphs_in(batch)
    if graphs is not None:
        return graphs
    return next((t.shape[0] for t in tensors_in(batch) if t.ndim > 0), 1)


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
