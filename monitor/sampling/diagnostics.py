"""Whether a number may be trusted: its error, its convergence, and the status they make.

Error. The standard error joins three estimates, stderr² = between² + mcse² + (drift/2)². The
spread of the chain means has only C − 1 degrees of freedom and is too small too often; the Monte
Carlo error from autocorrelations is blind to what no chain has seen yet; and what λ̂ gained over the
last doubling of the draws, it may gain again. Without the last term the stated 95 % interval held
the long-run value in 90 to 93 % of the estimates that pass the checks (150 points of deep linear
nets, 128 to 1024 draws), with it in 94 to 96 %.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from arviz_stats.base.array import array_stats
from numpy.typing import NDArray

from phasewatch.monitor.core.types import EstimateStatus
from phasewatch.monitor.sampling.bias import Inflation

Draws = NDArray[np.float64]

MAX_VIRIAL = 1.15
MIN_VIRIAL, MAX_DEGREE = 0.4, 2.2
"""Where the loss is a square along the chains (degree 2), directions out of equilibrium are either
flat or not filled yet, and nothing tells which. If they are the greater part, as the virial says,
λ̂ may be far too low. With products of weights (degree 3 to 9) a low virial comes from directions
along which the others may grow: λ̂ is right to some per cent there at a virial of 0.1."""

FULL_VIRIAL, MAX_FILLING = 0.85, 0.05
"""Below the first, in such a loss, λ̂ may rise for a long time yet: it must not have risen by more
than the second over the last doubling of the draws, give or take its error."""

MAX_RELATIVE_STDERR = 0.12
"""Two standard errors are then within a quarter of λ̂."""

MAX_DRIFT = 0.15
"""Largest share of λ̂ that the last doubling of the draws may have changed."""

MAX_INFLATION = 0.15
"""Largest predicted share of λ̂ that is heat from the finite step or from minibatch noise."""

MIN_SAMPLES_PER_LAMBDA = 4.0
NUM_SIGMAS = 2.0
"""A check refuses only what is beyond its limit by more than this many of its own errors."""

NOT_BY_DRAWS = frozenset({"probe", "inflated"})
"""Weaknesses that more draws do not mend."""


@dataclass(frozen=True, slots=True)
class Descent:
    """How far the first order at w* explains K = L − L(w*) on the chains.

    Attributes:
        gradient_norm: |∇L_n(w*)|.
        first_order: nβ E[∇L_n(w*)·(w − w*)]. In a bowl with its bottom beside w* it is twice the
            fall to the bottom, on a plane the whole of λ̂, at a saddle about zero.
    """

    gradient_norm: float = 0.0
    first_order: float = 0.0


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
) -> Summary:
    """Summary of nβ K along the chains.

    Args:
        excess: nβ (L − L(w*)) of the finite chains, shape (chains, draws), burn-in included.
        burnin: Draws to drop at the start of each chain.
        virial: V after burn-in, shape (chains, records).
        work: Mean of x·nβ∇L after burn-in.
        inflation: Predicted excess of λ̂.
        descent: What the first order at w* explains.
    """
    kept = excess[:, burnin:]
    value = float(kept.mean())
    scale = max(abs(value), 1e-30)
    change = _last_doubling(excess)
    return Summary(
        value=value,
        stderr=standard_error(kept),
        rhat=_arviz("rhat", kept) if len(kept) > 1 else math.nan,
        ess=_arviz("ess", kept, method="mean"),
        virial=float(virial.mean()) if virial.size else math.nan,
        virial_stderr=_between(virial.mean(axis=1)) if virial.size else math.nan,
        drift=float(change.mean()) / scale,
        drift_stderr=_between(change) / scale,
        degree=work / scale,
        inflation=inflation or Inflation(),
        descent=descent or Descent(),
    )


def standard_error(draws: Draws) -> float:
    """Standard error of the mean of `draws` (chains, draws): √(between² + mcse² + (drift/2)²)."""
    if np.ptp(draws) == 0.0:
        return 0.0
    within = _arviz("mcse", draws, method="mean")
    if not math.isfinite(within):
        within = float(draws.std()) / math.sqrt(draws.size)
    drift = float(_last_doubling(draws).mean())
    return math.hypot(within, _between(draws.mean(axis=1)), drift / 2)


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


def weaknesses(summary: Summary, n_samples: int) -> dict[str, str]:
    """What speaks against λ̂, by short name; see `NOT_BY_DRAWS` for those that stay."""
    found: dict[str, str] = {}
    heat = summary.inflation
    share = (heat.step + heat.batch) / max(summary.value, 1e-30)
    if share > MAX_INFLATION:
        cause, remedy = "the finite step", "lower step_size"
        if heat.batch > heat.step:
            cause, remedy = "minibatch noise", "lower step_size, or raise batch_size"
        found["inflated"] = (
            f"{share:.0%} of λ̂ is predicted to be heat, most of it from {cause} (limit "
            f"{MAX_INFLATION:.0%}); {remedy}"
        )
    if not summary.relative_stderr < MAX_RELATIVE_STDERR:
        found["stderr"] = (
            f"relative standard error {summary.relative_stderr:.1%} is not below "
            f"{MAX_RELATIVE_STDERR:.0%}"
        )
    slack = NUM_SIGMAS * summary.virial_stderr
    is_square = summary.degree < MAX_DEGREE
    if summary.virial - slack > MAX_VIRIAL:
        found["heated"] = (
            f"virial {summary.virial:.2f} is above {MAX_VIRIAL}: the chains are too hot; lower "
            "step_size"
        )
    if is_square and summary.virial + slack < MIN_VIRIAL:
        found["virial"] = (
            f"virial {summary.virial:.2f} is below {MIN_VIRIAL}: most directions are flat, or not "
            "filled yet"
        )
    elif (
        is_square
        and summary.virial + slack < FULL_VIRIAL
        and summary.drift - summary.drift_stderr > MAX_FILLING
    ):
        found["filling"] = (
            f"virial {summary.virial:.2f} is below {FULL_VIRIAL} and λ̂ rises, by "
            f"{summary.drift:.0%} over the last doubling of the draws: soft directions are still "
            "being filled"
        )
    if abs(summary.drift) - NUM_SIGMAS * summary.drift_stderr > MAX_DRIFT:
        found["drift"] = (
            f"the last doubling of the draws changed λ̂ by {summary.drift:+.0%} (limit "
            f"{MAX_DRIFT:.0%}): still moving"
        )
    if n_samples < MIN_SAMPLES_PER_LAMBDA * summary.value:
        found["probe"] = (
            f"probe too small: its n = {n_samples} is below "
            f"{MIN_SAMPLES_PER_LAMBDA:g} λ̂ = {MIN_SAMPLES_PER_LAMBDA * summary.value:.0f}; "
            "measure on more samples"
        )
    return found


def is_negative(summary: Summary) -> bool:
    """Whether λ̂ is below zero by more than its error."""
    return summary.value + NUM_SIGMAS * summary.stderr < 0.0


def _cause_of_fall(summary: Summary) -> str:
    """Which order of the loss at w* the chains fell along."""
    norm, first = summary.descent.gradient_norm, summary.descent.first_order
    told = f"gradient norm {norm:.2g} nats; nβ ∇L(w*)·(w − w*) = {first:.3g} on the chains"
    if first <= summary.value / 2:
        return f"they still move downhill ({told})"
    return (
        f"the slope at w* does not explain it ({told}): the loss curves downwards, as at a saddle "
        "or at the edge of a steeper fall"
    )


def judge(
    summary: Summary | None, n_samples: int, num_diverged: int, num_chains: int
) -> tuple[EstimateStatus, str]:
    """Status and reason.

    Args:
        summary: What the chains tell; None where all diverged.
        n_samples: n, terms of the loss.
        num_diverged: Chains that diverged.
        num_chains: Chains in all.
    """
    if summary is None or not math.isfinite(summary.value):
        return EstimateStatus.DIVERGED, (
            f"all {num_chains} chains left the neighbourhood of w* and nothing finite is left; "
            "lower step_size, or raise localization"
        )
    lost = []
    if num_diverged:
        lost.append(f"{num_diverged} of {num_chains} chains diverged and were excluded")
    if is_negative(summary):
        low = (
            f"λ̂ = {summary.value:.3g} ± {summary.stderr:.2g} is below zero: the weights are not a "
            f"local minimum of the probe loss; {_cause_of_fall(summary)}"
        )
        return EstimateStatus.NEGATIVE, "; ".join([*lost, low])
    texts = [*lost, *weaknesses(summary, n_samples).values()]
    if texts:
        return EstimateStatus.UNCONVERGED, "; ".join(texts)
    return EstimateStatus.OK, ""
