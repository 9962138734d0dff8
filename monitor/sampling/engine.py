"""Losses and gradients of chains: by `vmap`, in a plain loop, or in place of the model's weights.

All engines give the same numbers. They differ in how many chains they take at a time, and in the
memory that takes; `memory` says how much, `choice` decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from phasewatch.monitor.core.errors import RefusedError
from phasewatch.monitor.core.work import T
from phasewatch.monitor.sampling.layout import PREFIX
from phasewatch.monitor.sampling.posterior import Problem
from phasewatch.monitor.sampling.probe_loss import checked_terms

EngineName = Literal["vmap", "loop", "inplace"]
Wanted = Literal["auto", "vmap", "loop", "inplace"]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The probe loss and its gradient at the points of all chains.

    Attributes:
        loss: L_n, shape (chains,).
        grad: ∇L_n, shape (chains, d).
        terms: Loss terms, shape (chains, terms): single ones where the loss gives them, else one
            mean a batch. Where batches are spread over processes, those that are here.
        batch_losses: Mean loss of each batch, shape (batches, chains).
    """

    loss: Tensor
    grad: Tensor
    terms: Tensor
    batch_losses: Tensor

    def split(self, sizes: Sequence[int]) -> list[Evaluation]:
        """Of the first chains, the next, and so on; views."""
        parts = zip(
            self.loss.split(list(sizes)),
            self.grad.split(list(sizes)),
            self.terms.split(list(sizes)),
            self.batch_losses.split(list(sizes), dim=1),
            strict=True,
        )
        return [Evaluation(*part) for part in parts]


