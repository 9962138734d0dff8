"""Losses that draw random numbers: diffusion, VAEs, negative sampling, dropout in train mode.

Such a loss is not a function of the weights, and one draw of L(w*) enters λ̂ times nβ: an error
that no spread of chains shows. Wanted is the coefficient of the *expected* loss. So the probe is
repeated R times, each time with its own seed, the same ones at all weights:
L_R(w) = (1/R) Σ_r L(w; seed r) is a function, and tends to the expected loss. Its chains prefer
weights that happen to suit the R draws, by D = nβ ½ g'H⁻¹g nats, g the error of the gradient at w*.
Evaluated on R fresh draws at the same points, the loss exceeds its value at w* by 2D more than on
the old ones. So half of that difference is added to λ̂, and what is added is paid into the error.

One frozen draw is another quantity: on a small diffusion model three of them gave 8.5, 12.7 and
16.4 where the averaged loss gives 19.2. It can be asked for, and the estimate then says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from phasewatch.monitor.core.context import LossFn, MeasureContext
from phasewatch.monitor.core.work import Steps
from phasewatch.monitor.isolation.rng import RngState
from phasewatch.monitor.sampling.batches import Draw
from phasewatch.monitor.sampling.engine import Engine, evaluate
from phasewatch.monitor.sampling.posterior import Problem
from phasewatch.monitor.sampling.probe_loss import checked_terms

FRESH = 4
"""Fresh draws for each of those that the chains saw: what is paid shall be their optimism, not the
chance of the fresh ones. It costs a few hundredths of a measurement."""

FRESH_SEED = 2**20
"""Seeds of the draws that no chain has seen."""

RELATIVE, ABSOLUTE = 1e-4, 1e-7
"""Differences between two evaluations that rounding may make on an accelerator."""


class Seeded:
    """A loss that draws, as a function of weights, batch and seed.

    Args:
        loss_fn: The loss.
        devices: Accelerators whose generators it may draw from.
    """

    noise_is_shared = True
    """All chains of one vmap get the same draws."""

    def __init__(self, loss_fn: LossFn, devices: Sequence[torch.device]) -> None:
        self._loss_fn = loss_fn
        self._rng = RngState(devices)

    def __call__(self, model: nn.Module, batch: Draw) -> Any:
        """The loss of the batch under its seed."""
        self._rng.seed(batch.seed)
        return self._loss_fn(model, batch.batch)


def drawing_loss(loss_fn: LossFn | None) -> LossFn | None:
    """The loss as it is trained on, where it was frozen to be a function."""
    return getattr(loss_fn, "unfrozen", None) or loss_fn


def draws(problem: Problem) -> bool:
    """Whether the loss at w* differs from one evaluation to the next.

    Both in one step: where a measurement goes on after a pause, the generators are seeded anew.
    """
    first, second = _look(problem), _look(problem)
    return not all(
        torch.allclose(one, other, rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True)
        for one, other in zip(first, second, strict=True)
    )


def _look(problem: Problem) -> list[Tensor]:
    """Loss terms at w*, batch by batch. With a graph: some losses differentiate inside."""
    found = []
    with torch.enable_grad():
        for index in range(len(problem.batches)):
            weights = problem.weights_of(problem.center().requires_grad_())
            losses = problem.call({**problem.constants(), **weights}, problem.batch(index))
            found.append(checked_terms(losses).detach())
    return found


def spread_at_center(problem: Problem, looks: int = 16) -> Steps[float]:
    """Standard deviation of one evaluation of L_n(w*), in nats; a step is one of them."""
    rng = RngState(_accelerators(problem.params.values()))
    shares = [weight / sum(problem.weights) for weight in problem.weights]
    losses = []
    for seed in range(looks):
        rng.seed(seed)
        means = [float(part.double().mean()) for part in _look(problem)]
        means = [mean * problem.share(index) for index, mean in enumerate(means)]
        here = math.fsum(map(math.prod, zip(shares, means, strict=True)))
        losses.append(math.fsum(problem.together.each(here)))
        yield
    return float(torch.tensor(losses, dtype=torch.float64).std())


def repeated(context: MeasureContext, num: int, first: int = 0) -> MeasureContext:
    """The context with each probe batch under `num` seeds, from seed `first` on.

    Args:
        context: The measurement's context.
        num: Copies of the probe.
        first: Seed of the first copy.
    """
    if context.loss_fn is None:
        return context
    loss = Seeded(context.loss_fn, _accelerators(context.params.values()))
    batches = [
        Draw(batch, first + seed * len(context.batches) + index)
        for seed in range(num)
        for index, batch in enumerate(context.batches)
    ]
    return replace(context, loss_fn=loss, batches=batches)


def _accelerators(tensors: Iterable[Tensor]) -> list[torch.device]:
    return sorted({t.device for t in tensors if t.device.type != "cpu"}, key=str)


def optimism(
    engine: Engine, fresh_engine: Engine, problems: tuple[Problem, Problem], x: Tensor
) -> Steps[Tensor]:
    """K on fresh draws less K on those of the chains; shape (chains,), in nats.

    A step is one evaluation of all these draws.

    Args:
        engine: Of the draws of the chains; its session is in force.
        fresh_engine: Of the fresh ones.
        problems: The two.
        x: Where, shape (chains, d).
    """
    excess = []
    sessions = (nullcontext, fresh_engine.session)
    for runner, problem, session in zip((engine, fresh_engine), problems, sessions, strict=True):
        losses = []
        for points in (x, torch.zeros_like(x)):
            with session():
                losses.append(evaluate(runner, problem, points, range(len(problem.batches))).loss)
            yield
        excess.append(losses[0] - losses[1])
    return excess[1] - excess[0]
