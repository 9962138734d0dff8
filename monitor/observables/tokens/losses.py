"""Where losses per token, or per sample, come from, for all observables that need them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.errors import RefusedError
from phasewatch.monitor.isolation.batches import clone_batch
from phasewatch.monitor.observables.evaluation import at_weights
from phasewatch.monitor.observables.work import of_probe, samples_in
from phasewatch.monitor.sampling.probe_loss import averaged

METHOD = "probe_token_losses"

LOSSES = "losses"
"""What the losses are called among the work that is shared."""

LossesFn = Callable[[nn.Module, Any], Tensor]
"""`losses(model, batch)`: losses of shape `(B, T)`, one for each token, or `(B,)`, in nats."""

Per = Literal["token", "sample", "batch"]
"""What there must be a loss of, at least: each also allows those before it."""

SHAPES: dict[Per, str] = {
    "token": "(B, T), one loss for each token",
    "sample": "(B, T) or (B,)",
    "batch": "(B, T), (B,) or ()",
}


def losses_of(
    context: MeasureContext,
    what: str,
    losses: LossesFn | None = None,
    *,
    validation: bool = False,
    per: Per = "token",
) -> list[Tensor]:
    """Losses on each probe batch at w*, float64 on the CPU, without a graph.

    They come from the first of: the function given; a method `probe_token_losses(batch)` on the
    module; the probe loss, where losses per token are not asked for.

    Args:
        context: The measurement's context.
        what: The observable that asks, for messages.
        losses: `losses(model, batch)`, in nats.
        validation: Take the validation batches instead of the probe.
        per: What there must be a loss of.

    Returns:
        A tensor for each batch: of shape (B, T), with one T for all; or (B,), or () where `per`
        allows it.

    Raises:
        RefusedError: There is no data, nothing gives such losses, or their shape is another.
    """
    function, source = source_of(context, what, losses, per)
    found = all_evaluated(context, function, f"{what}: {source}", what, validation=validation)
    least = 2 - list(SHAPES).index(per)
    for given in found:
        fits = least <= given.ndim <= 2 and given.numel() > 0
        if not fits or given.ndim != found[0].ndim or given.shape[1:] != found[0].shape[1:]:
            shapes = ", ".join(str(tuple(one.shape)) for one in found[:3])
            raise RefusedError(
                f"{what}: {source} gives losses of shape {shapes}; it must give {SHAPES[per]}, "
                f"alike in every batch. Give the module a method {METHOD}(batch), or the "
                "observable losses=, that does, and cut sequences to one length"
            )
    return found


def batches_of(context: MeasureContext, what: str, *, validation: bool = False) -> Sequence[Any]:
    """The probe batches, or those of validation data.

    Args:
        context: The measurement's context.
        what: What asks, for messages.
        validation: Take those of validation data.

    Raises:
        RefusedError: There are none.
    """
    batches = context.val_batches if validation else context.batches
    if not batches:
        name = "val_probe" if validation else "probe"
        raise RefusedError(f"{what}: looked for data; there is no {name}. Give {name}=")
    return batches


def all_evaluated(
    context: MeasureContext, function: LossesFn, source: str, what: str, *, validation: bool
) -> list[Tensor]:
    """What a function gives at w* on every batch; once a turn, whoever asks.

    Args:
        context: The measurement's context.
        function: What is evaluated.
        source: What it is called in messages.
        what: The observable that asks.
        validation: Take the validation batches instead of the probe.

    Raises:
        RefusedError: There is no data, or it gives no real tensor.
    """
    batches = batches_of(context, what, validation=validation)
    return context.shared.get(
        LOSSES,
        lambda: [evaluated(context, function, batch, source) for batch in batches],
        *(function, batches, context.params),
    )


def forwards_of_losses(
    context: MeasureContext, function: LossesFn, *, validation: bool = False
) -> float:
    """Forward passes over the whole probe that the losses take; none where they are known.

    Args:
        context: The measurement's context.
        function: Gives the losses of one batch.
        validation: Of validation data.
    """
    batches = context.val_batches if validation else context.batches
    if context.shared.has(LOSSES, function, batches, context.params):
        return 0.0
    return of_probe(context, samples_in(batches))


def evaluated(context: MeasureContext, function: LossesFn, batch: Any, what: str) -> Tensor:
    """What a function gives at w* on one batch, as float64 on the CPU, without a graph.

    Args:
        context: The measurement's context.
        function: Gives the losses of one batch.
        batch: The batch.
        what: What asks, for messages.

    Raises:
        RefusedError: It gives no real tensor.
    """
    with torch.no_grad():
        result = averaged(at_weights(context, function, clone_batch(batch)))
    if not isinstance(result, Tensor) or result.is_complex():
        kind = result.dtype if isinstance(result, Tensor) else type(result).__name__
        raise RefusedError(f"{what} gives {kind}; it must give a tensor of real numbers")
    return result.detach().cpu().double()


def source_of(
    context: MeasureContext, what: str, losses: LossesFn | None, per: Per
) -> tuple[LossesFn, str]:
    """The function that gives the losses, and what it is called in messages; see `losses_of`.

    Args:
        context: The measurement's context.
        what: What asks, for messages.
        losses: The user's own function; None looks for a method of the model.
        per: Whether a loss is of a sample or of a token.

    Raises:
        RefusedError: Nothing gives such losses.
    """
    if losses is not None:
        return losses, "losses="
    if callable(getattr(context.model, METHOD, None)):
        return _by_method, METHOD
    if per != "token" and context.loss_fn is not None:
        return context.loss_fn, "the probe loss"
    raise RefusedError(
        f"{what}: looked for a method {METHOD}(batch) on {type(context.model).__name__} that gives "
        f"losses of shape {SHAPES[per]}, in nats; it has none. Add one, or pass the observable "
        "itself with losses=, a function losses(model, batch)"
    )


def _by_method(model: nn.Module, batch: Any) -> Tensor:
    found: Tensor = getattr(model, METHOD)(batch)
    return found