class Engine(Protocol):
    """Evaluates one probe batch at the points of some chains."""

    @property
    def name(self) -> EngineName:
        """What it is: "vmap", "loop" or "inplace"."""
        ...

    @property
    def width(self) -> int:
        """How many chains it takes at a time."""
        ...

    def session(self) -> AbstractContextManager[None]:
        """What must be in force around calls of `batch`."""
        ...

    def batch(self, x: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """Terms (width, terms) and gradient (width, d) of batch `index` at displacements `x`."""
        ...

    def losses(self, x: Tensor, index: int) -> Tensor:
        """Terms (width, terms) of batch `index` at displacements `x`, without the gradient."""
        ...


class VmapEngine:
    """Chains in one vectorised forward pass; one ordinary backward pass through it.

    The chains do not interact, so the gradient of the sum of their losses holds each chain's own.
    Only the forward pass is traced by `vmap`: that succeeds under autocast, where `vmap(grad)`
    does not, and it saves one layer of dispatch.

    Args:
        problem: What to evaluate.
        width: How many chains at a time.
    """

    name: EngineName = "vmap"

    def __init__(self, problem: Problem, width: int) -> None:
        self.problem = problem
        self.width = width
        self._center = problem.center()
        self._written = tuple(problem.written)

    def session(self) -> AbstractContextManager[None]:
        """Attention by plain matrix products: its fused kernels have no batching rule."""
        return plain_attention()

    def batch(self, x: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """Terms and gradients of batch `index` at the displacements `x` (width, d)."""
        leaf = (self._center + x).requires_grad_()
        terms = self._terms(leaf, index)
        (grad,) = torch.autograd.grad(terms.mean(dim=1).sum(), leaf)
        return terms.detach(), grad

    def losses(self, x: Tensor, index: int) -> Tensor:
        """Terms of batch `index` at the displacements `x` (width, d)."""
        # With a graph, though none is needed: some losses differentiate inside.
        return self._terms((self._center + x).requires_grad_(), index).detach()

    def _terms(self, points: Tensor, index: int) -> Tensor:
        problem = self.problem
        swapped = {**problem.weights_of(points), **self._own_buffers(len(points))}
        names, batch = tuple(swapped), problem.batch(index)

        def one(*tensors: Tensor) -> Tensor:
            values = {**problem.fixed, **dict(zip(names, tensors, strict=True))}
            return checked_terms(problem.call(values, batch))

        randomness = "same" if problem.noise_is_shared else "different"
        terms = torch.func.vmap(one, randomness=randomness)(*swapped.values())
        return terms.to(problem.layout.state_dtype)

    def _own_buffers(self, num_chains: int) -> dict[str, Tensor]:
        """Buffers that the model writes into, one set for each chain."""
        fixed = self.problem.fixed
        return {
            name: fixed[name].expand(num_chains, *fixed[name].shape).clone()
            for name in self._written
        }


class FallingBack:
    """Chains by `vmap`; in a loop from the first evaluation on that `vmap` cannot trace.

    A step may do only sometimes what `vmap` cannot trace: choose an action with `.item()`, log
    every tenth loss, look for NaN. What the loop cannot evaluate either is no fault of `vmap`.

    Args:
        vmapped: What is tried.
        loop: What takes over.
        told: Called once with the error, when the loop has taken over.
    """

    def __init__(
        self, vmapped: VmapEngine, loop: LoopEngine, told: Callable[[Exception], None]
    ) -> None:
        self._engine: VmapEngine | LoopEngine = vmapped
        self._loop = loop
        self._told = told

    @property
    def name(self) -> EngineName:
        """Of the engine that runs now."""
        return self._engine.name

    @property
    def width(self) -> int:
        """Of the engine that runs now."""
        return self._engine.width

    def session(self) -> AbstractContextManager[None]:
        """As for `vmap`: the loop, too, may then run with plain attention."""
        return self._engine.session()

    def batch(self, x: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """Terms and gradients of batch `index` at the displacements `x` (chains, d)."""
        return self._tried(lambda: self._engine.batch(x, index), lambda: self._one_by_one(x, index))

    def losses(self, x: Tensor, index: int) -> Tensor:
        """Terms of batch `index` at the displacements `x` (chains, d)."""
        return self._tried(
            lambda: self._engine.losses(x, index),
            lambda: torch.cat([self._loop.losses(row, index) for row in x.split(1)]),
        )

    def _tried(self, vmapped: Callable[[], T], looped: Callable[[], T]) -> T:
        if self._engine is self._loop:
            return looped()
        try:
            return vmapped()
        except Exception as error:
            found = looped()
            self._engine = self._loop
            self._told(error)
            return found

    def _one_by_one(self, x: Tensor, index: int) -> tuple[Tensor, Tensor]:
        terms, grads = zip(*(self._loop.batch(row, index) for row in x.split(1)), strict=True)
        return torch.cat(terms), torch.cat(grads)


class LoopEngine:
    """One chain after another; the gradient is taken inside the swapped module's forward.

    Args:
        problem: What to evaluate.
        backward: Use `.backward()` instead of `autograd.grad`, for reentrant checkpointing.
    """

    name: EngineName = "loop"
    width = 1

    def __init__(self, problem: Problem, *, backward: bool = False) -> None:
        self._problem = problem
        self._center = problem.center()
        self.backward = backward

    def session(self) -> AbstractContextManager[None]:
        """Nothing: the user's own kernels run."""
        return nullcontext()

    def batch(self, x: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """Terms and gradient of batch `index` at the displacement `x` (1, d)."""
        problem = self._problem
        leaf = (self._center + x[0]).requires_grad_()
        values = {**problem.constants(), **problem.weights_of(leaf)}
        losses, grad = problem.call(
            values, problem.batch(index), leaf, self.backward, None, False, problem.share(index)
        )
        if grad is None:
            raise RefusedError(NO_GRADIENT)
        return checked_terms(losses).to(problem.layout.state_dtype)[None], grad[None]

    def losses(self, x: Tensor, index: int) -> Tensor:
        """Terms of batch `index` at the displacement `x` (1, d)."""
        problem = self._problem
        leaf = (self._center + x[0]).requires_grad_()
        values = {**problem.constants(), **problem.weights_of(leaf)}
        losses = checked_terms(problem.call(values, problem.batch(index))).detach()
        return losses.to(problem.layout.state_dtype)[None]


class InPlaceEngine:
    """One chain after another, in the memory of the live weights where the context lends it.

    The weights move to w* + x, and are put back when the session ends, however it ends. They move
    behind the back of the live parameters: their `.grad`, hooks, `requires_grad` and version
    counters do not see it. The chain's own state stays in x, in fp32 or wider, also where the
    weights are bf16. Where nothing is lent, the engine moves weights of its own.
    """

    name: EngineName = "inplace"
    width = 1

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._weights: dict[str, Tensor] = {}
        self._parts: dict[str, Tensor] = {}
        self._reached = False

    @contextmanager
    def session(self) -> Iterator[None]:
        """The weights may move; at the end they are what they were, bit for bit."""
        problem = self._problem
        lent = dict(zip(problem.layout.names, problem.layout.dtypes, strict=True))
        for name, dtype in lent.items():
            if name in problem.lent:
                weight = problem.lent[name].detach()
            else:
                weight = torch.empty_like(problem.params[name], dtype=dtype)
            weight.requires_grad_().register_post_accumulate_grad_hook(self._taker(name))
            self._weights[name] = weight
        try:
            yield
        finally:
            try:
                self._move({})
            except BaseException:  # a Ctrl-C in the middle must not leave it half done
                self._move({})
                raise
            self._weights, self._parts = {}, {}

    def batch(self, x: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """Terms and gradient of batch `index` at the displacement `x` (1, d)."""
        problem, layout = self._problem, self._problem.layout
        self._move(layout.cut(x[0]))
        grad = torch.zeros_like(x)
        self._parts, self._reached = layout.cut(grad[0]), False
        torch.clear_autocast_cache()  # it would serve the weights of an earlier step
        values = {PREFIX + name: weight for name, weight in self._weights.items()}
        leaf = next(iter(values.values()))
        losses, _ = problem.call(
            {**problem.constants(), **values},
            problem.batch(index),
            leaf,
            True,
            None,
            False,
            problem.share(index),
        )
        self._parts = {}  # views, which would hold the gradient when its user has let it go
        if not self._reached:
            raise RefusedError(NO_GRADIENT)
        return checked_terms(losses).to(layout.state_dtype)[None], grad

    def losses(self, x: Tensor, index: int) -> Tensor:
        """Terms of batch `index` at the displacement `x` (1, d)."""
        problem, layout = self._problem, self._problem.layout
        self._move(layout.cut(x[0]))
        torch.clear_autocast_cache()
        values = {PREFIX + name: weight for name, weight in self._weights.items()}
        losses = problem.call({**problem.constants(), **values}, problem.batch(index))
        return checked_terms(losses).detach().to(layout.state_dtype)[None]

    def _move(self, displacements: Mapping[str, Tensor]) -> None:
        """Put the weights at w* + x; at w* itself without displacements."""
        with torch.no_grad():
            for name, weight in self._weights.items():
                center = self._problem.params[name]
                if name in displacements:
                    torch.add(center, displacements[name], out=weight)
                else:
                    weight.copy_(center)

    def _taker(self, name: str) -> Callable[[Tensor], None]:
        """A hook that takes the gradient of one weight as soon as it is there, and frees it."""

        def take(weight: Tensor) -> None:
            if weight.grad is not None:
                self._parts[name].add_(weight.grad)
                weight.grad, self._reached = None, True

        return take


NO_GRADIENT = (
    "no gradient of the probe loss reaches the copied weights. The loss probably reads the live "
    "model through a closure (a lambda, a hook or a global), or runs under no_grad; give "
    "loss_fn=, a function loss_fn(model, batch) that uses only the model it is given"
)


@contextmanager
def plain_attention() -> Iterator[None]:
    """Attention by plain matrix products, which can be vectorised and differentiated twice."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def evaluate(engine: Engine, problem: Problem, x: Tensor, indices: Sequence[int]) -> Evaluation:
    """Loss, gradient and terms over some batches, each weighted by its number of terms.

    Args:
        engine: How the gradients are computed.
        problem: Whose loss.
        x: Displacements of the chains from w*, shape (chains, d).
        indices: Batches.
    """
    weights = [problem.weights[index] for index in indices]
    shares = [weight / sum(weights) for weight in weights]
    width = engine.width

    def some(first: int) -> Evaluation:
        rows = x[first : first + width]
        batches = (engine.batch(rows, index) for index in indices)
        return _joined(batches, shares, [problem.share(index) > 0.0 for index in indices])

    if len(x) <= width:
        return _of_all(some(0), problem, indices, shares)
    grad = torch.empty_like(x)
    parts = []
    for first in range(0, len(x), width):
        part = some(first)
        grad[first : first + width] = part.grad
        parts.append((part.loss, part.terms, part.batch_losses))
        del part  # its gradient, before the next chains run
    loss, terms, batch_losses = zip(*parts, strict=True)
    found = Evaluation(torch.cat(loss), grad, torch.cat(terms), torch.cat(batch_losses, dim=1))
    return _of_all(found, problem, indices, shares)


def evaluate_losses(engine: Engine, problem: Problem, x: Tensor) -> list[Tensor]:
    """Loss terms of each batch, shape (chains, terms), without any gradient.

    Args:
        engine: How they are computed; its session is in force.
        problem: Whose loss.
        x: Displacements of the chains from w*, shape (chains, d).
    """
    parts = x.split(engine.width)
    return [
        torch.cat([engine.losses(rows, index) for rows in parts])
        for index in range(len(problem.batches))
    ]


def _joined(
    batches: Iterator[tuple[Tensor, Tensor]], shares: Sequence[float], counts: Sequence[bool]
) -> Evaluation:
    """Weighted mean over batches at the same points; terms of those that count."""
    terms, grad = next(batches)
    if len(shares) == 1:
        loss = terms.mean(dim=1)
        return Evaluation(loss, grad, terms if counts[0] else terms[:, :0], loss[None])
    grad = grad.mul_(shares[0])
    found = [terms]
    for share in shares[1:]:
        terms, part = next(batches)
        grad.add_(part, alpha=share)
        found.append(terms)
    batch_losses = torch.stack([terms.mean(dim=1) for terms in found])
    loss = torch.tensordot(batch_losses.new_tensor(shares), batch_losses, dims=1)
    kept = [terms if count else terms[:, :0] for terms, count in zip(found, counts, strict=True)]
    return Evaluation(loss, grad, torch.cat(kept, dim=1), batch_losses)


def _of_all(
    found: Evaluation, problem: Problem, indices: Sequence[int], shares: Sequence[float]
) -> Evaluation:
    """The losses of whole batches, of which each process has evaluated a part.

    The gradient is that of the whole already: it was added up where weights are gathered.
    """
    if not problem.shares:
        return found
    here = found.batch_losses.new_tensor([problem.share(index) for index in indices])
    batch_losses = problem.together.total(found.batch_losses * here[:, None])
    loss = torch.tensordot(batch_losses.new_tensor(shares), batch_losses, dims=1)
    return replace(found, loss=loss, batch_losses=batch_losses)
