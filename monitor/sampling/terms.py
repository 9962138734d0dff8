"""What the loss averages over: how many terms a probe batch has, and whether a cut changes that.

A loss that gives its terms tells their number. One that gives their mean does not, and then batches
must be weighted by a number that is read from the batch: graphs (`num_graphs`), labels other than
−100, positions of an attention mask, samples. Which of them is right is not guessed but tried: one
batch is cut in two, and the mean over the whole must be that of the parts, in value and in
gradient,

    L(whole) = (c₁ L(part 1) + c₂ L(part 2)) / (c₁ + c₂).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from phasewatch.monitor.isolation.batches import graphs_in, leading_size, tensors_in

MAX_CUTS = 4
"""Batches of which a cut is tried."""

IGNORED = -100
"""The label that torch's losses leave out of their mean."""

MASKS = ("attention_mask", "loss_mask", "label_mask")


@dataclass(frozen=True, slots=True)
class Count:
    """A way to count the terms of a batch.

    Attributes:
        how: In words.
        unit: What one term is.
        of: Terms of a batch; None where it cannot be read from it.
    """

    how: str
    unit: str
    of: Callable[[Any], int | None]


def _named(batch: Any, names: Sequence[str]) -> Tensor | None:
    if not isinstance(batch, Mapping):
        batch = getattr(batch, "__dict__", {})
    return next((batch[n] for n in names if isinstance(batch.get(n), Tensor)), None)


def _place_of_labels(batches: Sequence[Any]) -> int | None:
    """Which of a batch's tensors holds labels, where one of them is marked as ignored."""
    for batch in batches:
        for place, tensor in enumerate(tensors_in(batch)):
            is_integer = not tensor.is_floating_point() and not tensor.is_complex()
            if is_integer and tensor.ndim and bool((tensor == IGNORED).any()):
                return place
    return None


def _labels_at(place: int | None, shift: int) -> Callable[[Any], int | None]:
    def of(batch: Any) -> int | None:
        labels = _named(batch, ("labels",))
        tensors = list(tensors_in(batch))
        if labels is None and place is not None and place < len(tensors):
            labels = tensors[place]
        if labels is None or labels.is_floating_point() or labels.ndim <= shift:
            return None
        return int((labels[..., 1:] if shift else labels).ne(IGNORED).sum())

    return of


def _unmasked(shift: int) -> Callable[[Any], int | None]:
    def of(batch: Any) -> int | None:
        mask = _named(batch, MASKS)
        if mask is None or mask.ndim <= shift:
            return None
        return int((mask[..., 1:] if shift else mask).bool().sum())

    return of


GRAPHS = Count("graphs (num_graphs)", "graph", graphs_in)
SAMPLES = Count("samples (first dimension)", "sample", leading_size)
GIVEN = Count("terms that the loss gives", "term", lambda _: None)
GIVEN_COUNT = Count("counts that the loss gives", "term", lambda _: None)


def candidates(batches: Sequence[Any]) -> list[Count]:
    """Ways to count that each of these batches allows, the likeliest first."""
    if all(graphs_in(batch) is not None for batch in batches):
        return [GRAPHS]
    place = _place_of_labels(batches)
    masks = [_named(batch, MASKS) for batch in batches]
    is_ragged = any(mask is not None and not bool(mask.bool().all()) for mask in masks)
    kept = f"labels other than {IGNORED}"
    ways = [
        Count(kept, "token", _labels_at(place, 0)),
        Count(f"{kept}, the first left out", "token", _labels_at(place, 1)),
        Count("positions of the mask", "token", _unmasked(0)),
        Count("positions of the mask, the first left out", "token", _unmasked(1)),
    ]
    tokens = [way for way in ways if all(way.of(batch) is not None for batch in batches)]
    return [*tokens, SAMPLES] if place is not None or is_ragged else [SAMPLES, *tokens]


def counted(batches: Sequence[Any]) -> tuple[int, Count]:
    """Terms of a mean loss over all these batches, as far as they can be read; and how."""
    count = candidates(batches)[0]
    return sum(count.of(batch) or 0 for batch in batches), count


