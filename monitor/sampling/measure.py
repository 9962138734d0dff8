"""One measurement of the LLC, from a context to an `Estimate`."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from phasewatch.monitor.config import SamplerConfig
from phasewatch.monitor.errors import RefusedError
from phasewatch.monitor.isolation import guard, measure_context
from phasewatch.monitor.sampling import diagnostics, estimators
from phasewatch.monitor.sampling.burnin import plateau
from phasewatch.monitor.sampling.chains import MIN_DRAWS, OneByOne, Run
from phasewatch.monitor.sampling.choice import Verdicts
from phasewatch.monitor.sampling.diagnostics import Summary
from phasewatch.monitor.sampling.integrators import Baoab, Integrator, Sgld
from phasewatch.monitor.sampling.memory import plan_memory
from phasewatch.monitor.sampling.pointwise import pointwise
from phasewatch.monitor.sampling.posterior import Problem, pose
from phasewatch.monitor.types import Estimate, EstimateStatus, LossFn, MeasureContext

logger = logging.getLogger("phasewatch.monitor.sampling")

SLOW_GROWTH = 4
"""Chains that have not settled go on up to this many times `num_draws`: what is not in equilibrium
by then will not be soon. Noise alone is worth `max_draws`, where that promises to suffice."""

WARM_SHARE = 0.5
"""Share of `num_draws` after which warm chains look at their error for the first time."""

MAX_WARM_BYTES = 2**28
"""Chains larger than this are not kept between two measurements."""


@dataclass(slots=True)
class Memory:
    """What one measurement can tell the next of the same model.

    Attributes:
        verdicts: Which engine to use.
        sharpest: Unit vector near the sharpest direction, shape (d,).
        sharpness: The sharpness found there.
        displacement: Where the chains ended, relative to the weights of then, shape (chains, d).
        heat: Their mean virial there.
    """

    verdicts: Verdicts = field(default_factory=Verdicts)
    sharpest: Tensor | None = None
    sharpness: float | None = None
    displacement: Tensor | None = None
    heat: float = math.nan


def estimate_llc(
    model: nn.Module,
    batches: Sequence[Any],
    loss_fn: LossFn,
    *,
    n_samples: int,
    config: SamplerConfig | None = None,
    parameters: Sequence[str] | None = None,
) -> Estimate:
    """Estimate the local learning coefficient of `model` where it stands.

    λ̂ = nβ (E_w[L_n(w)] − L_n(w*)) under p(w) ∝ exp(−nβ L_n(w) − γ/2 ‖w − w*‖²).

    The model is measured on a copy in eval mode. It is not changed, nor is anything else that
    training could notice: gradients, buffers, modes, global random generators. Only where the
    chains do not fit beside it do they run in the memory of its weights, which are put back bit
    for bit, also after an exception.

    Args:
        model: The model at w*.
        batches: The probe: batches as `loss_fn` takes them. All of them together are one data
            set; how it is cut does not change the result.
        loss_fn: `loss_fn(model, batch)` -> per-sample losses (B,), or their mean, in nats.
        n_samples: n, the number of terms that the loss averages over all batches.
        config: How to sample; the defaults need no tuning.
        parameters: Names or shell patterns; restricts sampling to these, the rest stay at w*.

    Returns:
        The estimate with its error, diagnostics and status. One that did not converge is marked.

    Raises:
        RefusedError: It cannot be measured safely; says why and what to do.
        MeasurementError: The loss at w* is not finite.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 1)
        >>> x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
        >>> batch = (x, model(x).detach())
        >>> def loss(model, batch):
        ...     return 0.5 * (model(batch[0]) - batch[1]).square().sum(dim=1)
        >>> estimate = estimate_llc(model, [batch], loss, n_samples=500)
        >>> estimate.status.value, abs(estimate.lambda_hat - 2.0) < 4 * estimate.lambda_stderr
        ('ok', True)
    """
    config = config or SamplerConfig()
    with guard(model, seed=config.seed):
        context = measure_context(
            model,
            step=0,
            loss_fn=loss_fn,
            batches=tuple(batches),
            n_samples=n_samples,
            seed=config.seed,
            lend=True,
        )
        return measure_llc(context, config, parameters=parameters)


def measure_llc(
    context: MeasureContext,
    config: SamplerConfig,
    *,
    parameters: Sequence[str] | None = None,
    memory: Memory | None = None,
) -> Estimate:
    """Estimate the LLC of a copied model. Draws from `context.generator` only.

    Args:
        context: What to measure, and by when.
        config: How to sample.
        parameters: Names or shell patterns of the parameters to sample; None takes all.
        memory: What an earlier measurement learnt; filled by this one.

    Raises:
        RefusedError: It cannot be measured safely; says why and what to do.
        MeasurementError: The loss at w* is not finite.
    """
    started = time.monotonic()
    keeps_chains = memory is not None and config.warm_start
    memory = memory if memory is not None else Memory()
    problem = pose(context, parameters)
    n_beta = _n_beta(context, config)
    plan = plan_memory(problem, config)
    engine = memory.verdicts.engine_for(problem, plan)
    run = (OneByOne if engine.name == "inplace" else Run)(
        problem,
        engine,
        _integrator(config, n_beta),
        n_beta=n_beta,
        localization=config.localization,
        generator=context.generator,
        adaptive=config.step_size is None,
        num_chains=config.num_chains,
        pick=_picker(problem, config, context.generator),
        deadline=started + context.deadline_seconds,
    )
    with engine.session():
        run.prepare(memory.sharpest, memory.sharpness)
        if memory.displacement is not None:
            run.resume(memory.displacement, memory.heat)
        summary, burnin = _sample(run, config, context.n_samples)
        estimate = _estimate(context, config, run, summary, burnin, started)
        memory.displacement = None
        if keeps_chains and _sound(run, estimate):
            memory.displacement, memory.heat = run.chains.x, run.heat()
    if run.latest is not None:
        memory.sharpest, memory.sharpness = run.latest.top.clone(), run.sharpness
    return estimate


def _sound(run: Run, estimate: Estimate) -> bool:
    """Whether the chains may serve the next measurement, and are small enough to be kept."""
    x = run.chains.x
    fits = len(x) == len(run.alive) and x.numel() * x.element_size() <= MAX_WARM_BYTES
    return fits and all(run.alive) and estimate.status is not EstimateStatus.NEGATIVE


def _first_look(config: SamplerConfig, warm: bool) -> int:
    """Draws after which the chains are judged for the first time."""
    if not warm:
        return config.num_draws
    return max(math.ceil(WARM_SHARE * config.num_draws), min(MIN_DRAWS, config.num_draws))


def check_llc(
    context: MeasureContext,
    config: SamplerConfig,
    *,
    parameters: Sequence[str] | None = None,
    memory: Memory | None = None,
) -> None:
    """Everything that `measure_llc` may refuse, without running a chain.

    Raises:
        RefusedError: It cannot be measured safely; says why and what to do.
        MeasurementError: The loss at w* is not finite.
    """
    memory = memory if memory is not None else Memory()
    problem = pose(context, parameters)
    _n_beta(context, config)
    _picker(problem, config, context.generator)
    plan = plan_memory(problem, config)
    memory.verdicts.engine_for(problem, plan)


def _n_beta(context: MeasureContext, config: SamplerConfig) -> float:
    if context.n_samples < 1 or (config.n_beta is None and context.n_samples < 3):
        raise RefusedError(
            f"n_samples is {context.n_samples}; nβ = n / log n needs at least 3 loss terms. Give "
            "the number of terms that the probe loss averages over, or n_beta="
        )
    return config.n_beta or estimators.default_n_beta(context.n_samples)


def _integrator(config: SamplerConfig, n_beta: float) -> Integrator:
    step = config.step_size
    if config.scheme == "sgld":
        return Sgld(n_beta, config.localization, step)
    return Baoab(
        n_beta,
        config.localization,
        step=None if step is None else math.sqrt(step),
        horizon=config.num_draws,
    )


def _picker(
    problem: Problem, config: SamplerConfig, generator: torch.Generator
) -> Callable[[], Sequence[int]] | None:
    """Which batches a step uses; None is all of them."""
    total, wanted = len(problem.batches), config.batch_size
    if wanted is None or wanted >= total:
        return None
    if config.scheme == "baoab":
        raise RefusedError(
            f"batch_size={wanted} with scheme='baoab': underdamped chains heat up on noisy "
            "gradients; leave batch_size out, or take scheme='sgld'"
        )
    device = generator.device

    def pick() -> Sequence[int]:
        order = torch.randperm(total, generator=generator, device=device)
        chosen: list[int] = order[:wanted].tolist()
        return chosen

    return pick


def _sample(run: Run, config: SamplerConfig, n_samples: int) -> tuple[Summary | None, int]:
    """Draw; then draw on while more draws could mend the estimate and there is time for it."""
    target = _first_look(config, run.warm)
    while True:
        run.extend(target)
        burnin = _burnin(run, config)
        summary = _summarise(run, burnin)
        if summary is None or len(run.record) < target:
            return summary, burnin
        wanted = max(
            _draws_wanted(summary, n_samples, config, target), _first_look(config, run.warm)
        )
        if wanted <= target:
            return summary, burnin
        target = wanted


def _draws_wanted(summary: Summary, n_samples: int, config: SamplerConfig, drawn: int) -> int:
    """How many draws would mend the estimate; `drawn` or less if none would."""
    weak = diagnostics.weaknesses(summary, n_samples).keys() - {"probe"}
    if diagnostics.is_negative(summary):
        return 0
    if not weak:
        mixes_slowly = summary.virial < diagnostics.SLOW_VIRIAL and drawn < 2 * config.num_draws
        return min(2 * drawn, config.max_draws) if mixes_slowly else 0
    longer = min(2 * drawn, SLOW_GROWTH * config.num_draws, config.max_draws)
    if weak != {"stderr"}:
        return longer
    # The error falls with the root of the draws; a fifth more, as the error has an error too.
    excess = summary.relative_stderr / diagnostics.MAX_RELATIVE_STDERR
    needed = 1.2 * drawn * excess**2
    return math.ceil(needed) if needed <= config.max_draws else longer


def _burnin(run: Run, config: SamplerConfig) -> int:
    if config.burnin_fraction is None:
        return plateau(run.record.excess()[run.alive])
    return min(int(len(run.record) * config.burnin_fraction), max(len(run.record) - 1, 0))


def _summarise(run: Run, burnin: int) -> Summary | None:
    if not any(run.alive) or len(run.record) == 0:
        return None
    alive = run.alive
    return diagnostics.summarise(
        run.n_beta * run.record.excess()[alive], burnin, run.record.virial(burnin)[alive]
    )


def _estimate(
    context: MeasureContext,
    config: SamplerConfig,
    run: Run,
    summary: Summary | None,
    burnin: int,
    started: float,
) -> Estimate:
    num_chains, num_diverged = len(run.alive), run.alive.count(False)
    status, reason = diagnostics.judge(summary, context.n_samples, num_diverged, num_chains)
    terms = pointwise(run.record.terms, burnin, run.center_terms, run.n_beta, context.n_samples)
    nan = math.nan
    init_loss = run.baseline(range(len(run.problem.batches)))
    value = summary.value if summary else nan
    mean_loss = init_loss + value / run.n_beta
    return Estimate(
        step=context.step,
        lambda_hat=value,
        lambda_stderr=summary.stderr if summary else nan,
        nu_hat=terms.nu_hat if terms else None,
        functional_variance=terms.functional_variance if terms else None,
        waic=terms.waic if terms else None,
        wbic=estimators.wbic(mean_loss, run.n_beta, context.n_samples) if summary else None,
        init_loss=init_loss,
        chain_loss=run.record.chain_loss()[run.alive][:, burnin:],
        n_beta=run.n_beta,
        n_samples=context.n_samples,
        step_size=run.integrator.step_size,
        localization=config.localization,
        n_data=context.n_data,
        sample_unit=context.sample_unit,
        num_chains=num_chains,
        num_draws=len(run.record) - burnin,
        num_burnin=burnin,
        rhat=summary.rhat if summary else nan,
        ess=summary.ess if summary else nan,
        num_diverged=num_diverged,
        num_resets=run.num_resets,
        virial=summary.virial if summary else nan,
        drift=summary.drift if summary else nan,
        sharpness=run.sharpness,
        sampler=config.scheme,
        engine=run.engine.name,
        warm=run.warm,
        probe_mode=context.probe_mode,
        status=status,
        reason=reason,
        duration_seconds=time.monotonic() - started,
    )
