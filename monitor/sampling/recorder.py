"""What is kept of each draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phasewatch.monitor.sampling.pointwise import TermSums
from phasewatch.monitor.sampling.traces import Trace

WITNESS_EVERY = 4
"""Neighbouring draws would say the same, and further data take a forward pass each time."""


class Recorder:
    """What is kept of each draw.

    Attributes:
        losses: Per draw, the loss of each chain.
        baselines: Per draw, L at w* on the very same batches: one number, or one for each chain.
        virial: V of each chain.
        work: x·nβ∇L(x) of each chain.
        acceptance: min(1, r) of each chain's step.
        euler: `inflation.euler_heat`.
        noise: `inflation.noise_heat`.
        terms: Sums of the loss terms, `TERM_BLOCK` draws each.
        witnessed: Losses that were asked for beside λ̂; see `witness`.
        witness_every: Draws from one of these records to the next.
    """

    def __init__(self) -> None:
        self.losses: list[list[float]] = []
        self.baselines: list[Any] = []
        self.virial = Trace()
        self.work = Trace()
        self.acceptance = Trace()
        self.euler = Trace()
        self.noise = Trace()
        self.terms: list[TermSums] = []
        self.witnessed = Trace()
        self.witness_every = WITNESS_EVERY

    def __len__(self) -> int:
        return len(self.losses)

    def excess(self) -> NDArray[np.float64]:
        """K = L − L(w*), paired draw by draw; shape (chains, draws), in nats."""
        baselines = np.asarray(self.baselines, dtype=np.float64)
        return self.chain_loss() - baselines.T

    def chain_loss(self) -> NDArray[np.float64]:
        """L of each chain and draw, shape (chains, draws), in nats."""
        losses: NDArray[np.float64] = np.asarray(self.losses, dtype=np.float64)
        return losses.T

    @classmethod
    def beside(cls, records: Sequence[Recorder], alive: Sequence[bool]) -> Recorder:
        """One record of chains that ran alone, as long as the shortest that lived.

        What a lost chain did not draw is NaN.
        """
        living = [record for record, lived in zip(records, alive, strict=True) if lived] or records
        length = min(map(len, living))
        joined = cls()
        for draw in range(length):
            drawn = [(record, draw < len(record)) for record in records]
            joined.losses.append([r.losses[draw][0] if there else math.nan for r, there in drawn])
            joined.baselines.append(
                [r.baselines[draw] if there else math.nan for r, there in drawn]
            )
        for name in ("virial", "work", "acceptance", "euler", "noise"):
            traces = [getattr(record, name) for record in records]
            setattr(joined, name, Trace.beside(traces, length))
        joined.witness_every = max(record.witness_every for record in living)
        witnessed = [record.witnessed for record in records]
        joined.witnessed = Trace.beside(witnessed, length, joined.witness_every)
        joined.terms = [sums for record in living for sums in record.terms]
        return joined
