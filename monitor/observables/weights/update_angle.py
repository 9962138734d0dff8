"""The angle between what the weights did in two stretches between measurements."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.meaning import SUPPORTING
from phasewatch.monitor.core.work import Cost, Work
from phasewatch.monitor.observables.weights.displacement import ROUNDING
from phasewatch.monitor.observables.weights.norms import observed, refuse_untrained
from phasewatch.monitor.observables.weights.positions import (
    WIDTH,
    Position,
    part,
    products,
    squares,
)


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
