"""What the draws say: λ̂, its error, and all that judges it; see `verdict` for the judgement.

Error. The standard error joins three estimates, stderr² = between² + mcse² + (drift/2)². The
spread of the chain means has only C − 1 degrees of freedom and is too small too often; the Monte
Carlo error from autocorrelations is blind to what no chain has seen yet; and what λ̂ gained over the
last doubling of the draws, it may gain again. Without the last term the stated 95 % interval held
the long-run value in 90 to 93 % of the estimates that pass the checks (150 points of deep linear
nets, 128 to 1024 draws), with it in 94 to 96 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from arviz_stats.base.array import array_stats
from numpy.typing import NDArray

from phasewatch.monitor.sampling.bias import Inflation

Draws = NDArray[np.float64]

NUM_SIGMAS = 2.0
"""Only what is beyond a limit by more than this many of its own errors counts."""

COVERAGE = 1.96
"""Standard errors within which the truth lies, 95 times of 100."""


@dataclass(frozen=True, slots=True)
class Descent:
    """How far the loss falls from w* along its gradient; the chains have no part in it.

    Attributes:
        gradient_norm: |∇L_n(w*)|.
        fall: Fall of nβ L + γ/2 ‖w − w*‖² to the bottom of the parabola along the gradient, in
            nats: (nβ |∇L|)² / 2κ, κ the curvature there; infinite where it curves downwards.
    """

    gradient_norm: float = 0.0
    fall: float = 0.0


@dataclass(frozen=True, slots=True)
class Sides:
    """What the chains from either side say of λ̂.

    Chains from w* fill the posterior from within, those from outside come down into it: the truth
    lies between the two means.

    Attributes:
        within: λ̂ of the chains from w*.
        within_stderr: Its standard error.
        outside: λ̂ of the chains from outside; NaN if there are none.
        outside_stderr: Its standard error.
    """

    within: float
    within_stderr: float
    outside: float = math.nan
    outside_stderr: float = math.nan

    @property
    def gap(self) -> float:
        """By how much the two differ."""
        return abs(self.outside - self.within)

    @property
    def falls(self) -> bool:
        """Whether λ̂ of the chains from w* is below zero by more than its error."""
        return self.within + NUM_SIGMAS * self.within_stderr < 0.0

    @property
    def gap_stderr(self) -> float:
        """Its standard error."""
        return math.hypot(self.within_stderr, self.outside_stderr)


@dataclass(frozen=True, slots=True)
class Summary:
    """λ̂ and everything that judges it.

    Attributes:
        value: λ̂.
        stderr: Its standard error.
        rhat: Rank-normalised split R-hat.
        ess: Effective sample size over all chains.
        virial: Mean of V.
        virial_stderr: Its standard error over chains.
        drift: Mean of the last half of the draws less that of the quarter before it, over |λ̂|:
            what the last doubling changed.
        drift_stderr: Its standard error over chains.
        degree: E[x·nβ∇L]/λ̂, the degree of the loss as a function of the displacement x: m if it
            is homogeneous of degree m.
        inflation: Predicted excess of λ̂ from the finite step and from minibatch noise.
        descent: What the first order at w* explains.
        sides: What the chains of either side say.
    """

    value: float
    stderr: float
    rhat: float
    ess: float
    virial: float
    virial_stderr: float
    drift: float
    drift_stderr: float
    degree: float
    inflation: Inflation = field(default_factory=Inflation)
    descent: Descent = field(default_factory=Descent)
    sides: Sides = field(default_factory=lambda: Sides(math.nan, math.nan))

    @property
    def relative_stderr(self) -> float:
        """Standard error over |λ̂|."""
        return self.stderr / max(abs(self.value), 1e-30)


def summarise(
    excess: Draws,
    burnin: int,
    virial: Draws,
    work: float,
    inflation: Inflation | None = None,
    descent: Descent | None = None,
    outside: Sequence[bool] = (),
) -> Summary:
    """Summary of nβ K along the chains.

    Args:
        excess: nβ (L − L(w*)) of the finite chains, shape (chains, draws), burn-in included.
        burnin: Draws to drop at the start of each chain.
        virial: V after burn-in, shape (chains, records).
        work: Mean of x·nβ∇L after burn-in.
        inflation: Predicted excess of λ̂.
        descent: What the first order at w* explains.
        outside: Which of these chains came from outside; empty for none.
    """
    kept = excess[:, burnin:]
    sides = _sides(kept, np.asarray(outside or [False] * len(kept)))
    # Where w* is no minimum, chains from outside have no business there, and only delay the news.
    falls = sides.falls
    value = sides.within if falls else float(kept.mean())
    scale = max(abs(value), 1e-30)
    change = _last_doubling(excess)
    return Summary(
        value=value,
        stderr=sides.within_stderr if falls else _with_gap(standard_error(kept), sides),
        rhat=_arviz("rhat", kept) if len(kept) > 1 else math.nan,
        ess=_arviz("ess", kept, method="mean"),
        virial=float(virial.mean()) if virial.size else math.nan,
        virial_stderr=_between(virial.mean(axis=1)) if virial.size else math.nan,
        drift=float(change.mean()) / scale,
        drift_stderr=_between(change) / scale,
        degree=work / scale,
        inflation=inflation or Inflation(),
        descent=descent or Descent(),
        sides=sides,
    )


def _sides(kept: Draws, outside: NDArray[np.bool_]) -> Sides:
    within, beyond = kept[~outside], kept[outside]
    found = []
    for side in (within, beyond):
        found += [float(side.mean()), standard_error(side)] if len(side) else [math.nan] * 2
    return Sides(*found)


def standard_error(draws: Draws) -> float:
    """Standard error of the mean of `draws` (chains, draws): √(between² + mcse² + (drift/2)²)."""
    if np.ptp(draws) == 0.0:
        return 0.0
    within = _arviz("mcse", draws, method="mean")
    if not math.isfinite(within):
        within = float(draws.std()) / math.sqrt(draws.size)
    drift = float(_last_doubling(draws).mean())
    return math.hypot(within, _between(draws.mean(axis=1)), drift / 2)


def _with_gap(stderr: float, sides: Sides) -> float:
    """An error that reaches beyond both sides, however many chains there are on each.

    The truth lies between them, and the spread of many chains would shrink below the gap. Sides
    that differ by chance alone are closer than that in 19 of 20 cases.
    """
    return max(stderr, sides.gap / 2 / COVERAGE) if math.isfinite(sides.gap) else stderr


def _last_doubling(draws: Draws) -> Draws:
    """Mean of the last half of each chain less that of the quarter before it."""
    half = draws.shape[1] // 2
    before = draws[:, half // 2 : half] if half else draws
    change: Draws = draws[:, half:].mean(axis=1) - before.mean(axis=1)
    return change


def _between(means: Draws) -> float:
    """Standard error of the mean of chain means; zero where there is one chain only."""
    return float(means.std(ddof=1)) / math.sqrt(len(means)) if len(means) > 1 else 0.0


def _arviz(name: str, draws: Draws, **options: str) -> float:
    """A statistic of arviz; NaN where there is too little to compute it from."""
    if draws.shape[1] < 4 or np.ptp(draws) == 0.0:
        return math.nan
    with np.errstate(all="ignore"):
        return float(getattr(array_stats, name)(draws, chain_axis=0, draw_axis=1, **options))
