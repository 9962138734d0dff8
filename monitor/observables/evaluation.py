"""Calling the measured model: with w* for its weights, from any function, on any data.

The copy in a `MeasureContext` holds no weights. `at_weights` lends them to it for one call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.errors import MeasurementError, RefusedError
from phasewatch.monitor.isolation.batches import mapped

Function = Callable[..., Any]
"""`function(model, *arguments)`: calls the model, or reads its weights, and gives what it found."""


class _Call(nn.Module):
    """Calls a function from a module, so that `functional_call` can swap the weights."""

    def __init__(self, model: nn.Module, function: Function) -> None:
        super().__init__()
        self.model = model
        self._function = (function,)  # in a tuple: one that is a module must not become a child

    def forward(self, *arguments: Any) -> Any:
        return self._function[0](self.model, *arguments)


def at_weights(
    context: MeasureContext,
    function: Function,
    *arguments: Any,
    params: Mapping[str, Tensor] | None = None,
) -> Any:
    """`function(model, *arguments)`, the model holding w*, or `params` in place of some of it.

    Buffers and weights are copies, so that the function may write into them: a step may set a
    target network to the trained one. Weights have their training dtype.
    Gradients are recorded where `params` ask for them; use `torch.no_grad()` where none are.

    Args:
        context: The measurement's context.
        function: What is called.
        arguments: What it is called with, beside the model.
        params: Weights that differ from w*, by name.
    """
    dtypes = {name: p.dtype for name, p in context.model.named_parameters()}
    weights = {**context.params, **(params or {})}
    tensors = {
        **{name: value.clone() for name, value in context.buffers.items()},
        **{name: value.to(dtypes[name], copy=True) for name, value in weights.items()},
    }
    named = {f"model.{name}": value for name, value in tensors.items()}
    return torch.func.functional_call(_Call(context.model, function), named, arguments)


def device_of(context: MeasureContext) -> torch.device:
    """Where the model is."""
    return context.generator.device


def to_device(data: Any, device: torch.device) -> Any:
    """Tensors within lists, tuples and mappings, moved; anything else as it is."""
    return mapped(data, lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf)


def named_weight(context: MeasureContext, name: str, what: str) -> Tensor:
    """A weight by its parameter's name, trainable or frozen.

    Args:
        context: The measurement's context.
        name: Name of the parameter.
        what: What it is wanted for, for the message.

    Raises:
        RefusedError: The model has none of that name.
    """
    found = context.params.get(name, context.buffers.get(name))
    if found is None:
        raise RefusedError(
            f"{what}: looked for the parameter {name!r}; the model has "
            f"{listed([*context.params, *context.buffers])}"
        )
    return found


def listed(found: Iterable[str], limit: int = 12) -> str:
    """Names in an error message, the first dozen of them."""
    every = list(found)
    rest = f" and {len(every) - limit} more" if len(every) > limit else ""
    return ", ".join(every[:limit]) + rest if every else "none"


def finite(value: Tensor, what: str) -> Tensor:
    """The same tensor.

    Raises:
        MeasurementError: An entry is not finite.
    """
    if not torch.isfinite(value).all():
        raise MeasurementError(f"{what} is not finite")
    return value
