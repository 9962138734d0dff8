"""Draws, until they say enough or the work for them is used up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from phasewatch.monitor.config.measuring import SamplerConfig
from phasewatch.monitor.core.work import Steps
from phasewatch.monitor.sampling.burnin import plateau
from phasewatch.monitor.sampling.chains import ChainGroup, extend_together
from phasewatch.monitor.sampling.diagnostics import Summary, summarise
from phasewatch.monitor.sampling.one_by_one import OneByOne
from phasewatch.monitor.sampling.pace import Pace


def draw(runs: Sequence[ChainGroup], pace: Pace) -> Steps[list[tuple[Summary | None, int]]]:
    """Draw; then draw on while more draws would mend an estimate and there is work left for it.

    Returns:
        For each run, what its draws say, and how many were dropped as burn-in.
    """
    targets = [pace.first(run) for run in runs]
    began = pace.stopwatch.seconds
    while True:
        yield from _extend(runs, targets)
        judged = [_judged(run, pace.config) for run in runs]
        wanted = [
            pace.next(run, summary, target, pace.stopwatch.seconds - began)
            for run, (summary, _), target in zip(runs, judged, targets, strict=True)
        ]
        if wanted == targets:
            return judged
        targets = wanted


def _extend(runs: Sequence[ChainGroup], targets: Sequence[int]) -> Steps[None]:
    if not isinstance(runs[0], OneByOne):
        yield from extend_together(runs, targets)
        return
    for run, target in zip(runs, targets, strict=True):
        if len(run.record) < target:
            yield from run.extend(target)


def _judged(run: ChainGroup, config: SamplerConfig) -> tuple[Summary | None, int]:
    burnin = _burnin(run, config)
    return _summarise(run, burnin), burnin


def _burnin(run: ChainGroup, config: SamplerConfig) -> int:
    """Draws until both sides are on their plateau."""
    if config.burnin_fraction is None:
        excess, alive, outside = run.record.excess(), np.array(run.alive), np.array(run.outside)
        return max(plateau(excess[alive & side]) for side in (outside, ~outside))
    return min(int(len(run.record) * config.burnin_fraction), max(len(run.record) - 1, 0))


def _summarise(run: ChainGroup, burnin: int) -> Summary | None:
    if not any(run.alive) or len(run.record) == 0:
        return None
    alive = run.alive
    return summarise(
        run.n_beta * run.record.excess()[alive],
        burnin,
        run.record.virial.after(burnin, alive),
        run.record.work.mean(burnin, alive),
        run.inflation(burnin),
        run.descent,
        [beyond for beyond, lives in zip(run.outside, alive, strict=True) if lives],
    )
