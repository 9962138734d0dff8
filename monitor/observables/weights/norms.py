"""L2 norms over the trainable parameters, whole and by group, in fp32 or better."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch

from phasewatch.monitor.core.context import MeasureContext, StepRecord
from phasewatch.monitor.core.errors import RefusedError
from phasewatch.monitor.core.estimates import EstimateStatus, Observation

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
        some = [as_real(tensors[index]) for index in indices]
        if dtype.itemsize < 4:
            norms = [torch.linalg.vector_norm(one, dtype=torch.float32) for one in some]
        else:  # one call for all of them, as `torch.nn.utils.clip_grad_norm_` does
            norms = list(torch._foreach_norm(some))
        found.append(torch.stack(norms).to(tensors[0].device, torch.float64))
    if len(found) < 2:
        return found[0] if found else torch.zeros(0, dtype=torch.float64)
    return torch.cat(found)[torch.tensor(order).argsort().to(found[0].device)]


def as_real(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers, detached; of a complex tensor real and imaginary parts side by side."""
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
