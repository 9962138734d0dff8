"""How far the weights have come since the last measurement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.meaning import SUPPORTING
from phasewatch.monitor.core.work import Cost, Work
from phasewatch.monitor.observables.weights.norms import observed, refuse_untrained
from phasewatch.monitor.observables.weights.positions import (
    Position,
    distances,
    part,
)


class DistanceMoved:
    """Distance of the weights from those of the last measurement, ‖w(t) − w(t − Δ)‖.

    In units of a weight, in total and for each parameter group. It grows with Δ: give it an
    `every_n_steps` of its own where values are to be compared. Copies of up to 2¹⁸ weights are
    kept, sketches of more, with their standard error.

    Example:
        >>> import torch
        >>> from phasewatch.monitor.observables.once import measure_once
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.constant_(model.weight, 3.0)
        >>> distance = DistanceMoved()
        >>> _ = measure_once(distance, model, step=1)
        >>> _ = torch.nn.init.constant_(model.weight, 4.0)
        >>> found = measure_once(distance, model, step=2)
        >>> found[0].name, round(found[0].value, 3)
        ('distance_moved', 1.414)
    """

    name = "distance_moved"
    unit = "weight"
    cost = Cost.WEIGHTS
    reads_live = True
    needs = "trainable parameters"
    source = "L2 norm; of a sketch: Charikar et al. 2002"
    compares_steps = True
    streams: ClassVar = {"distance_moved": SUPPORTING}

    def __init__(self) -> None:
        self._previous: Position | None = None

    def check(self, context: MeasureContext) -> None:
        """Take the weights before the first step, unless a resumed run brought its own.

        Raises:
            RefusedError: Nothing is trained.
        """
        refuse_untrained(context, self.name)
        self._previous = self._previous or Position.of(context)

    def work(self, context: MeasureContext) -> Work:
        """Where the weights are, and how far that is."""
        return Position.work(context)

    def measure(self, context: MeasureContext) -> list[Observation]:
        """Distances, the total first; none before a second look at the weights.

        Raises:
            MeasurementError: A weight is not finite.
        """
        position, previous = Position.of(context), self._previous
        self._previous = position
        if previous is None or not position.comparable(previous) or previous.step >= position.step:
            return []
        return [
            observed(context, part(self.name, group), self.unit, moved, error)
            for group, (moved, error) in distances(position.minus(previous), position).items()
        ]

    def state_dict(self) -> dict[str, Any]:
        """Where the weights were."""
        return {} if self._previous is None else {"previous": self._previous.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._previous = Position.restored(state["previous"]) if "previous" in state else None
