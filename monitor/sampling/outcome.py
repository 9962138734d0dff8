"""From chains that are done to an `Estimate`."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from phasewatch.monitor.config.measuring import SamplerConfig
from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.estimates import Estimate
from phasewatch.monitor.core.work import Steps
from phasewatch.monitor.sampling import estimators
from phasewatch.monitor.sampling.chains import ChainGroup
from phasewatch.monitor.sampling.diagnostics import Summary
from phasewatch.monitor.sampling.engine import Engine
from phasewatch.monitor.sampling.examination import Examination
from phasewatch.monitor.sampling.noise import optimism
from phasewatch.monitor.sampling.pointwise import pointwise
from phasewatch.monitor.sampling.posterior import Problem
from phasewatch.monitor.sampling.verdict import judge

MAX_ROUNDING = 0.1
"""Share of λ̂ that the last digit of the loss may be worth."""


def paid(
    run: ChainGroup, summary: Summary | None, engine: Engine, fresh: Problem
) -> Steps[Summary | None]:
    """λ̂ with the optimism of chains that knew their draws taken out, and paid into the error.

    Args:
        run: The chains.
        summary: What they say; None if all are lost.
        engine: How gradients are computed on fresh draws of the loss.
        fresh: The problem with these draws.
    """
    if summary is None:
        return None
    found = yield from optimism(
        run.landscape.engine, engine, (run.landscape.problem, fresh), run.chains.x
    )
    gaps = found * (run.n_beta / 2)
    added = gaps[run.alive] if len(gaps) == len(run.alive) else gaps
    spread = float(added.std()) / math.sqrt(len(added)) if len(added) > 1 else 0.0
    share = float(added.mean())
    stderr = math.hypot(summary.stderr, share, spread)
    return replace(summary, value=summary.value + share, stderr=stderr)


def _rounding(run: ChainGroup, summary: Summary | None) -> dict[str, str]:
    """A large constant in the loss, in which what the chains differ by is lost."""
    if summary is None:
        return {}
    here = run.landscape
    level = abs(here.baseline(here.all))
    grain = level * torch.finfo(here.problem.layout.state_dtype).eps
    if run.n_beta * grain <= MAX_ROUNDING * abs(summary.value):
        return {}
    return {
        "rounding": f"the loss at w* is {level:.3g} nats, so that its last digit is worth "
        f"{run.n_beta * grain:.2g} nats of λ̂: take the constant out of the loss, or compute it "
        "in float64"
    }


def outcome(
    context: MeasureContext,
    config: SamplerConfig,
    run: ChainGroup,
    summary: Summary | None,
    burnin: int,
    seconds: float,
    examination: Examination,
) -> Estimate:
    """The estimate that a run and its summary make.

    Args:
        context: What was measured.
        config: How.
        run: The chains.
        summary: What they say; None if all are lost.
        burnin: Draws dropped from each.
        seconds: What it took.
        examination: What the loss is.
    """
    here = run.landscape
    num_chains, num_diverged = len(run.alive), run.alive.count(False)
    faults = {**examination.faults, **_rounding(run, summary)}
    status, reason = judge(summary, context.n_samples, num_diverged, num_chains, faults)
    terms = pointwise(
        run.record.terms, burnin, here.center_terms, run.n_beta, context.n_samples, here.total
    )
    nan = math.nan
    init_loss = here.baseline(here.all)
    value = summary.value if summary else nan
    mean_loss = init_loss + value / run.n_beta
    return Estimate(
        step=context.step,
        lambda_hat=value,
        lambda_stderr=summary.stderr if summary else nan,
        nu_hat=terms.nu_hat if terms else None,
        nu_stderr=terms.nu_stderr if terms else None,
        functional_variance=terms.functional_variance if terms else None,
        waic=terms.waic if terms else None,
        waic_stderr=terms.waic_stderr if terms else None,
        wbic=estimators.wbic(mean_loss, run.n_beta, context.n_samples) if summary else None,
        init_loss=init_loss,
        chain_loss=run.record.chain_loss()[run.alive][:, burnin:],
        n_beta=run.n_beta,
        n_samples=context.n_samples,
        step_size=run.integrator.step_size,
        localization=run.localization,
        n_data=context.n_data,
        sample_unit=context.sample_unit,
        counted=examination.counted,
        noise=examination.noise,
        lambda_within=summary.sides.within if summary else nan,
        lambda_outside=summary.sides.outside if summary else nan,
        num_chains=num_chains,
        num_draws=len(run.record) - burnin,
        num_burnin=burnin,
        rhat=summary.rhat if summary else nan,
        ess=summary.ess if summary else nan,
        num_diverged=num_diverged,
        num_resets=run.num_resets,
        virial=summary.virial if summary else nan,
        drift=summary.drift if summary else nan,
        step_inflation=summary.inflation.step if summary else nan,
        batch_inflation=summary.inflation.batch if summary else nan,
        acceptance=run.acceptance(burnin),
        sharpness=run.sharpness,
        sampler=config.scheme,
        engine=run.landscape.engine.name,
        warm=run.warm,
        probe_mode=context.probe_mode,
        status=status,
        reason=reason,
        duration_seconds=seconds,
    )
