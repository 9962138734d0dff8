"""Where the parts of sharded weights lie, and which of them are put together at once."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Place:
    """Where the parts of one parameter lie.

    Attributes:
        shape: Of the whole.
        dim: Along which it is cut into shards.
        shards: Which shard each process holds.
        copies: Which of those that hold the same shard each process is.
    """

    shape: torch.Size
    dim: int
    shards: tuple[int, ...]
    copies: tuple[int, ...]

    @property
    def num_shards(self) -> int:
        """Shards of the whole."""
        return max(self.shards) + 1

    @property
    def num_copies(self) -> int:
        """Processes that hold the same shard."""
        return max(self.copies) + 1

    def rows(self, shard: int) -> tuple[int, int]:
        """First and number of a shard's rows along `dim`: as `torch.chunk` cuts."""
        if not self.shape:
            return 0, 1
        size = self.shape[self.dim]
        chunk = math.ceil(size / self.num_shards)
        first = min(size, shard * chunk)
        return first, min(size, first + chunk) - first

    def shape_of(self, shard: int) -> torch.Size:
        """Shape of a shard."""
        shape = list(self.shape)
        if shape:
            shape[self.dim] = self.rows(shard)[1]
        return torch.Size(shape)

    def share(self, rank: int) -> slice:
        """The part of a process, within its shard as a flat vector."""
        size, copy = self.shape_of(self.shards[rank]).numel(), self.copies[rank]
        return slice(size * copy // self.num_copies, size * (copy + 1) // self.num_copies)

    def length(self, rank: int) -> int:
        """Numbers in the part of a process."""
        share = self.share(rank)
        return int(share.stop - share.start)

    def cut(self, whole: Tensor, rank: int) -> Tensor:
        """The part of a process, flat."""
        first, number = self.rows(self.shards[rank])
        shard = whole.narrow(self.dim, first, number) if self.shape else whole
        return shard.reshape(-1)[self.share(rank)]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The whole, of the parts of all processes."""
        shards = []
        for shard in range(self.num_shards):
            ranks = [rank for rank, here in enumerate(self.shards) if here == shard]
            ordered = sorted(ranks, key=lambda rank: self.copies[rank])
            shards.append(torch.cat([parts[rank] for rank in ordered]).view(self.shape_of(shard)))
        return shards[0] if len(shards) == 1 else torch.cat(shards, dim=self.dim)


@dataclass(slots=True)
class Unit:
    """Parameters that are gathered at once.

    Attributes:
        index: Which unit it is.
        names: Of its parameters, in the model.
        places: Where their parts lie.
        dtypes: In which dtype each is computed with.
        spots: Where each is held in the copy; tied ones at several.
        stays: Gathered until the evaluation ends: what lies outside of all other units.
        above: Units that this one lies in.
    """

    index: int
    names: list[str] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    dtypes: list[torch.dtype] = field(default_factory=list)
    spots: list[list[tuple[nn.Module, str]]] = field(default_factory=list)
    stays: bool = False
    above: set[int] = field(default_factory=set)

    def lengths(self, rank: int) -> list[int]:
        """Numbers in the parts of a process."""
        return [place.length(rank) for place in self.places]

    @property
    def wire(self) -> torch.dtype:
        """The dtype in which parts travel."""
        return functools.reduce(torch.promote_types, self.dtypes)

    @property
    def adding(self) -> torch.dtype:
        """The dtype in which gradients are added up."""
        return torch.promote_types(self.wire, torch.float32)
