"""Which engine runs, decided by trying.

`vmap` must be able to trace the loss, its gradient must equal the plain one, and it must not be
slower. The verdict is remembered for each kind of problem.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from phasewatch.monitor.core.errors import RefusedError
from phasewatch.monitor.core.together import in_all, in_any
from phasewatch.monitor.core.work import Steps, T
from phasewatch.monitor.isolation.places import told_with_place
from phasewatch.monitor.sampling.batches import describe
from phasewatch.monitor.sampling.engine import (
    Engine,
    EngineName,
    Evaluation,
    FallingBack,
    InPlaceEngine,
    LoopEngine,
    VmapEngine,
    evaluate,
)
from phasewatch.monitor.sampling.memory_budget import Plan
from phasewatch.monitor.sampling.posterior import Problem

logger = logging.getLogger("phasewatch.monitor.sampling")

SLOW_SECONDS = 0.05
"""Where two plain gradients take this long, one timing of each engine tells which is faster."""

AS_EXACT = 1.5
"""How much further from the truth than the plain gradient vmap may be, in low precision."""

MIN_TURNS, MAX_TURNS, RACE_SECONDS = 2, 12, 0.1
"""How long the engines race: on a busy machine a few turns may all be disturbed."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which engine to use for one kind of problem, and why.

    Attributes:
        engine: "vmap", "loop" or "inplace".
        reason: Why, in words.
        width: Chains that vmap takes at a time.
        backward: The loop must use `.backward()`.
    """

    engine: EngineName
    reason: str
    width: int = 1
    backward: bool = False

    def build(self, problem: Problem, told: Callable[[Exception], None]) -> Engine:
        """The engine, for this problem.

        Args:
            problem: What to evaluate.
            told: Called when `vmap` was chosen, and could not trace a later evaluation.
        """
        if self.engine == "vmap":
            loop = LoopEngine(problem, backward=self.backward)
            return FallingBack(VmapEngine(problem, self.width), loop, told)
        if self.engine == "inplace":
            return InPlaceEngine(problem)
        return LoopEngine(problem, backward=self.backward)


class Verdicts:
    """Verdicts by (probe, shapes, training flags): each kind of problem is tried once."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], Verdict] = {}

    def engine_for(self, problem: Problem, plan: Plan) -> Steps[Engine]:
        """The engine for this problem: tried, checked and timed the first time it is seen.

        A step is one try of one engine.

        Raises:
            RefusedError: The loss does not react to the copied weights, or "vmap" was demanded
                and is not possible.
        """
        key = (*_key(problem), plan)
        if not in_all(problem.together, key in self._known):
            verdict = yield from _decide(problem, plan)
            self._known[key] = verdict
            logger.info("LLC chains run as %s: %s", verdict.engine, verdict.reason)

        def fall_back(error: Exception) -> None:
            if plan.engine == "vmap":
                raise RefusedError(_impossible(_untraceable(error))) from error
            reason = _now_and_then(error)
            self._known[key] = Verdict("loop", reason, backward=self._known[key].backward)
            logger.info("LLC chains run as loop from now on: %s", reason)

        return self._known[key].build(problem, fall_back)


def _key(problem: Problem) -> tuple[Any, ...]:
    flags = tuple(module.training for module in problem.loss.model.modules())
    shapes = tuple(describe(batch) for batch in problem.batches)
    device = str(problem.device)
    return (
        problem.layout,
        shapes,
        flags,
        problem.written,
        problem.moved,
        problem.copies_batch,
        device,
    )


def _decide(problem: Problem, plan: Plan) -> Steps[Verdict]:
    x = _perturbed(problem, plan.width)
    if plan.engine == "inplace":
        _check_reaction(InPlaceEngine(problem), problem, x[:1])
        return Verdict("inplace", plan.reason)
    loop = working_loop(problem, x[:1])
    yield
    if plan.engine == "loop":
        return Verdict("loop", plan.reason, backward=loop.backward)
    few = x[:2]
    expected, looped = _timed(lambda: evaluate(loop, problem, few, [0]))
    yield
    vmapped = VmapEngine(problem, plan.width)
    fault, batched = _timed(lambda: _fault(vmapped, loop, few, expected))
    yield
    if fault is not None:
        if plan.engine == "vmap":
            raise RefusedError(_impossible(fault))
        return Verdict("loop", fault, backward=loop.backward)
    if plan.engine == "vmap":
        return Verdict("vmap", plan.reason, plan.width, loop.backward)
    num_chains = len(few)
    failures: list[Exception] = []
    if looped <= SLOW_SECONDS:
        racing = FallingBack(vmapped, loop, failures.append)
        with racing.session():
            looped, batched = _race(
                lambda: evaluate(loop, problem, x, [0]), lambda: evaluate(racing, problem, x, [0])
            )
        num_chains = plan.width
    if failures:
        return Verdict("loop", _now_and_then(failures[0]), backward=loop.backward)
    times = (
        f"{num_chains} chains take {batched * 1e3:.2f} ms a step by vmap, {looped * 1e3:.2f} ms in "
        f"a loop; {plan.reason}"
    )
    if batched <= looped:
        return Verdict("vmap", times, plan.width, loop.backward)
    return Verdict("loop", times, backward=loop.backward)


def _timed(call: Callable[[], T]) -> tuple[T, float]:
    """What it returns, and the seconds it took."""
    started = time.perf_counter()
    found = call()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return found, time.perf_counter() - started


def check_gradient(problem: Problem, plan: Plan) -> None:
    """Check that a gradient can be had, and that the loss reacts to the copied weights.

    Raises:
        RefusedError: It cannot, or does not; says what to do.
    """
    x = _perturbed(problem, 1)
    if plan.engine == "inplace":
        _check_reaction(InPlaceEngine(problem), problem, x)
    else:
        working_loop(problem, x)


