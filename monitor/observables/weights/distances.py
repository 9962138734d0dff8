"""How far the weights have come: from where they began, and from the last measurement."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from phasewatch.monitor.core.meaning import SUPPORTING
from phasewatch.monitor.core.types import Cost, MeasureContext, Observation, Work
from phasewatch.monitor.observables.weights.displacement import ROUNDING
from phasewatch.monitor.observables.weights.norms import observed, refuse_untrained
from phasewatch.monitor.observables.weights.positions import (
    WIDTH,
    Position,
    distances,
    part,
    products,
    squares,
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


class UpdateAngle:
    """Angle between the displacement since the last measurement and the one before it.

    With d(t) = w(t) − w(t − Δ), arccos(d(t)·d(t − Δ) / ‖d(t)‖‖d(t − Δ)‖), in radians: 0 straight
    on, π/2 a random walk, π to and fro. In total and for each parameter group; one that did not
    move has no angle and is marked so. Copies of up to 2¹⁸ weights are kept, sketches of more: the
    angle θ then has a standard error of sin θ/√4096, and that of rounding.

    Example:
        >>> import torch
        >>> from phasewatch.monitor.observables.once import measure_once
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.constant_(model.weight, 3.0)
        >>> angle = UpdateAngle()
        >>> _ = measure_once(angle, model, step=1)
        >>> _ = model.weight.data.copy_(torch.tensor([[4.0, 3.0]]))
        >>> _ = measure_once(angle, model, step=2)
        >>> _ = model.weight.data.copy_(torch.tensor([[4.0, 4.0]]))
        >>> found = measure_once(angle, model, step=3)
        >>> found[0].name, round(found[0].value, 3)  # a right angle
        ('update_angle', 1.571)
    """

    name = "update_angle"
    unit = "rad"
    cost = Cost.WEIGHTS
    reads_live = True
    needs = "trainable parameters"
    source = "scalar product; of a sketch: Charikar et al. 2002"
    compares_steps = True
    streams: ClassVar = {"update_angle": SUPPORTING}

    def __init__(self) -> None:
        self._trail: list[Position] = []

    def check(self, context: MeasureContext) -> None:
        """Take the weights before the first step, unless a resumed run brought its own.

        Raises:
            RefusedError: Nothing is trained.
        """
        refuse_untrained(context, self.name)
        self._trail = self._trail or [Position.of(context)]

    def work(self, context: MeasureContext) -> Work:
        """Where the weights are, and how far that is."""
        return Position.work(context)

    def measure(self, context: MeasureContext) -> list[Observation]:
        """Angles, the total first; none before a third look at the weights.

        Raises:
            MeasurementError: A weight is not finite.
        """
        position = Position.of(context)
        before = [p for p in self._trail if position.comparable(p) and p.step < position.step]
        self._trail = [*before[-1:], position]
        if len(before) < 2:
            return []
        last, new = before[1].minus(before[0]), position.minus(before[1])
        scalars, old, now = products(last, new), squares(last), squares(new)
        sizes = squares(position.groups)
        result = []
        for group, product in scalars.items():
            name = part(self.name, group)
            if not old[group] or not now[group]:
                still = observed(context, name, self.unit, math.nan)
                result.append(replace(still, reason="the weights did not move"))
                continue
            cosine = product / math.sqrt(old[group] * now[group])
            angle = math.acos(max(-1.0, min(1.0, cosine)))
            error = None
            if not position.exact:
                rounding = ROUNDING * math.sqrt(sizes[group] * (1 / old[group] + 1 / now[group]))
                error = math.hypot(math.sin(angle) / math.sqrt(WIDTH), rounding)
            result.append(observed(context, name, self.unit, angle, error))
        return result

    def state_dict(self) -> dict[str, Any]:
        """Where the weights were at the last two looks."""
        return {"trail": [position.state_dict() for position in self._trail]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        trail = [Position.restored(one) for one in state["trail"]]
        self._trail = [position for position in trail if position is not None]
