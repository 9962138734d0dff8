"""Gradient norm, weight norm and update-to-weight ratio.

All are L2 norms over the trainable parameters, computed in fp32 or better.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch

from phasewatch.monitor.core.errors import MeasurementError, RefusedError
from phasewatch.monitor.core.meaning import NORM
from phasewatch.monitor.core.types import (
    Cost,
    EstimateStatus,
    MeasureContext,
    Observation,
    StepRecord,
    Work,
)
from phasewatch.monitor.observables.weights.displacement import Displacements
from phasewatch.monitor.observables.work import COPIED, SKETCHED

MAX_GROUPS = 32
"""Weight norms are reported for so many parameter groups at most; the rest is one more group."""

OTHER = "other"


def l2_norm(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """L2 norm of all entries together, as a 0-dim fp64 tensor."""
    total: torch.Tensor = torch.linalg.vector_norm(l2_norms(list(tensors)))
    return total


def l2_norms(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """L2 norm of each tensor, shape (n,), fp64, on the device of the first.

    Entries are summed in fp32, or in fp64 where they are; narrower ones are cast as they are read.
    """
    by_kind: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for index, tensor in enumerate(tensors):
        by_kind.setdefault((tensor.device, tensor.dtype), []).append(index)
    order, found = [], []
    for (_, dtype), indices in by_kind.items():
        order += indices
        some = [_real(tensors[index]) for index in indices]
        if dtype.itemsize < 4:
            norms = [torch.linalg.vector_norm(one, dtype=torch.float32) for one in some]
        else:  # one call for all of them, as `torch.nn.utils.clip_grad_norm_` does
            norms = list(torch._foreach_norm(some))
        found.append(torch.stack(norms).to(tensors[0].device, torch.float64))
    if len(found) < 2:
        return found[0] if found else torch.zeros(0, dtype=torch.float64)
    return torch.cat(found)[torch.tensor(order).argsort().to(found[0].device)]


def _real(tensor: torch.Tensor) -> torch.Tensor:
    real = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return real.detach()


def record_step(
    step: int,
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
    *,
    keep_params: bool,
    loss_scale: float = 1.0,
) -> StepRecord:
    """Look at gradients and weights just before an optimizer step.

    Args:
        step: Count of optimizer steps after the coming one.
        named_parameters: The live parameters. They are read, never written.
        keep_params: Copy the trainable parameters too, for who compares them with those after the
            step: `needs_params_before` tells.
        loss_scale: What the gradients are to be divided by.

    Returns:
        Norm of the whole gradient, unclipped, and the copies.
    """
    trainable = [(name, p) for name, p in named_parameters if p.requires_grad]
    with torch.no_grad():
        return StepRecord(
            step=step,
            gradient_norm=gradient_norm(trainable) / loss_scale,
            params_before={n: p.detach().clone() for n, p in trainable if keep_params},
        )


def gradient_norm(named_parameters: Iterable[tuple[str, torch.nn.Parameter]]) -> torch.Tensor:
    """L2 norm of the gradients that trainable parameters hold now; a 0-dim tensor, not read."""
    with torch.no_grad():
        held = [p.grad for _, p in named_parameters if p.requires_grad and p.grad is not None]
        return l2_norm(_dense(gradient) for gradient in held)


def _dense(gradient: torch.Tensor) -> torch.Tensor:
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers in fp32 or, where they are wider, in their own dtype: then no copy."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def refuse_untrained(context: MeasureContext, name: str) -> None:
    """Refuse a model without trainable parameters.

    Raises:
        RefusedError: It has none.
    """
    if not context.params:
        raise RefusedError(f"{name} looked for trainable parameters; the model has none")


def group_of(name: str) -> str:
    """Parameter group of a parameter: its module's path, up to two levels."""
    return ".".join(name.split(".")[:-1][:2]) or name


def grouped(params: Mapping[str, torch.Tensor]) -> dict[str, list[torch.Tensor]]:
    """Parameters by group, in order; beyond `MAX_GROUPS` they share the group "other"."""
    groups: dict[str, list[torch.Tensor]] = {}
    for name, tensor in params.items():
        group = group_of(name)
        if group not in groups and len(groups) >= MAX_GROUPS:
            group = OTHER
        groups.setdefault(group, []).append(tensor)
    return groups


def observed(
    context: MeasureContext, name: str, unit: str, value: float, stderr: float | None = None
) -> Observation:
    """One value of an observable, marked where it is not finite.

    Args:
        context: The measurement's context.
        name: Name of the stream.
        unit: Unit of the value.
        value: The value.
        stderr: Its standard error; None where the value is exact.
    """
    finite = math.isfinite(value)
    return Observation(
        name=name,
        step=context.step,
        epoch=context.epoch,
        value=value,
        unit=unit,
        stderr=stderr,
        status=EstimateStatus.OK if finite else EstimateStatus.DIVERGED,
        reason="" if finite else f"{name} is {value}",
    )


def _record(context: MeasureContext, name: str) -> StepRecord:
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
        record = _record(context, self.name)
        return observed(context, self.name, self.unit, float(record.gradient_norm))


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
        groups = grouped({name: _real(tensor) for name, tensor in context.params.items()})
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


class UpdateRatio:
    """Update-to-weight ratio of the last optimizer step.

    r = ‖w_t − w_{t−1}‖ / ‖w_{t−1}‖ over all trainable parameters, dimensionless.

    Example:
        >>> import torch
        >>> from phasewatch.monitor.observables.once import measure_once
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.constant_(model.weight, 3.0)
        >>> model.weight.grad = torch.ones(1, 2)
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
        kept = _record(context, self.name).params_before
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
