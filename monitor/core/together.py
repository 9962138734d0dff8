"""What the processes that hold one model among them do together; a process alone does it by itself.

Each of them runs the same measurement on its part of the weights and its part of the probe. What is
a sum over weights or over data is summed over the processes; what is decided is decided by numbers
that all of them have.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from phasewatch.monitor.core.work import Steps, T

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Together(Protocol):
    """The processes that measure one model together.

    Attributes:
        is_spread: Whether the weights are parts of a model that no process holds.
        size: How many they are.
        rank: Which of them this one is.
        kept_bytes: What the last evaluation kept for its backward pass beside gathered weights.
        shapes: Of the whole parameters, by name, where they are spread.
    """

    is_spread: bool
    size: int
    rank: int
    kept_bytes: int
    shapes: Mapping[str, torch.Size]

    def total(self, values: Tensor) -> Tensor:
        """The sum over the processes of a tensor of one shape, in its dtype."""

    def each(self, value: float) -> list[float]:
        """The value of each process, by rank."""

    def clock(self) -> float:
        """Monotonic seconds, the same in all of them."""

    def noise(self, generator: torch.Generator) -> torch.Generator:
        """A generator for what this process alone draws.

        Args:
            generator: The one whose numbers are the same in all of them.
        """

    def part(self, name: str, values: Tensor) -> Tensor:
        """The part that lies here, flat, of a tensor of the shape of a parameter."""

    def evaluated(self, kind: Hashable, run: Callable[[], T]) -> T:
        """Run the loss with the whole weights in place, and fail where it failed in any of them.

        Args:
            kind: Evaluations of one kind ask for the same weights in the same order.
            run: Calls the loss, and takes its gradient.
        """

    def failing(self) -> AbstractContextManager[None]:
        """Tell the others of an exception that leaves this."""

    def joined(self, steps: Steps[T]) -> Steps[T]:
        """A measurement that all of them make; an exception in one ends it in all."""


class Alone:
    """A process that holds the whole model."""

    is_spread = False
    size, rank, kept_bytes = 1, 0, 0
    shapes: Mapping[str, torch.Size] = MappingProxyType({})

    def total(self, values: Tensor) -> Tensor:
        """The values."""
        return values

    def each(self, value: float) -> list[float]:
        """The value."""
        return [value]

    def clock(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def noise(self, generator: torch.Generator) -> torch.Generator:
        """The generator there is."""
        return generator

    def part(self, name: str, values: Tensor) -> Tensor:  # noqa: ARG002
        """All of it."""
        return values

    def evaluated(self, kind: Hashable, run: Callable[[], T]) -> T:  # noqa: ARG002
        """Run the loss."""
        return run()

    def failing(self) -> AbstractContextManager[None]:
        """Nobody is to be told."""
        return nullcontext()

    def joined(self, steps: Steps[T]) -> Steps[T]:
        """The measurement."""
        return steps


ALONE = Alone()


def in_any(together: Together, found: bool) -> bool:
    """Whether something is so in any of the processes."""
    return max(together.each(float(found))) > 0.0


def in_all(together: Together, found: bool) -> bool:
    """Whether something is so in all of the processes."""
    return min(together.each(float(found))) > 0.0
