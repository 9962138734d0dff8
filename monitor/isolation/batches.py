"""Batches of any nesting: how many samples, how many bytes, a copy, a comparison."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from phasewatch.monitor.core.errors import ConfigError


def count_samples(batch: Any) -> int:
    """Samples in a batch: its graphs, or the first dimension of the first tensor found in it.

    Raises:
        ConfigError: There is no tensor with a dimension.
    """
    if isinstance(graphs := getattr(batch, "num_graphs", None), int):
        return graphs
    for leaf in _leaves(batch):
        if isinstance(leaf, (torch.Tensor, np.ndarray)) and leaf.ndim > 0:
            return int(leaf.shape[0])
    raise ConfigError(
        f"probe: no tensor with a batch dimension in a {type(batch).__name__}; "
        "say how many terms the loss averages over with n_samples="
    )


def num_bytes(batch: Any) -> int:
    """Bytes of all tensors and arrays in a batch."""
    return sum(
        leaf.nbytes for leaf in _leaves(batch) if isinstance(leaf, (torch.Tensor, np.ndarray))
    )


def clone_batch(batch: Any) -> Any:
    """A copy of a nested batch that shares nothing with it; tensors are detached."""
    if isinstance(batch, torch.Tensor):
        return batch.detach().clone()
    if isinstance(batch, np.ndarray):
        return batch.copy()
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(clone_batch(item) for item in batch))
    if type(batch) in (list, tuple):
        return type(batch)(clone_batch(item) for item in batch)
    if type(batch) is dict:
        return {key: clone_batch(item) for key, item in batch.items()}
    if isinstance(batch, (str, bytes, int, float, bool, type(None))):
        return batch
    return copy.deepcopy(batch)


def same_batch(a: Any, b: Any) -> bool:
    """Whether two batches hold the same values, bit for bit, in the same structure."""
    left, right = list(_leaves(a)), list(_leaves(b))
    return len(left) == len(right) and all(
        _same_leaf(x, y) for x, y in zip(left, right, strict=True)
    )


def _same_leaf(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.tobytes() == b.tobytes()
    if isinstance(a, (str, bytes, int, float, bool, type(None))):
        return bool(a == b)
    return True


def _leaves(batch: Any) -> Iterator[Any]:
    if isinstance(batch, Mapping):
        for item in batch.values():
            yield from _leaves(item)
    elif isinstance(batch, (list, tuple)):
        for item in batch:
            yield from _leaves(item)
    elif not isinstance(batch, (torch.Tensor, np.ndarray)) and hasattr(batch, "__dict__"):
        for item in vars(batch).values():
            yield from _leaves(item)
    else:
        yield batch
