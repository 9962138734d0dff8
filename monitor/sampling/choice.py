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

from phasewatch.monitor.errors import RefusedError
from phasewatch.monitor.sampling.batches import describe
from phasewatch.monitor.sampling.engine import (
    NO_GRADIENT,
    Engine,
    EngineName,
    LoopEngine,
    VmapEngine,
    Wanted,
)
from phasewatch.monitor.sampling.posterior import Problem

logger = logging.getLogger("phasewatch.monitor.sampling")

SLOW_SECONDS = 0.5
"""Engines are not timed against each other when two plain gradients already take this long."""

MIN_TURNS, MAX_TURNS, RACE_SECONDS = 3, 12, 0.2
"""How long the engines race: on a busy machine a few turns may all be disturbed."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which engine to use for one kind of problem, and why.

    Attributes:
        engine: "vmap" or "loop".
        backward: The loop must use `.backward()`.
        reason: Why, in words.
    """

    engine: EngineName
    backward: bool
    reason: str

    def build(self, problem: Problem) -> Engine:
        """The engine, for this problem."""
        if self.engine == "vmap":
            return VmapEngine(problem)
        return LoopEngine(problem, backward=self.backward)


class Verdicts:
    """Verdicts by (probe, shapes, training flags): each kind of problem is tried once."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], Verdict] = {}

    def engine_for(self, problem: Problem, wanted: Wanted, num_chains: int) -> Engine:
        """The engine for this problem: tried, checked and timed the first time it is seen.

        Raises:
            RefusedError: The loss does not react to the copied weights, or "vmap" was demanded
                and is not possible.
        """
        key = (*_key(problem), wanted, num_chains)
        if key not in self._known:
            verdict = _decide(problem, wanted, num_chains)
            self._known[key] = verdict
            logger.info("LLC chains run as %s: %s", verdict.engine, verdict.reason)
        return self._known[key].build(problem)


def _key(problem: Problem) -> tuple[Any, ...]:
    flags = tuple(module.training for module in problem.loss.model.modules())
    shapes = tuple(describe(batch) for batch in problem.batches)
    device = str(problem.center.device)
    return (problem.layout, shapes, flags, problem.written, problem.copies_batch, device)


def _decide(problem: Problem, wanted: Wanted, num_chains: int) -> Verdict:
    points = _perturbed(problem, num_chains)
    loop = _reacting_loop(problem, points[0])
    if wanted == "loop":
        return Verdict("loop", loop.backward, "the configuration asks for it")
    started = time.perf_counter()
    expected = loop.batch(points[:2], 0)
    seconds = time.perf_counter() - started
    vmapped = VmapEngine(problem)
    fault = _fault(vmapped, points[:2], expected)
    if fault is not None:
        if wanted == "vmap":
            raise RefusedError(f"engine='vmap' is not possible here: {fault}; use engine='auto'")
        return Verdict("loop", loop.backward, fault)
    if wanted == "vmap":
        return Verdict("vmap", loop.backward, "the configuration asks for it")
    if seconds > SLOW_SECONDS:
        return Verdict("vmap", loop.backward, "its gradient equals the plain one")
    with vmapped.session():
        looped, batched = _race(lambda: loop.batch(points, 0), lambda: vmapped.batch(points, 0))
    times = f"{batched * 1e3:.2f} ms a step by vmap, {looped * 1e3:.2f} ms by a loop over chains"
    return Verdict("vmap" if batched <= looped else "loop", loop.backward, times)


def _perturbed(problem: Problem, num_chains: int) -> Tensor:
    """Points near w*, different for each chain; no generator is asked for them."""
    center = problem.center
    scale = 0.01 * float(center.square().mean().sqrt()) + 1e-3
    index = torch.arange(num_chains * len(center), device=center.device, dtype=center.dtype)
    return center + scale * torch.sin(12.9898 * index + 78.233).view(num_chains, -1)


def _reacting_loop(problem: Problem, point: Tensor) -> LoopEngine:
    """The plain engine in the form that yields a gradient, or the reason why there is none."""
    loop = _working_loop(problem, point)
    for index in range(len(problem.batches)):
        _, grad = loop.one(point, index)
        if grad is not None and bool(grad.any()):
            return loop
    raise RefusedError(
        "the gradient of the probe loss is zero beside the current weights: the loss does not "
        "react to them. It may read the live model through a closure; give loss_fn=, a function "
        "loss_fn(model, batch) that uses only the model it is given"
    )


def _working_loop(problem: Problem, point: Tensor) -> LoopEngine:
    """`autograd.grad` if it yields a gradient, else `.backward()`."""
    failure: RuntimeError | None = None
    for loop in (LoopEngine(problem), LoopEngine(problem, backward=True)):
        try:
            _, grad = loop.one(point, 0)
        except RuntimeError as error:  # reentrant checkpointing refuses autograd.grad
            failure = error
        else:
            if grad is not None:
                return loop
    raise RefusedError(
        NO_GRADIENT if failure is None else f"the loss cannot be differentiated: {failure}"
    ) from failure


def _fault(engine: VmapEngine, points: Tensor, expected: tuple[Tensor, Tensor]) -> str | None:
    """Why vmap cannot be used; None if it can."""
    try:
        with engine.session():
            found = engine.batch(points, 0)
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        return f"vmap cannot trace the loss ({type(error).__name__}: {first[:200]})"
    if found[0].shape != expected[0].shape:
        shapes = f"{tuple(found[0].shape)}, not {tuple(expected[0].shape)}"
        return f"vmap gives loss terms of shape {shapes}"
    for name, value, truth in zip(("loss", "gradient"), found, expected, strict=True):
        gap = float((value - truth).norm() / truth.norm().clamp_min(1e-30))
        if not gap <= tolerance_of(engine.problem):
            return f"the {name} by vmap differs from the plain one by {gap:.1e} of its size"
    return None


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
            started = time.perf_counter()
            runner()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            best[index] = min(best[index], time.perf_counter() - started)
    return best[0], best[1]
