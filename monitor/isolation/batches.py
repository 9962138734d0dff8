"""Batches of any nesting: how many samples, how many bytes, a copy, a comparison."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from phasewatch.monitor.core.errors import ConfigError


def count_samples(batch: Any) -> int:
    """Samples in a batch: its graphs, or the first dimension of the first tensor found in it.

    Raises:
        ConfigError: There is no tensor with a dimension.
    """
    size = _size_of(batch)
    if size is None:
        raise ConfigError(
            f"probe: no tensor with a batch dimension in a {type(batch).__name__}; "
            "say how many terms the loss averages over with n_samples="
        )
    return size


def leading_size(batch: Any) -> int:
    """The same as `count_samples`, and 1 where there is no tensor with a dimension."""
    size = _size_of(batch)
    return 1 if size is None else size


def _size_of(batch: Any) -> int | None:
    graphs = graphs_in(batch)
    if graphs is not None:
        return graphs
    leaves = (leaf for leaf in _leaves(batch) if isinstance(leaf, (Tensor, np.ndarray)))
    return next((int(leaf.shape[0]) for leaf in leaves if leaf.ndim > 0), None)


def graphs_in(batch: Any) -> int | None:
    """Graphs in a batch of graphs, whose tensors lead with nodes or edges; None if it is none."""
    count = getattr(batch, "num_graphs", None)
    return count if isinstance(count, int) and not isinstance(count, bool) else None


def tensors_in(batch: Any) -> Iterator[Tensor]:
    """Every tensor in a nest of mappings, sequences and plain objects, in a fixed order."""
    return (leaf for leaf in _leaves(batch) if isinstance(leaf, Tensor))


def mapped(data: Any, change: Callable[[Any], Any]) -> Any:
    """The same nest of lists, tuples and mappings, with `change` of each thing in it.

    Example:
        >>> mapped({"x": [1, 2], "y": (3,)}, lambda leaf: 10 * leaf)
        {'x': [10, 20], 'y': (30,)}
    """
    if isinstance(data, Mapping):
        return {key: mapped(value, change) for key, value in data.items()}
    if isinstance(data, tuple) and hasattr(data, "_fields"):
        return type(data)(*(mapped(item, change) for item in data))
    if isinstance(data, (list, tuple)):
        return type(data)(mapped(item, change) for item in data)
    return change(data)


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
