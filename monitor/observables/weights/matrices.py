"""Which weight matrix an observable reads: named by the user, or the only one there is."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.errors import RefusedError
from phasewatch.monitor.observables.evaluation import listed, named_weight


def matrices(context: MeasureContext) -> dict[str, Tensor]:
    """The trainable weight matrices: two dimensions, both larger than one."""
    return {name: p for name, p in context.params.items() if p.ndim == 2 and min(p.shape) > 1}


def wide(tensor: Tensor) -> Tensor:
    """The same numbers in float64 or complex128."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float64))


def matrix(context: MeasureContext, name: str | None, what: str) -> tuple[str, Tensor]:
    """The weight matrix of that name; without one, the only matrix of the model.

    A module's name stands for its `weight`.

    Args:
        context: The measurement's context.
        name: Name of a parameter or of a module; None where the model has only one matrix.
        what: Who asks, for the error.

    Returns:
        Name of the parameter, and the matrix as it is.

    Raises:
        RefusedError: There is none, there are several, or what is named is no matrix.
    """
    if name is None:
        found = matrices(context)
        if len(found) != 1:
            raise RefusedError(
                f"{what}: looked for the one weight matrix of the model; it has {len(found)}: "
                f"{shapes(found)}. Name the one that is meant"
            )
        return next(iter(found.items()))
    known = {**context.params, **context.buffers}
    full = f"{name}.weight" if f"{name}.weight" in known and name not in known else name
    weight = named_weight(context, full, what)
    if weight.ndim != 2 or not weight.numel():
        raise RefusedError(
            f"{what}: {full!r} has the shape {tuple(weight.shape)}; needed is a matrix. "
            f"The model has {shapes(matrices(context))}"
        )
    return full, weight


def shapes(found: Mapping[str, Tensor]) -> str:
    """Names and shapes, for an error."""
    return listed(f"{name} {tuple(weight.shape)}" for name, weight in found.items())
