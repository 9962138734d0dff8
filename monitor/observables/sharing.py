"""What makes measurements independent of each other: their own random numbers, their own time."""

from __future__ import annotations

import time
from types import TracebackType

import torch

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.seeds import seed_from


class Stopwatch:
    """Time that a measurement takes itself: it is entered around each evaluation.

    A measurement in steps is not charged with what training does in between.

    Attributes:
        seconds: All together.
        slowest: The longest one.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.slowest = 0.0
        self._begin = 0.0

    def __enter__(self) -> None:
        self._begin = time.perf_counter()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        spent = time.perf_counter() - self._begin
        self.seconds += spent
        self.slowest = max(self.slowest, spent)


def random_of(context: MeasureContext, what: str) -> torch.Generator:
    """A generator of its own for one purpose, on the model's device.

    Whoever asks draws the same numbers at one step, and nobody moves another's generator: what is
    drawn for several observables depends on none of them, and a measurement in steps is not
    disturbed by those in between.

    Args:
        context: The measurement's context; its step and the seed of what is shared are used.
        what: The purpose.
    """
    seed = seed_from(context.shared.seed, context.step, what)
    return torch.Generator(device=context.generator.device).manual_seed(seed)
