"""Losses that are asked for beside λ̂, at the draws of the very same chains.

A witness looks at every fourth draw: it takes the probe's losses from what the chains have
evaluated anyway, and evaluates further data by a forward pass there. What it sees is kept as
deviations from w*, on the device, in at most `MAX_BYTES`: where more draws come, every second
record is forgotten, and only each second of those to come is made.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from phasewatch.monitor.config.measuring import SamplerConfig
from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.errors import MeasurementError, RefusedError
from phasewatch.monitor.core.estimates import Estimate
from phasewatch.monitor.sampling.engine import (
    Engine,
    Evaluation,
    FallingBack,
    InPlaceEngine,
    LoopEngine,
    VmapEngine,
    evaluate_losses,
)
from phasewatch.monitor.sampling.memory_budget import Plan, mebibytes, plan_memory
from phasewatch.monitor.sampling.posing import pose
from phasewatch.monitor.sampling.posterior import Problem
from phasewatch.monitor.sampling.terms import GIVEN, Count
from phasewatch.monitor.sampling.traces import Trace

logger = logging.getLogger("phasewatch.monitor.sampling")

MAX_BYTES = 2**27
"""What the records of all chains of a measurement may take together."""

MIN_ROOM = 64
"""Records of each chain that must fit: half of them may be forgotten, and a part is burn-in."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a witness saw of the living chains after burn-in, as deviations from w*, in nats.

    Attributes:
        probe: Losses of the probe, shape (chains, records, terms): of each term, or their mean.
        further: Losses of the further data, shape (chains, records, terms).
        weights: What each term of the further data counts in their mean; they sum to one.
        estimate: λ̂ of these chains.
    """

    probe: NDArray[Any]
    further: NDArray[Any]
    weights: NDArray[np.float64]
    estimate: Estimate


@dataclass(frozen=True, slots=True)
class Further:
    """What is asked for beside λ̂.

    Attributes:
        label: What the further data are called where they are given.
        batches: The further data: batches as the loss takes them.
        single: Whether single losses are needed, of both data; else the probe's mean will do.
        take: Called with the name of a part, and what was seen of its chains.
    """

    label: str
    batches: Sequence[Any]
    single: bool
    take: Callable[[str, Drawn], None]


@dataclass(frozen=True, slots=True)
class Beside:
    """The same, in one measurement.

    Attributes:
        asked: What is asked for.
        context: That of the measurement with the further data as its probe.
    """

    asked: Further
    context: MeasureContext

    def witness(
        self,
        problem: Problem,
        engine: Engine,
        config: SamplerConfig,
        count: Count | None,
        num_runs: int,
        whole: bool,
    ) -> Witness:
        """What looks at the draws of some runs. Call it within the engine's session.

        Args:
            problem: What is sampled.
            engine: By which its losses are computed.
            config: How.
            count: How the terms of a mean loss are counted.
            num_runs: Runs that are sampled side by side.
            whole: Whether each draw's evaluation is of the whole probe.

        Raises:
            RefusedError: The further data cannot be measured safely; says why and what to do.
            MeasurementError: Their loss at w* is not finite.
        """
        single, label = self.asked.single, self.asked.label
        if single and problem.count is not GIVEN:
            raise RefusedError(
                "the loss gives one mean for a batch of several samples, and the influence of each "
                "sample is wanted; return the loss of each sample, shape (B,)"
            )
        try:
            beside = pose(self.context, problem.layout.names, count)
            plan = plan_memory(beside, config, num_runs)
        except (RefusedError, MeasurementError) as error:
            raise type(error)(f"{label}: {error}") from error
        other = _forward_engine(engine, beside, plan)
        witness = Witness(problem, engine, beside, other, single=single, whole=whole)
        size = witness.row_bytes * config.num_chains * num_runs
        witness.room = MAX_BYTES // size
        if witness.room < MIN_ROOM:
            raise RefusedError(
                f"{label}: the losses of one draw of {num_runs * config.num_chains} chains "
                f"take {mebibytes(size)}, and {MIN_ROOM} of them must fit into "
                f"{mebibytes(MAX_BYTES)}; give fewer samples at a time"
            )
        return witness


class Witness:
    """Losses of the probe and of further data where chains are.

    Args:
        problem: What is sampled.
        engine: By which its losses are computed.
        beside: The problem of the further data.
        other: By which theirs are.
        single: Whether the probe's losses are kept one by one; else their mean.
        whole: Whether each draw's evaluation is of the whole probe.

    Attributes:
        room: Records that may be kept.
    """

    def __init__(
        self,
        problem: Problem,
        engine: Engine,
        beside: Problem,
        other: Engine,
        *,
        single: bool,
        whole: bool,
    ) -> None:
        self._problem, self._engine = problem, engine
        self._beside, self._other = beside, other
        self._single, self._whole = single, whole
        self.room = MIN_ROOM
        at_center = problem.displacements(1)
        probe, further = evaluate_losses(engine, problem, at_center), self._further(at_center)
        self._probe_weights = _weights(problem, probe)
        self._weights = _weights(beside, further)
        self._center = torch.cat(probe, dim=1), torch.cat(further, dim=1)
        self._num_probe = self._center[0].shape[1] if single else 1
        self._num_further = self._center[1].shape[1]

    @property
    def row_bytes(self) -> int:
        """Bytes of one record of one chain."""
        return (self._num_probe + self._num_further) * self._center[0].element_size()

    def look(self, x: Tensor, found: Evaluation) -> Tensor:
        """Deviations of the losses from w*, probe first; shape (chains, columns).

        Args:
            x: Where the chains are, shape (chains, d).
            found: What the engine evaluated there.
        """
        terms = found.terms
        if not self._whole:
            terms = torch.cat(evaluate_losses(self._engine, self._problem, x), dim=1)
        probe = terms - self._center[0]
        if not self._single:
            probe = (probe @ self._probe_weights)[:, None]
        return torch.cat([probe, torch.cat(self._further(x), dim=1) - self._center[1]], dim=1)

    def drawn(self, trace: Trace, burnin: int, alive: Sequence[bool], estimate: Estimate) -> Drawn:
        """What was seen of some chains, cut into probe and further data.

        Args:
            trace: Their records.
            burnin: Draws that are dropped.
            alive: Which of the chains live.
            estimate: λ̂ of these chains.
        """
        rows = trace.rows(burnin, alive, self._num_probe + self._num_further)
        place = self._num_probe
        weights = self._weights.cpu().double().numpy()
        return Drawn(rows[:, :, :place], rows[:, :, place:], weights, estimate)

    def _further(self, x: Tensor) -> list[Tensor]:
        with self._other.session():
            return evaluate_losses(self._other, self._beside, x)


def _weights(problem: Problem, terms: Sequence[Tensor]) -> Tensor:
    """What each term counts in the mean over all batches."""
    parts = [
        part.new_full((part.shape[1],), weight / part.shape[1])
        for part, weight in zip(terms, problem.weights, strict=True)
    ]
    return torch.cat(parts)


def _forward_engine(engine: Engine, problem: Problem, plan: Plan) -> Engine:
    """An engine for further data, of the kind that serves the probe if it fits.

    Only forward passes are asked of it. A loss that some weights do not enter is no fault here.
    """
    kinds = (engine.name, plan.engine)
    if "inplace" in kinds:
        return InPlaceEngine(problem)
    if "loop" in kinds:
        return LoopEngine(problem)

    def told(error: Exception) -> None:
        logger.info("further losses are taken chain by chain: vmap cannot trace them (%s)", error)

    return FallingBack(VmapEngine(problem, plan.width), LoopEngine(problem), told)
