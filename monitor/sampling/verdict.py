"""Whether a number may be trusted: what speaks against it, its status, and the reason."""

from __future__ import annotations

import math
from collections.abc import Mapping

from phasewatch.monitor.core.estimates import EstimateStatus
from phasewatch.monitor.sampling.diagnostics import NUM_SIGMAS, Summary

MAX_VIRIAL = 1.15
"""Mean of V above which the chains are too hot."""

MAX_GAP = 0.25
"""Share of λ̂ by which the chains from w* and those from outside may differ. The truth lies between
them, so an OK is off by half of that at most."""

MAX_RELATIVE_STDERR = 0.1
"""Two standard errors are then within a fifth of λ̂."""

MAX_DRIFT = 0.15
"""Largest share of λ̂ that the last doubling of the draws may have changed."""

MAX_INFLATION = 0.15
"""Largest predicted share of λ̂ that is heat from the finite step or from minibatch noise."""

MIN_SAMPLES_PER_LAMBDA = 4.0
MIN_FALL = 1.0
"""Nats by which nβ L falls along the gradient at w* where the slope is a cause of its own."""

NOT_BY_DRAWS = frozenset({"probe", "inflated", "one-sided"})
"""Weaknesses that more draws do not mend."""


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
    sides = summary.sides
    if not math.isfinite(sides.gap):
        found["one-sided"] = (
            "no chains came from outside, so nothing tells what those from w* have not reached "
            "yet; take num_chains of at least 2, and a deadline that lets them come down"
        )
    elif sides.gap - NUM_SIGMAS * sides.gap_stderr > MAX_GAP * abs(summary.value):
        found["apart"] = (
            f"chains from w* say {sides.within:.3g}, chains from outside {sides.outside:.3g}: they "
            "have not met; raise max_draws and max_seconds, or localization"
        )
    slack = NUM_SIGMAS * summary.virial_stderr
    if summary.virial - slack > MAX_VIRIAL:
        found["heated"] = (
            f"virial {summary.virial:.2f} is above {MAX_VIRIAL}: the chains are too hot; lower "
            "step_size"
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
    """Whether λ̂ of the chains from w* is below zero by more than its error."""
    return summary.sides.falls


def _cause_of_fall(summary: Summary) -> str:
    """Which order of the loss at w* leads downhill; the same for all chains from one point."""
    norm, fall = summary.descent.gradient_norm, summary.descent.fall
    told = f"gradient norm {norm:.2g} nats"
    if fall >= MIN_FALL:
        how_far = f"by {fall:.3g} nats" if math.isfinite(fall) else "without a bottom"
        return (
            f"the weights still move downhill ({told}; along the gradient alone nβ L falls "
            f"{how_far}); measure again when training has gone on"
        )
    return (
        f"the slope at w* does not explain it ({told}; along the gradient nβ L falls by "
        f"{fall:.2g} nats): the loss curves downwards, as at a saddle"
    )


def judge(
    summary: Summary | None,
    n_samples: int,
    num_diverged: int,
    num_chains: int,
    faults: Mapping[str, str] | None = None,
) -> tuple[EstimateStatus, str]:
    """Status and reason.

    Args:
        summary: What the chains tell; None where all diverged.
        n_samples: n, terms of the loss.
        num_diverged: Chains that diverged.
        num_chains: Chains in all.
        faults: What is wrong with the loss itself, by short name: told first.
    """
    if summary is None or not math.isfinite(summary.value):
        return EstimateStatus.DIVERGED, (
            f"all {num_chains} chains left the neighbourhood of w* and nothing finite is left; "
            "lower step_size, or raise localization"
        )
    lost = list((faults or {}).values())
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
