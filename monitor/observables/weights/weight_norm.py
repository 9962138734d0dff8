"""The norm of the weights, whole and by parameter group."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.meaning import NORM
from phasewatch.monitor.core.work import Cost, Work
from phasewatch.monitor.observables.weights.displacement import Displacements
from phasewatch.monitor.observables.weights.norms import (
    as_real,
    grouped,
    l2_norms,
    observed,
    refuse_untrained,
)
from phasewatch.monitor.observables.work import SKETCHED


class WeightNorm:
    """L2 norm of the trainable parameters, in total and per parameter group.

    ‖w‖ = (Σ_i w_i²)^½ over all, as "weight_norm", and over each group, as "weight_norm/<group>".
    A group is the path of the module that owns the parameter, two levels deep. Each measurement
    also records where the groups are, so that `locate` can tell which of them a transition moved.

    Example:
        >>> import torch
        >>> from phasewatch.monitor.observables.once import measure_once
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.constant_(model.weight, 3.0)
        >>> [(o.name, round(o.value, 3)) for o in measure_once(WeightNorm(), model)]
        [('weight_norm', 4.243), ('weight_norm/weight', 4.243)]
    """

    name = "weight_norm"
    unit = "weight"
    cost = Cost.WEIGHTS
    reads_live = True
    source = "L2 norm"
    streams: ClassVar = {"weight_norm": replace(NORM, metric="phasewatch_weight_norm")}

    def __init__(self) -> None:
        self._displacements = Displacements()

    def work(self, _: MeasureContext) -> Work:
        """A norm and a sketch of all weights."""
        return Work(weight_passes=1.0 + SKETCHED)

    def measure(self, context: MeasureContext) -> list[Observation]:
        """Norms at w*: the total first, then each group."""
        refuse_untrained(context, self.name)
        groups = grouped({name: as_real(tensor) for name, tensor in context.params.items()})
        self._displacements.record(context.step, groups)
        every = [tensor for tensors in groups.values() for tensor in tensors]
        norms = iter(l2_norms(every).tolist())
        found = {
            group: math.hypot(*(next(norms) for _ in tensors)) for group, tensors in groups.items()
        }
        result = [observed(context, self.name, self.unit, math.hypot(*found.values()))]
        for group, norm in found.items():
            result.append(observed(context, f"{self.name}/{group}", self.unit, norm))
        return result

    def locate(self, onset: int, end: int) -> tuple[tuple[str, float], ...]:
        """Groups by how many times as far they moved from `onset` to `end` as before it."""
        return self._displacements.locate(onset, end)

    def state_dict(self) -> dict[str, Any]:
        """Where the groups were, as plain containers."""
        return self._displacements.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._displacements.load_state_dict(state)
