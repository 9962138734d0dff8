"""Finding who speaks for a model's attention, and running the model on tokens.

`attention_of` finds who speaks `Attention` for a model: an object that the user gave, what the
model's own method `attention_heads()` returns, or `FoundAttention`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.errors import RefusedError
from phasewatch.monitor.isolation.batches import tensors_in
from phasewatch.monitor.observables.attention.found import FoundAttention
from phasewatch.monitor.observables.attention.layers import Heads
from phasewatch.monitor.observables.attention.model import WAY_OUT, Attention, Pass
from phasewatch.monitor.observables.evaluation import at_weights, device_of

WHOLE = (torch.int64, torch.int32, torch.int16, torch.uint8)
"""Kinds of numbers that token ids may be."""


def attention_of(context: MeasureContext, given: Attention | None = None) -> Attention:
    """Who speaks for the attention of the measured model.

    Args:
        context: The measurement's context.
        given: The user's own; it comes first, then the model's method `attention_heads()`.

    Raises:
        RefusedError: What was given lacks a method, or no attention layer is known by its
            structure.
    """
    method = getattr(context.model, "attention_heads", None)
    own = given if given is not None else method() if callable(method) else None
    if own is None:
        found = FoundAttention()
        found.heads(context.model)
        return found
    if not isinstance(own, Attention):
        raise RefusedError(
            f"attention: {type(own).__name__} lacks one of heads(model), forward(model, tokens), "
            "embedding(model), unembedding(model)"
        )
    return own


def token_batches(context: MeasureContext) -> Iterator[Tensor]:
    """The first tensor of whole numbers with two axes in each probe batch: (batch, length)."""
    for batch in context.batches:
        whole = (tensor for tensor in tensors_in(batch) if tensor.dtype in WHOLE)
        found = next((tensor for tensor in whole if tensor.ndim == 2), None)
        if found is not None:
            yield found


def forward(context: MeasureContext, attention: Attention, tokens: Tensor) -> Pass:
    """The model at w* on tokens, without gradients.

    Args:
        context: The measurement's context.
        attention: How attention is found in the model.
        tokens: Token ids, shape (batch, positions).
    """
    with torch.no_grad():
        found: Pass = at_weights(context, attention.forward, tokens.to(device_of(context)))
    return found


def heads_at_weights(context: MeasureContext, given: Attention | None) -> Sequence[Heads]:
    """The heads at w*, looked for once a turn.

    Args:
        context: The measurement's context.
        given: The user's own word for the attention, if any.

    Raises:
        RefusedError: As `attention_of`.
    """

    def look() -> Sequence[Heads]:
        with torch.no_grad():
            found: Sequence[Heads] = at_weights(context, attention_of(context, given).heads)
        return found

    return context.shared.get("heads", look, given, context.params)


def try_forward(context: MeasureContext, attention: Attention, tokens: Tensor) -> None:
    """Try a forward pass before the first step.

    Args:
        context: The measurement's context.
        attention: How attention is found in the model.
        tokens: Token ids, shape (batch, positions).

    Raises:
        RefusedError: It fails, or the heads do not explain what their layers write.
    """
    try:
        if isinstance(attention, FoundAttention):
            with torch.no_grad():
                at_weights(context, attention.verify, tokens.to(device_of(context)))
        else:
            forward(context, attention, tokens)
    except RefusedError:
        raise
    except Exception as error:
        raise RefusedError(
            f"calling the model on tokens of shape {tuple(tokens.shape)} failed "
            f"({type(error).__name__}: {error}); {WAY_OUT}"
        ) from error
