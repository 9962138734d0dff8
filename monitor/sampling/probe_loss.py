"""The probe loss as a module, and what a loss may return."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from phasewatch.monitor.core.context import LossFn
from phasewatch.monitor.core.errors import RefusedError
from phasewatch.monitor.core.together import ALONE, Together


class ProbeLoss(nn.Module):
    """Calls `loss_fn(model, batch)` from a module, so that `functional_call` can swap the weights.

    The gradient may be taken inside `forward`, while the swapped weights are in place: activation
    checkpointing runs parts of the model again during backward, and would otherwise do so with the
    module's own weights, silently.
    """

    def __init__(self, model: nn.Module, loss_fn: LossFn, together: Together = ALONE) -> None:
        super().__init__()
        self._together = together
        self.model = model
        self._loss_fn = (loss_fn,)  # in a tuple: a loss that is a module must not become a child

    def forward(
        self,
        batch: Any,
        leaf: Tensor | None = None,
        backward: bool = False,
        direction: Tensor | None = None,
        raw: bool = False,
        share: float = 1.0,
        sampled: tuple[str, ...] = (),
    ) -> Any:
        """Losses of `batch`; with the gradient for `leaf`, or the Hessian times `direction`.

        Args:
            batch: One probe batch.
            leaf: The point, flat, shape (parameters,), that the gradient is wanted for.
            backward: Whether a gradient is wanted.
            direction: Shape (parameters,); the Hessian is multiplied with it.
            raw: Give what the loss returned, a sum and a count included.
            share: Factor on the gradient: where other processes have other parts of the batch.
            sampled: Names of the parameters that `leaf` is made of.
        """
        # A backward pass gathers spread weights again, those that are sampled.
        kind = (sampled, leaf is not None, backward, direction is not None)

        def run() -> Any:
            return self._evaluated(batch, leaf, backward, direction, raw, share)

        return self._together.evaluated(kind, run)

    def _evaluated(
        self,
        batch: Any,
        leaf: Tensor | None,
        backward: bool,
        direction: Tensor | None,
        raw: bool,
        share: float,
    ) -> Any:
        losses = self._loss_fn[0](self.model, batch)
        if raw:
            return losses
        losses = averaged(losses)
        if leaf is None:
            return losses
        total = losses.mean() if share == 1.0 else losses.mean() * share
        if not total.requires_grad:
            return losses.detach(), None
        if direction is not None:
            (gradient,) = torch.autograd.grad(total, leaf, create_graph=True)
            if not gradient.requires_grad:  # the loss is linear in the weights
                return losses.detach(), torch.zeros_like(leaf)
            return losses.detach(), torch.autograd.grad(gradient, leaf, direction)[0]
        if backward:  # reentrant checkpointing knows only this way
            total.backward()
            return losses.detach(), leaf.grad
        return losses.detach(), torch.autograd.grad(total, leaf, allow_unused=True)[0]


def is_sum_and_count(losses: Any) -> bool:
    """Whether a loss returned the sum of its terms, and their number."""
    return (
        isinstance(losses, tuple)
        and len(losses) == 2
        and isinstance(losses[0], Tensor)
        and isinstance(losses[1], (Tensor, int, float))
    )


def averaged(losses: Any) -> Any:
    """The mean of a (sum, count); anything else as it is."""
    if is_sum_and_count(losses):
        return losses[0].sum() / losses[1]
    return losses


def checked_terms(losses: Any) -> Tensor:
    """The loss terms as one flat tensor, or a clear refusal."""
    if not isinstance(losses, Tensor):
        raise RefusedError(
            f"the loss returned {type(losses).__name__}; it must return a tensor: per-sample "
            "losses of shape (B,) or their mean"
        )
    if not losses.is_floating_point():
        raise RefusedError(f"the loss has dtype {losses.dtype}; it must be floating point, in nats")
    if losses.numel() == 0:
        raise RefusedError("the loss has no terms: the probe batch is empty; give it samples")
    return losses.reshape(-1)
