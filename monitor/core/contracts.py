"""What an observable and a sink must have: the contracts of what other packages add."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.transitions import Transition


@runtime_checkable
class Observable(Protocol):
    """Something that is measured on a copy of the model.

    Optional members: `cost` (a `Cost`), `work(context)` (the `Work` of one measurement),
    `measure_in_steps(context)` (the same as `Steps`, which may be spread over the training),
    `source` (paper and equation), `needs` (what it looks for in model, probe and arguments),
    `better` ("up" or "down": which way is better, if the name does not say it),
    `locate(onset, end)` (the parameter groups that moved most between two steps, each with a
    number, largest first),
    `check(context)`, which raises `RefusedError` before the first step when the model lacks what
    is needed, and `state_dict()` / `load_state_dict(state)`.
    """

    name: str
    unit: str

    def measure(self, context: MeasureContext) -> Observation | list[Observation]:
        """Measure at `context.step`."""
        ...


class Sink(Protocol):
    """A place results go to. Each method may raise: the watch catches it, counts it, goes on."""

    def emit(self, observation: Observation) -> None:
        """Take one observation."""

    def notify(self, transition: Transition) -> None:
        """Take one transition, each time its status changes."""

    def flush(self) -> None:
        """Send out what is held back."""

    def close(self) -> None:
        """Release everything. Called once, also after a failure."""
