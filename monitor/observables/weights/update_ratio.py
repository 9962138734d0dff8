"""How large a step is beside the weights it moves."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar

import torch

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.errors import MeasurementError
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.meaning import NORM
from phasewatch.monitor.core.work import Cost, Work
from phasewatch.monitor.observables.weights.gradient_norm import recorded
from phasewatch.monitor.observables.weights.norms import (
    l2_norm,
    l2_norms,
    observed,
    widened,
)
from phasewatch.monitor.observables.work import COPIED


class UpdateRatio:
    """Update-to-weight ratio of the last optimizer step.

    r = ‖w_t − w_{t−1}‖ / ‖w_{t−1}‖ over all trainable parameters, dimensionless.

    Example:
        >>> import torch
        >>> from phasewatch.monitor.observables.once import measure_once
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.constant_(model.weight, 3.0)
        >>> model.weight.grad = torch.ones(1, 2)
        >>> from phasewatch.monitor.observables.weights.norms import record_step
        >>> record = record_step(1, model.named_parameters(), keep_params=True)
        >>> _ = torch.nn.init.constant_(model.weight, 3.3)
        >>> (found,) = measure_once(UpdateRatio(), model, step=1, record=record)
        >>> found.name, round(found.value, 3)
        ('update_ratio', 0.1)
    """

    name = "update_ratio"
    unit = "1"
    cost = Cost.STEP
    reads_live = True
    needs_params_before = True
    needs = "a look at the model just before the optimizer step"
    source = "ratio of L2 norms"
    streams: ClassVar = {"update_ratio": replace(NORM, metric="phasewatch_update_ratio")}

    def work(self, _: MeasureContext) -> Work:
        """The copy before the step, the difference, two norms."""
        return Work(weight_passes=2 * COPIED + 2.0)

    def measure(self, context: MeasureContext) -> Observation:
        """Compare the weights with those before the step.

        Raises:
            RefusedError: The training loop did not call `Watch.before_step`.
        """
        kept = recorded(context, self.name).params_before
        before = {name: old for name, old in kept.items() if name in context.params}
        if not before:
            raise MeasurementError(f"{self.name}: the weights before the step were not kept")
        sizes = l2_norms(list(before.values()))
        moved = [  # one after another: differences of all weights at once would be a copy
            l2_norm([widened(context.params[name]).to(old.device) - widened(old)]).to(sizes.device)
            for name, old in before.items()
        ]
        update, size = (torch.linalg.vector_norm(n) for n in (torch.stack(moved), sizes))
        ratio = float(update / size) if size else math.inf
        return observed(context, self.name, self.unit, ratio)
