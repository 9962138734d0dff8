"""Whether a loss is what λ̂ needs: a function of the weights, and a mean over terms of known number.

Looked at once for each kind of measurement, before the first chain. What is found is the same for
every seed; a fault stands in the reason of each estimate, and none is OK with it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from phasewatch.monitor.config.measuring import SamplerConfig
from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.together import in_any
from phasewatch.monitor.core.work import Steps
from phasewatch.monitor.sampling import noise
from phasewatch.monitor.sampling.batches import Draw
from phasewatch.monitor.sampling.engine import Evaluation, evaluate
from phasewatch.monitor.sampling.engine_choice import working_loop
from phasewatch.monitor.sampling.posing import pose
from phasewatch.monitor.sampling.posterior import Problem
from phasewatch.monitor.sampling.terms import Count, Cut, candidates, cuts

logger = logging.getLogger("phasewatch.monitor.sampling")

FROZEN = "frozen"
AVERAGED = "averaged"


@dataclass(frozen=True, slots=True)
class Examination:
    """What was found.

    Attributes:
        count: How to count the terms of a mean loss; None if the loss gives them.
        counted: The same in words, for the estimate.
        noise: "" for a function; "averaged" or "frozen" for a loss that draws.
        spread: Standard deviation of one evaluation of L_n(w*), in nats.
        faults: What is wrong, by short name.
    """

    count: Count | None = None
    counted: str = ""
    noise: str = ""
    spread: float = 0.0
    faults: Mapping[str, str] = field(default_factory=dict)

    def apply(self, context: MeasureContext, config: SamplerConfig) -> MeasureContext:
        """The context whose loss is a function."""
        if not self.noise:
            return context
        context = replace(context, loss_fn=noise.drawing_loss(context.loss_fn))
        return noise.repeated(context, self.repeats(config))

    def repeats(self, config: SamplerConfig) -> int:
        """Evaluations of the probe that make one of L_n."""
        return config.noise_draws if self.noise == AVERAGED else 1

    def afresh(self, context: MeasureContext, config: SamplerConfig) -> MeasureContext | None:
        """The same with draws that no chain has seen; None where nothing is averaged."""
        if self.noise != AVERAGED:
            return None
        context = replace(context, loss_fn=noise.drawing_loss(context.loss_fn))
        return noise.repeated(context, noise.FRESH * config.noise_draws, noise.FRESH_SEED)


def examine(context: MeasureContext, config: SamplerConfig) -> Steps[Examination]:
    """Look at the loss at w*: a few evaluations of the probe.

    Args:
        context: The measurement's context.
        config: How the posterior is sampled.

    Returns:
        What was found.

    Raises:
        RefusedError: It cannot be measured safely; says why and what to do.
        MeasurementError: The loss at w* is not finite.
    """
    drawing = replace(context, loss_fn=noise.drawing_loss(context.loss_fn))
    problem = pose(drawing)
    yield
    found = Examination()
    is_noisy = in_any(problem.together, noise.draws(problem))
    yield
    if is_noisy:
        spread = yield from noise.spread_at_center(problem)
        found = replace(found, noise=FROZEN if config.noise == FROZEN else AVERAGED, spread=spread)
        problem = pose(noise.repeated(drawing, 1))
        yield
        logger.info("the loss draws random numbers; standard deviation of L(w*): %.3g", spread)
    return (yield from _counted(problem, found))


def _counted(problem: Problem, found: Examination) -> Steps[Examination]:
    """How terms are counted, tried on one batch cut in two."""
    words = problem.count.how
    if problem.left_out:
        words += f"; {problem.left_out} batches without a term left out"
    if problem.gives_terms:
        return replace(found, counted=words)
    cut = yield from _cut(problem)
    if cut is None:
        return replace(found, count=problem.count, counted=f"{words}, not tried")
    if cut.is_sum:
        size = abs(cut.losses[0])
        return replace(
            found,
            count=problem.count,
            counted=words,
            faults={
                "sum": f"the loss is a sum over its samples ({size:.3g} nats on one batch; twice "
                "the samples give twice the loss), and λ̂ is that of their mean; return the mean, "
                "or the loss of each sample"
            },
        )
    plain = [_plain(batch) for batch in problem.probe]
    for count in candidates(plain):
        if cut.agrees_with(count):
            return replace(found, count=count, counted=f"{count.how}, tried on a cut")
    return replace(found, count=problem.count, counted=words, faults=_cut_fault(problem, cut))


def _cut_fault(problem: Problem, cut: Cut) -> dict[str, str]:
    """A loss that is no mean of its parts: only where the probe is cut does it matter."""
    if len(problem.batches) == 1:
        return {}
    whole, first, second = cut.losses
    return {
        "cut": f"how the probe is cut into batches changes the loss: {whole:.4g} nats on a batch, "
        f"{first:.4g} and {second:.4g} on its halves, which no count of its terms joins; return "
        "the loss of each term, or (sum, count), or give the probe as one batch"
    }


def _plain(batch: Any) -> Any:
    return batch.batch if isinstance(batch, Draw) else batch


def _cut(problem: Problem) -> Steps[Cut | None]:
    """Loss and gradient of one batch and of its parts; None where no batch can be cut.

    At w* itself, where a fit may be perfect and every loss zero, nothing could be told apart, so it
    is looked at a little beside.
    """
    if any(isinstance(batch, Draw) for batch in problem.probe):
        return None  # parts draw other numbers than the whole
    together = problem.together
    for pieces in cuts(problem.probe):
        # Of these, all processes evaluate the same.
        shares = (1.0 / together.size,) * 3 if problem.shares else ()
        three = replace(problem, batches=pieces, weights=(1.0,) * 3, shares=shares)
        looks: list[Evaluation] = []
        try:
            loop = working_loop(three)
            for index in range(3):
                looks.append(evaluate(loop, three, _beside(three), [index]))
                yield
        except Exception as error:  # a loss may insist on the size of its batch
            logger.debug("the loss cannot take a batch of another size: %s", error)
            continue
        if all(torch.isfinite(look.loss).all() for look in looks):
            losses = tuple(float(look.loss) for look in looks)
            grads = torch.cat([look.grad for look in looks])
            three_losses = (losses[0], losses[1], losses[2])
            return Cut(pieces[1:], three_losses, grads, together.total)
    return None


def _beside(problem: Problem) -> torch.Tensor:
    """A displacement of a hundredth of the weights' size; no generator is asked for it."""
    center = problem.center()
    squares = problem.together.total(center.double().square().sum())
    scale = 0.01 * math.sqrt(float(squares) / problem.num_parameters) + 1e-3
    index = torch.arange(center.numel(), device=center.device, dtype=center.dtype)
    return index.mul_(12.9898).add_(78.233).sin_().mul_(scale)[None]
