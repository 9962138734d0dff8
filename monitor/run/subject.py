"""What is measured: a live model with its data and loss, and what the loop told beside it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from phasewatch.monitor.core.context import MeasureContext, StepRecord


@runtime_checkable
class Subject(Protocol):
    """A live model, its data and its loss: what a training loop has measured."""

    def guarded(self, step: int, turn: int) -> AbstractContextManager[None]:
        """Shield training from what is measured inside.

        Args:
            step: Optimizer steps completed.
            turn: Which turn of the run it is; seeds what is random inside.
        """

    def context(self, step: int, epoch: int | None) -> MeasureContext:
        """Copy the model as it is now. Called inside `guarded`."""

    def live_context(self, step: int, epoch: int | None) -> MeasureContext:
        """The weights as they are, for built-in observables that only read them."""


class Given:
    """A subject of which the context is there already.

    Args:
        context: The context.
    """

    def __init__(self, context: MeasureContext) -> None:
        self._context = context

    def guarded(self, step: int, turn: int) -> AbstractContextManager[None]:  # noqa: ARG002
        """Nothing: whoever made the context has done it."""
        return nullcontext()

    def context(self, step: int, epoch: int | None) -> MeasureContext:  # noqa: ARG002
        """The given one."""
        return self._context

    live_context = context


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the training loop told beside the model.

    Attributes:
        record: What was seen just before the optimizer step.
        learning_rate: Of the coming step.
    """

    record: StepRecord | None = None
    learning_rate: float | None = None

    def added_to(self, context: MeasureContext) -> MeasureContext:
        """The context with what it lacks."""
        return replace(
            context,
            record=context.record or self.record,
            learning_rate=(
                self.learning_rate if context.learning_rate is None else context.learning_rate
            ),
        )