def halves(batch: Any) -> tuple[Any, Any] | None:
    """A batch cut in two along its samples; None where it cannot be cut."""
    parts = pieces_of(batch, 2)
    return (parts[0], parts[1]) if parts else None


def pieces_of(batch: Any, number: int) -> list[Any]:
    """A batch cut along its samples into pieces of about one size; none where it cannot be cut.

    Args:
        batch: The batch.
        number: How many pieces.
    """
    size = leading_size(batch)
    if size < number or graphs_in(batch) is not None:
        return []
    ends = [size * piece // number for piece in range(number + 1)]

    def part(where: slice) -> Any:
        def cut(leaf: Any) -> Any:
            has_samples = isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == size
            return leaf[where] if has_samples else leaf

        return tree_map(cut, batch)

    parts = [part(slice(first, last)) for first, last in pairwise(ends)]
    fits = [leading_size(part) for part in parts] == [b - a for a, b in pairwise(ends)]
    return parts if fits else []


def joined(first: Any, second: Any) -> Any:
    """Two batches as one, along their samples; None where they cannot be joined."""
    leaves, others = tree_flatten(first), tree_flatten(second)
    sizes = leading_size(first), leading_size(second)
    if leaves[1] != others[1] or graphs_in(first) is not None:
        return None
    made = []
    for one, other in zip(leaves[0], others[0], strict=True):
        tensors = isinstance(one, Tensor) and isinstance(other, Tensor) and one.ndim > 0
        if not tensors or (len(one), len(other)) != sizes:
            made.append(one)
        elif one.shape[1:] == other.shape[1:] and one.dtype == other.dtype:
            made.append(torch.cat([one, other]))
        else:
            return None
    whole = tree_unflatten(made, leaves[1])
    return whole if leading_size(whole) == sum(sizes) else None


def cuts(batches: Sequence[Any]) -> Iterator[tuple[Any, Any, Any]]:
    """A batch and its two parts, the most telling first: batches of unlike counts, joined."""
    way = candidates(batches)[0]
    if len(batches) > 1:
        few, *_, many = sorted(batches, key=lambda batch: way.of(batch) or 0)
        whole = joined(few, many)
        if whole is not None:
            yield whole, few, many
    for batch in batches[:MAX_CUTS]:
        parts = halves(batch)
        if parts is not None:
            yield batch, *parts


@dataclass(frozen=True, slots=True)
class Cut:
    """Loss and gradient of a batch and of its two parts.

    Attributes:
        parts: The parts.
        losses: Of the whole and of each part.
        grads: Their gradients, shape (3, d).
        total: Adds up over the processes among which coordinates are spread.
    """

    parts: tuple[Any, Any]
    losses: tuple[float, float, float]
    grads: Tensor
    total: Callable[[Tensor], Tensor]

    def agrees(self, weights: tuple[float, float]) -> bool:
        """Whether the whole is this combination of the parts, up to rounding."""

        def norm(vector: Tensor) -> float:
            return math.sqrt(float(self.total(vector @ vector)))

        whole, *halves = self.losses
        size = abs(whole) + sum(abs(w * part) for w, part in zip(weights, halves, strict=True))
        made = sum(w * part for w, part in zip(weights, halves, strict=True))
        combined = self.grads[1] * weights[0] + self.grads[2] * weights[1]
        reach = norm(self.grads[1]) * weights[0] + norm(self.grads[2]) * weights[1]
        gap = norm(self.grads[0] - combined)
        return abs(whole - made) <= ROUNDING * size and gap <= ROUNDING * max(reach, 1e-30)

    def agrees_with(self, count: Count) -> bool:
        """Whether the whole is the mean of the parts if terms are counted so."""
        counts = [count.of(part) or 0 for part in self.parts]
        total = sum(counts)
        return total > 0 and self.agrees((counts[0] / total, counts[1] / total))

    @property
    def is_sum(self) -> bool:
        """Whether the loss is a sum over its samples."""
        return self.agrees((1.0, 1.0))


ROUNDING = 1e-3
"""Relative difference between whole and parts that rounding may make."""
