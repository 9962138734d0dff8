"""How far the weights have come from where they began."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
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


class DistanceFromInit:
    """Distance of the weights from where they began.

    ‖w − w₀‖ as "distance_from_init", in units of a weight, and ‖w − w₀‖/‖w₀‖ as
    "distance_from_init_relative", dimensionless; in total and for each parameter group. w₀ are the
    weights before the first step, or when first seen: a plain loop calls `Watch.check` before it.
    What began at zero has no relative distance once it has moved, and is marked so. Copies of up to
    2¹⁸ weights are kept, sketches of more, with their standard error.

    Example:
        >>> import torch
        >>> from phasewatch.monitor.observables.once import measure_once
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.constant_(model.weight, 3.0)
        >>> distance = DistanceFromInit()
        >>> _ = measure_once(distance, model, step=1)
        >>> _ = torch.nn.init.constant_(model.weight, 4.0)
        >>> found = measure_once(distance, model, step=2)
        >>> found[0].name, round(found[0].value, 3)
        ('distance_from_init', 1.414)
    """

    name = "distance_from_init"
    unit = "weight"
    cost = Cost.WEIGHTS
    reads_live = True
    needs = "trainable parameters"
    source = "L2 norm; of a sketch: Charikar et al. 2002"
    compares_steps = True
    streams: ClassVar = {
        "distance_from_init": SUPPORTING,
        "distance_from_init_relative": SUPPORTING,
    }

    def __init__(self) -> None:
        self._start: Position | None = None

    def check(self, context: MeasureContext) -> None:
        """Take the initial weights, unless a resumed run brought its own.

        Raises:
            RefusedError: Nothing is trained.
        """
        refuse_untrained(context, self.name)
        self._begin(Position.of(context))

    def _begin(self, position: Position) -> Position:
        if self._start is None or not position.comparable(self._start):
            self._start = position
        return self._start

    def work(self, context: MeasureContext) -> Work:
        """Where the weights are, and how far that is."""
        return Position.work(context)

    def measure(self, context: MeasureContext) -> list[Observation]:
        """Distances at w*, the total first.

        Raises:
            MeasurementError: A weight is not finite.
        """
        position = Position.of(context)
        start = self._begin(position)
        result = []
        sizes = distances(start.groups, start)
        for group, (moved, error) in distances(position.minus(start), position).items():
            size, size_error = sizes[group]
            result.append(observed(context, part(self.name, group), self.unit, moved, error))
            relative = _ratio(moved, size)
            spread = None
            if error is not None and size_error is not None and size:
                spread = math.hypot(error, relative * size_error) / size
            name = part(f"{self.name}_relative", group)
            seen = observed(context, name, "1", relative, spread)
            result.append(seen if size else replace(seen, reason="its weights began at zero"))
        return result

    def state_dict(self) -> dict[str, Any]:
        """Where the weights began."""
        return {} if self._start is None else {"start": self._start.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._start = Position.restored(state["start"]) if "start" in state else None


def _ratio(value: float, size: float) -> float:
    if size:
        return value / size
    return math.inf if value else math.nan
