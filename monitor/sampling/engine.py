"""Losses and gradients of all chains at once: one `vmap`, or a plain loop over chains.

Both engines give the same numbers; `choice` decides which one runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from phasewatch.monitor.errors import RefusedError
from phasewatch.monitor.sampling.posterior import Problem, checked_terms

EngineName = Literal["vmap", "loop"]
Wanted = Literal["auto", "vmap", "loop"]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The probe loss and its gradient at the points of all chains.

    Attributes:
        loss: L_n, shape (chains,).
        grad: ∇L_n, shape (chains, d).
        terms: Loss terms, shape (chains, terms): single ones where the loss gives them, else one
            mean a batch.
    """

    loss: Tensor
    grad: Tensor
    terms: Tensor


class Engine(Protocol):
    """Evaluates one probe batch at the points of all chains."""

    name: EngineName

    def session(self) -> AbstractContextManager[None]:
        """What must be in force around calls of `batch`."""
        ...

    def batch(self, points: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """Terms (chains, terms) and gradient (chains, d) of batch `index` at `points`."""
        ...


class VmapEngine:
    """All chains in one vectorised forward pass; one ordinary backward pass through it.

    The chains do not interact, so the gradient of the sum of their losses holds each chain's own.
    Only the forward pass is traced by `vmap`: that succeeds under autocast, where `vmap(grad)`
    does not, and it saves one layer of dispatch.
    """

    name: EngineName = "vmap"

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._written = tuple(problem.written)

    def session(self) -> AbstractContextManager[None]:
        """Attention by plain matrix products: its fused kernels have no batching rule."""
        return _plain_attention()

    def batch(self, points: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """Terms and gradients of batch `index` at `points` (chains, d)."""
        problem = self.problem
        leaf = points.detach().requires_grad_()
        swapped = {**problem.layout.unflatten(leaf), **self._own_buffers(len(points))}
        names, batch = tuple(swapped), problem.batch(index)

        def one(*tensors: Tensor) -> Tensor:
            values = {**problem.fixed, **dict(zip(names, tensors, strict=True))}
            return checked_terms(problem.call(values, batch))

        terms = torch.func.vmap(one, randomness="different")(*swapped.values())
        terms = terms.to(problem.layout.state_dtype)
        (grad,) = torch.autograd.grad(terms.mean(dim=1).sum(), leaf)
        return terms.detach(), grad

    def _own_buffers(self, num_chains: int) -> dict[str, Tensor]:
        """Buffers that the model writes into, one set for each chain."""
        fixed = self.problem.fixed
        return {
            name: fixed[name].expand(num_chains, *fixed[name].shape).clone()
            for name in self._written
        }


class LoopEngine:
    """One chain after another; the gradient is taken inside the swapped module's forward.

    Args:
        problem: What to evaluate.
        backward: Use `.backward()` instead of `autograd.grad`, for reentrant checkpointing.
    """

    name: EngineName = "loop"

    def __init__(self, problem: Problem, *, backward: bool = False) -> None:
        self._problem = problem
        self.backward = backward

    def session(self) -> AbstractContextManager[None]:
        """Nothing: the user's own kernels run."""
        return nullcontext()

    def batch(self, points: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """Terms and gradients of batch `index` at `points` (chains, d)."""
        grads = torch.empty_like(points)
        rows = []
        for chain, point in enumerate(points):
            terms, grad = self.one(point, index)
            if grad is None:
                raise RefusedError(NO_GRADIENT)
            grads[chain] = grad
            rows.append(terms)
        return torch.stack(rows), grads

    def one(self, point: Tensor, index: int) -> tuple[Tensor, Tensor | None]:
        """Terms (terms,) and gradient (d,) of batch `index` at one point (d,)."""
        problem = self._problem
        leaf = point.detach().clone().requires_grad_()
        values = {**problem.constants(), **problem.layout.unflatten(leaf)}
        losses, grad = problem.call(values, problem.batch(index), leaf, self.backward)
        return checked_terms(losses).to(problem.layout.state_dtype), grad


NO_GRADIENT = (
    "no gradient of the probe loss reaches the copied weights. The loss probably reads the live "
    "model through a closure (a lambda, a hook or a global), or runs under no_grad; give "
    "loss_fn=, a function loss_fn(model, batch) that uses only the model it is given"
)


@contextmanager
def _plain_attention() -> Iterator[None]:
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def evaluate(
    engine: Engine, problem: Problem, points: Tensor, indices: Sequence[int]
) -> Evaluation:
    """Loss, gradient and terms over some batches, each weighted by its number of terms."""
    parts = (_single(*engine.batch(points, index)) for index in indices)
    return join(parts, [problem.weights[index] for index in indices])


def _single(terms: Tensor, grad: Tensor) -> Evaluation:
    return Evaluation(terms.mean(dim=1), grad, terms)


def join(parts: Iterable[Evaluation], weights: Sequence[float]) -> Evaluation:
    """Weighted mean of evaluations at the same points; the parts' gradients are used up."""
    shares = [weight / sum(weights) for weight in weights]
    pairs = zip(parts, shares, strict=True)
    first, share = next(pairs)
    if len(shares) == 1:
        return first
    loss, grad, terms = first.loss * share, first.grad.mul_(share), [first.terms]
    for part, share in pairs:
        loss += part.loss * share
        grad.add_(part.grad, alpha=share)
        terms.append(part.terms)
    return Evaluation(loss, grad, torch.cat(terms, dim=1))
