"""The norm of the gradient before clipping."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from phasewatch.monitor.core.context import MeasureContext, StepRecord
from phasewatch.monitor.core.errors import RefusedError
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.meaning import NORM
from phasewatch.monitor.core.work import Cost, Work
from phasewatch.monitor.observables.weights.norms import observed


def recorded(context: MeasureContext, name: str) -> StepRecord:
    """What was seen before the step.

    Raises:
        RefusedError: The training loop did not call `Watch.before_step`.
    """
    if context.record is None:
        raise RefusedError(
            f"{name} needs a look at the model just before the optimizer step. In a loop of your "
            "own, call Watch.before_step(step, model.named_parameters()) there; in a "
            "LightningModule, step the optimizers that self.optimizers() gives"
        )
    return context.record


class GradientNorm:
    """L2 norm of the gradient of all trainable parameters, before clipping.

    ‖g‖ = (Σ_i g_i²)^½, as it stands just before the optimizer step: accumulated over
    micro-batches, unscaled, unclipped. Unit: nats per unit of weight.

    Example:
        >>> import torch
        >>> from phasewatch.monitor.observables.once import measure_once
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> (3 * model.weight).sum().backward()
        >>> from phasewatch.monitor.observables.weights.norms import record_step
        >>> record = record_step(1, model.named_parameters(), keep_params=True)
        >>> (found,) = measure_once(GradientNorm(), model, step=1, record=record)
        >>> found.name, round(found.value, 3)
        ('gradient_norm', 4.243)
    """

    name = "gradient_norm"
    unit = "nats/weight"
    cost = Cost.STEP
    reads_live = True
    needs = "a look at the model just before the optimizer step"
    source = "L2 norm"
    streams: ClassVar = {"gradient_norm": replace(NORM, metric="phasewatch_gradient_norm")}

    def work(self, _: MeasureContext) -> Work:
        """The norm, taken before the step."""
        return Work(weight_passes=1.0)

    def measure(self, context: MeasureContext) -> Observation:
        """Read the recorded norm.

        Raises:
            RefusedError: The training loop did not call `Watch.before_step`.
        """
        record = recorded(context, self.name)
        return observed(context, self.name, self.unit, float(record.gradient_norm))
