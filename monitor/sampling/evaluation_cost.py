"""What one evaluation of the probe takes, found by a few of them: costs are predicted from it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.work import Work
from phasewatch.monitor.sampling.engine_choice import working_loop
from phasewatch.monitor.sampling.posing import pose

ONCE_SECONDS = 0.2
"""A first evaluation that takes longer is taken at its word; a shorter one pays for what is set up
at the first call, or for a busy moment, and is done again."""

MORE_SECONDS, MORE = 0.1, 5
"""It is done again until this much time, or so many times, have passed."""

HESSIAN_PRODUCT = 2.5
"""A product of the Hessian with a vector, in gradients."""

FORWARD = 0.4
"""A forward pass, in gradients."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationCost:
    """Seconds of one evaluation of the whole probe.

    Attributes:
        gradient_seconds: Forward and backward pass.
        weight_seconds: One pass over the weights.
        kept_bytes: What a forward pass keeps for its backward pass.
    """

    gradient_seconds: float
    weight_seconds: float
    kept_bytes: int = 0

    def of(self, work: Work) -> float:
        """Seconds that some work is expected to take.

        t = t_∇ (n_∇ + 0.4 n_forward + 2.5 n_Hv) + t_w n_weights
        """
        gradients = work.gradients + FORWARD * work.forwards
        gradients += HESSIAN_PRODUCT * work.hessian_products
        return self.gradient_seconds * gradients + self.weight_seconds * work.weight_passes


def evaluation_cost(context: MeasureContext) -> EvaluationCost:
    """Time one gradient of the probe at w*.

    Args:
        context: A copy of the model, the loss and the probe.

    Raises:
        RefusedError: There is no loss, or no gradient of it; says why and what to do.
        MeasurementError: The loss at w* is not finite.
    """
    problem = pose(context)
    loop = working_loop(problem)
    x = problem.displacements(1)
    seconds = _best(lambda: loop.batch(x, 0))
    return EvaluationCost(
        gradient_seconds=seconds / problem.weights[0],
        weight_seconds=weight_seconds(context),
        kept_bytes=problem.kept_bytes,
    )


def weight_seconds(context: MeasureContext) -> float:
    """Time one pass over the weights: their norms."""

    def norms() -> None:
        for tensor in context.params.values():
            torch.linalg.vector_norm(tensor)

    return _best(norms)


def _best(call: Callable[[], object]) -> float:
    """Seconds of a call, the best of some where it is short."""
    best = _timed(call)
    spent = 0.0
    for _ in range(MORE if best < ONCE_SECONDS else 0):
        again = _timed(call)
        best, spent = min(best, again), spent + again
        if spent > MORE_SECONDS:
            break
    return best


def _timed(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - begin