def _perturbed(problem: Problem, num_chains: int) -> Tensor:
    """Displacements from w*, different for each chain; no generator is asked for them."""
    here = sum(float(part.double().square().sum()) for part in problem.params.values())
    squares = math.fsum(problem.together.each(here))
    scale = 0.01 * math.sqrt(squares / problem.num_parameters) + 1e-3
    x = problem.displacements(num_chains)
    index = torch.arange(x.numel(), device=x.device, dtype=x.dtype)
    return index.mul_(12.9898).add_(78.233).sin_().mul_(scale).view(x.shape)


def _check_reaction(engine: Engine, problem: Problem, x: Tensor) -> None:
    """Refuse a loss whose gradient is zero on every batch."""
    with engine.session():
        for index in range(len(problem.batches)):
            if in_any(problem.together, bool(engine.batch(x, index)[1].any())):
                return
    raise RefusedError(
        "the gradient of the probe loss is zero beside the current weights: the loss does not "
        "react to them. It may read the live model through a closure; give loss_fn=, a function "
        "loss_fn(model, batch) that uses only the model it is given"
    )


def working_loop(problem: Problem, x: Tensor | None = None) -> LoopEngine:
    """A loop by `autograd.grad` if that yields a gradient, else by `.backward()`.

    Args:
        problem: What to evaluate.
        x: Where to try it, shape (1, d); None takes a place beside w*.

    Raises:
        RefusedError: Neither does, or the loss does not react to the copied weights.
    """
    if x is None:
        x = _perturbed(problem, 1)
    failure = RuntimeError("no way to do it was tried")
    for loop in (LoopEngine(problem), LoopEngine(problem, backward=True)):
        try:
            _, grad = loop.batch(x, 0)
        except RuntimeError as error:  # reentrant checkpointing refuses autograd.grad
            failure = error
        else:
            if not in_any(problem.together, bool(grad.any())):
                _check_reaction(loop, problem, x)
            return loop
    reason = told_with_place(failure)
    if "is a view" in str(failure) and "modified inplace" in str(failure):
        # Raised by autograd when all is over: no line of the user's is in its trace.
        reason = (
            "it writes into weights that it is differentiated by, as a step does that copies them "
            f"into a target network; give a loss_fn= without that ({type(failure).__name__})"
        )
    raise RefusedError(f"the loss cannot be differentiated: {reason}") from failure


def _fault(engine: VmapEngine, loop: LoopEngine, x: Tensor, expected: Evaluation) -> str | None:
    """Why vmap cannot be used; None if it can."""
    problem = engine.problem
    try:
        with engine.session():
            found = evaluate(engine, problem, x, [0])
    except Exception as error:
        return _untraceable(error)
    if found.terms.shape != expected.terms.shape:
        shapes = f"{tuple(found.terms.shape)}, not {tuple(expected.terms.shape)}"
        return f"vmap gives loss terms of shape {shapes}"
    gaps = _gaps(found, expected)
    name = max(gaps, key=lambda key: gaps[key])
    if gaps[name] <= tolerance_of(problem) or _as_exact(problem, loop, x, found, expected):
        return None
    return f"the {name} by vmap differs from the plain one by {gaps[name]:.1e} of its size"


def _untraceable(error: Exception) -> str:
    return f"vmap cannot trace the loss ({told_with_place(error)})"


def _now_and_then(error: Exception) -> str:
    return f"{_untraceable(error)}, though only in some evaluations"


def _impossible(fault: str) -> str:
    return f"engine='vmap' is not possible here: {fault}; use engine='auto'"


def _gaps(found: Evaluation, truth: Evaluation) -> dict[str, float]:
    """Relative differences; infinite where one of them is not finite."""
    pairs = {"loss": (found.terms, truth.terms), "gradient": (found.grad, truth.grad)}
    gaps = {n: float((a - b).norm() / b.norm().clamp_min(1e-30)) for n, (a, b) in pairs.items()}
    return {name: gap if math.isfinite(gap) else math.inf for name, gap in gaps.items()}


def _as_exact(
    problem: Problem, loop: LoopEngine, x: Tensor, found: Evaluation, expected: Evaluation
) -> bool:
    """Whether vmap is about as close to an evaluation in fp64 as the plain gradient is.

    In bf16 two right answers may be further from each other than any tolerance that would still
    see a wrong one. Autocast leaves fp64 alone.
    """
    if problem.precision <= torch.finfo(torch.float32).eps:
        return False
    try:
        exact = problem.in_double()
        reference = LoopEngine(exact, backward=loop.backward)
        truth = evaluate(reference, exact, x.double(), [0])
    except Exception:  # the model or its loss cannot do without its own dtypes
        return False
    plain, vectorised = _gaps(expected, truth), _gaps(found, truth)
    limit = tolerance_of(problem)
    return all(vectorised[name] <= max(AS_EXACT * plain[name], limit) for name in plain)


def tolerance_of(problem: Problem) -> float:
    """Relative difference that rounding alone may make between two orders of summation."""
    return max(1e-3, 4 * problem.precision)


def _race(first: Callable[[], Any], second: Callable[[], Any]) -> tuple[float, float]:
    """Best of some alternating runs of each, in seconds: the best is what others disturb least."""
    best = [math.inf, math.inf]
    begun = time.perf_counter()
    for turn in range(MAX_TURNS):
        if turn >= MIN_TURNS and time.perf_counter() - begun > RACE_SECONDS:
            break
        for index, runner in enumerate((first, second)):
            best[index] = min(best[index], _timed(runner)[1])
    return best[0], best[1]
