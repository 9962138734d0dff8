"""One measurement of the LLC, from a context to an `Estimate`."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from phasewatch.monitor.config.monitor import SamplerConfig
from phasewatch.monitor.core.errors import RefusedError
from phasewatch.monitor.core.types import (
    Estimate,
    EstimateStatus,
    LossFn,
    MeasureContext,
    Steps,
    Work,
    run_through,
)
from phasewatch.monitor.isolation import guard, measure_context
from phasewatch.monitor.sampling import diagnostics, estimators
from phasewatch.monitor.sampling.burnin import plateau
from phasewatch.monitor.sampling.chains import OneByOne, Run, extend_together
from phasewatch.monitor.sampling.diagnostics import Summary
from phasewatch.monitor.sampling.engine import Engine
from phasewatch.monitor.sampling.engine_choice import Verdicts, check_gradient
from phasewatch.monitor.sampling.examination import Examination, examine
from phasewatch.monitor.sampling.integrators import Integrator
from phasewatch.monitor.sampling.memory_budget import Plan, plan_memory
from phasewatch.monitor.sampling.noise import optimism
from phasewatch.monitor.sampling.overdamped import RmspropSgld, Sgld
from phasewatch.monitor.sampling.pace import Pace, first_look
from phasewatch.monitor.sampling.pointwise import pointwise
from phasewatch.monitor.sampling.posterior import Layout, Problem, pose
from phasewatch.monitor.sampling.restrictions import (
    Restriction,
    Selection,
    mask_of,
    names_of,
    resolve,
)
from phasewatch.monitor.sampling.stopwatch import Stopwatch, paced
from phasewatch.monitor.sampling.underdamped import Baoab, LeimkuhlerMatthews

logger = logging.getLogger("phasewatch.monitor.sampling")

MAX_ROUNDING = 0.1
"""Share of λ̂ that the last digit of the loss may be worth."""

MAX_WARM_BYTES = 2**28
"""Chains larger than this are not kept between two measurements."""

OVERDAMPED: Mapping[str, Callable[[float, float, float | None], Integrator]] = {
    kind.name: kind for kind in (Sgld, RmspropSgld, LeimkuhlerMatthews)
}
"""Schemes without velocities, by name: they take (nβ, γ, ε)."""


@dataclass(slots=True)
class Memory:
    """What one measurement can tell the next of the same model.

    Attributes:
        verdicts: Which engine to use.
        examination: What the loss is.
        sharpest: Unit vector near the sharpest direction, shape (d,).
        sharpness: The sharpness found there.
        displacement: Where the chains ended, relative to the weights of then, shape (chains, d).
        heat: Their mean virial there.
        layout: How these vectors are cut: other parts measured beside this one change it.

    Example:
        >>> memory = Memory()  # given to each `measure_llc` of one run
    """

    verdicts: Verdicts = field(default_factory=Verdicts)
    examination: Examination | None = None
    sharpest: Tensor | None = None
    sharpness: float | None = None
    displacement: Tensor | None = None
    heat: float = math.nan
    layout: Layout | None = None

    @property
    def warm(self) -> bool:
        """Whether chains are kept from which the next measurement goes on."""
        return self.displacement is not None

    def move_to(self, layout: Layout) -> None:
        """Cut the vectors as `layout` is; what it lacks is dropped, what is new is zero."""
        old, self.layout = self.layout, layout
        if old is None or old == layout:
            return
        if self.sharpest is not None:
            self.sharpest = layout.adopt(old.cut(self.sharpest), self.sharpest)
        if self.displacement is not None:
            self.displacement = layout.adopt(old.cut(self.displacement), self.displacement)


def estimate_llc(
    model: nn.Module,
    batches: Sequence[Any],
    loss_fn: LossFn,
    *,
    n_samples: int,
    config: SamplerConfig | None = None,
    parameters: Restriction = None,
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
            set; how it is cut does not change the result, or the estimate says that it does.
            Batches of a part of the data give the data-refined coefficient of that part; compare
            parts at the same nβ.
        loss_fn: `loss_fn(model, batch)` -> per-sample losses (B,), their mean, or the pair (their
            sum, their number), in nats.
        n_samples: n, the number of terms that the loss averages over all batches.
        config: How to sample; the defaults need no tuning.
        parameters: Restricts sampling to a part of the weights, the rest stay at w*: names or
            shell patterns, modules, or masks by name; see `restrictions`.

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
    restrictions = {"": parameters}
    return estimate_refined_llc(
        model, batches, loss_fn, restrictions, n_samples=n_samples, config=config
    )[""]


def estimate_refined_llc(
    model: nn.Module,
    batches: Sequence[Any],
    loss_fn: LossFn,
    restrictions: Mapping[str, Restriction],
    *,
    n_samples: int,
    config: SamplerConfig | None = None,
) -> dict[str, Estimate]:
    """Estimate the weight-refined LLC of several parts of one model (Wang et al. 2024).

    Each part has chains of its own. Where all of them fit into memory side by side, they get their
    gradients from one vectorised call.

    Args:
        model: The model at w*; see `estimate_llc`.
        batches: The probe.
        loss_fn: `loss_fn(model, batch)`.
        restrictions: Parts by name, each as `parameters` of `estimate_llc`; None is the whole.
        n_samples: n.
        config: How to sample. The seed is that of all parts together.

    Returns:
        Estimates by name. The duration of each is its share of the whole.

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
        >>> parts = {"weight": "weight", "bias": "bias"}
        >>> found = estimate_refined_llc(model, [batch], loss, parts, n_samples=500)
        >>> bias = found["bias"]
        >>> abs(bias.lambda_hat - 0.5) < 4 * bias.lambda_stderr
        True
    """
    config = config or SamplerConfig()
    selections = {name: resolve(model, part) for name, part in restrictions.items()}
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
        return measure_refined_llc(context, config, selections)


def measure_llc(
    context: MeasureContext,
    config: SamplerConfig,
    *,
    parameters: Selection = None,
    memory: Memory | None = None,
) -> Estimate:
    """Estimate the LLC of a copied model. Draws from `context.generator` only.

    Args:
        context: What to measure, and by when.
        config: How to sample.
        parameters: Names, shell patterns or masks of the parameters to sample; None takes all.
        memory: What an earlier measurement learnt; filled by this one.

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
        >>> from phasewatch.monitor.isolation import guard, measure_context
        >>> with guard(model, seed=0):
        ...     context = measure_context(
        ...         model, step=0, loss_fn=loss, batches=[batch], n_samples=500
        ...     )
        ...     estimate = measure_llc(context, SamplerConfig())
        >>> abs(estimate.lambda_hat - 2.0) < 4 * estimate.lambda_stderr
        True
    """
    return run_through(llc_steps(context, config, parameters=parameters, memory=memory))


def llc_steps(
    context: MeasureContext,
    config: SamplerConfig,
    *,
    parameters: Selection = None,
    memory: Memory | None = None,
) -> Steps[Estimate]:
    """`measure_llc` in steps: it waits where `context.pause` says so.

    Args:
        context: The measurement's context.
        config: How the posterior is sampled.
        parameters: Names, modules or masks of the part; None is the whole model.
        memory: What an earlier measurement of the same model told.
    """
    memories = None if memory is None else {"": memory}
    found = yield from refined_llc_steps(context, config, {"": parameters}, memories)
    return found[""]


def measure_refined_llc(
    context: MeasureContext,
    config: SamplerConfig,
    selections: Mapping[str, Selection],
    memories: Mapping[str, Memory] | None = None,
) -> dict[str, Estimate]:
    """Estimate the LLC of parts of a copied model. Draws from `context.generator` only.

    Args:
        context: What to measure, and by when.
        config: How to sample.
        selections: Parts by name.
        memories: What an earlier measurement of each part learnt; filled by this one.

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
        >>> from phasewatch.monitor.isolation import guard, measure_context
        >>> with guard(model, seed=0):
        ...     context = measure_context(
        ...         model, step=0, loss_fn=loss, batches=[batch], n_samples=500
        ...     )
        ...     found = measure_refined_llc(context, SamplerConfig(), {"bias": "bias"})
        >>> abs(found["bias"].lambda_hat - 0.5) < 4 * found["bias"].lambda_stderr
        True
    """
    return run_through(refined_llc_steps(context, config, selections, memories))


def refined_llc_steps(
    context: MeasureContext,
    config: SamplerConfig,
    selections: Mapping[str, Selection],
    memories: Mapping[str, Memory] | None = None,
) -> Steps[dict[str, Estimate]]:
    """`measure_refined_llc` in steps: it waits where `context.pause` says so.

    The deadline counts its own seconds, not those of the pauses.

    Args:
        context: The measurement's context.
        config: How the posterior is sampled.
        selections: Names, modules or masks, by part.
        memories: What earlier measurements told, by part.
    """
    if not selections:
        raise RefusedError("there are no restrictions; name at least one part of the model")
    is_live = memories is not None
    if memories is None:
        memories = {name: Memory() for name in selections}
    stopwatch = Stopwatch()
    examining = _examined(context, config, [memories[name] for name in selections])
    examination = yield from paced(examining, _pause_of(context), stopwatch.running)
    left = max(context.deadline_seconds - stopwatch.seconds, 0.0)
    context = replace(context, deadline_seconds=left)
    fresh = examination.afresh(context, config)
    context = examination.apply(context, config)
    if len(selections) > 1 and not _fit_together(context, config, selections, examination):
        found: dict[str, Estimate] = {}
        for name, part in selections.items():
            own = replace(context, deadline_seconds=left / (len(selections) - len(found)))
            one = yield from _measured(
                own, config, {name: part}, memories, is_live, examination, fresh
            )
            left = max(left - one[name].duration_seconds, 0.0)
            found |= one
        return found
    return (
        yield from _measured(context, config, selections, memories, is_live, examination, fresh)
    )


def _examined(
    context: MeasureContext, config: SamplerConfig, memories: Sequence[Memory]
) -> Steps[Examination]:
    """What the loss is; looked at once."""
    known = next((m.examination for m in memories if m.examination is not None), None)
    found = known or (yield from examine(context, config))
    for memory in memories:
        memory.examination = found
    return found


def _plan(
    context: MeasureContext,
    config: SamplerConfig,
    selections: Sequence[Selection],
    examination: Examination,
) -> tuple[Problem, Plan]:
    """The problem of all these parts together, and how its chains fit into memory."""
    touched = {name for part in selections for name in names_of(context.params, part)}
    problem = pose(context, sorted(touched), examination.count)
    return problem, plan_memory(problem, config, len(selections))


def _fit_together(
    context: MeasureContext,
    config: SamplerConfig,
    selections: Mapping[str, Selection],
    examination: Examination,
) -> bool:
    """Whether one vmap can hold the chains of all parts; less would save nothing."""
    try:
        _, plan = _plan(context, config, list(selections.values()), examination)
    except RefusedError:  # too large together; each alone may fit, or says why not
        return False
    return plan.width == len(selections) * config.num_chains


def _measured(
    context: MeasureContext,
    config: SamplerConfig,
    selections: Mapping[str, Selection],
    memories: Mapping[str, Memory],
    is_live: bool,
    examination: Examination,
    fresh: MeasureContext | None,
) -> Steps[dict[str, Estimate]]:
    """All parts side by side."""
    stopwatch = Stopwatch(context.deadline_seconds, context.over)
    with stopwatch.running():
        problem, plan = _plan(context, config, list(selections.values()), examination)
    choosing = memories[next(iter(selections))].verdicts.engine_for(problem, plan)
    pause = _pause_of(context)
    engine = yield from paced(choosing, pause, stopwatch.running)
    sampling = _sampled(
        context,
        config,
        selections,
        memories,
        is_live,
        problem,
        plan,
        engine,
        stopwatch,
        examination,
        fresh,
    )

    @contextmanager
    def session() -> Iterator[None]:
        with stopwatch.running(), engine.session():
            yield

    return (yield from paced(sampling, pause, session))


def _pause_of(context: MeasureContext) -> Callable[[], bool]:
    """Weights that are lent must be back in place when training goes on: there is no pause then."""
    return _never if context.lent else context.pause


def _never() -> bool:
    return False


def _sampled(
    context: MeasureContext,
    config: SamplerConfig,
    selections: Mapping[str, Selection],
    memories: Mapping[str, Memory],
    is_live: bool,
    problem: Problem,
    plan: Plan,
    engine: Engine,
    stopwatch: Stopwatch,
    examination: Examination,
    fresh: MeasureContext | None,
) -> Steps[dict[str, Estimate]]:
    """The chains of all parts; steps are taken within the engine's session."""
    n_beta = _n_beta(context, config)
    pick = _picker(problem, config, context.generator)
    runs = {
        name: (OneByOne if engine.name == "inplace" else Run)(
            problem,
            engine,
            _integrator(config, n_beta),
            n_beta=n_beta,
            localization=config.localization,
            generator=context.generator,
            adaptive=config.step_size is None,
            num_chains=config.num_chains,
            num_outside=config.num_chains // 2,
            mask=mask_of(problem.layout, part, problem.device),
            pick=pick,
            control=config.scheme == "lm",
            stopwatch=stopwatch,
        )
        for name, part in selections.items()
    }
    for name, run in runs.items():
        memory = memories[name]
        memory.move_to(problem.layout)
        yield from run.prepare(memory.sharpest, memory.sharpness, memory.displacement, memory.heat)
    pace = Pace(config, context.n_samples, stopwatch, is_live)
    judged = yield from _sample(list(runs.values()), pace)
    if fresh is not None:
        beside = pose(fresh, problem.layout.names, examination.count)
        yield
        verdicts = memories[next(iter(selections))].verdicts
        fresh_engine = yield from verdicts.engine_for(beside, plan)
        for index, run in enumerate(runs.values()):
            summary, burnin = judged[index]
            judged[index] = (yield from _paid(run, summary, fresh_engine, beside)), burnin
    seconds = stopwatch.seconds / len(runs)
    estimates = {}
    for (name, run), (summary, burnin) in zip(runs.items(), judged, strict=True):
        estimate = _estimate(context, config, run, summary, burnin, seconds, examination)
        memories[name].displacement = None
        if is_live and config.warm_start and _sound(run, estimate):
            memories[name].displacement, memories[name].heat = run.chains.x, run.heat()
        if run.latest is not None:
            memories[name].sharpest = run.latest.top.clone()
            memories[name].sharpness = run.sharpness
        estimates[name] = estimate
    return estimates


def _sound(run: Run, estimate: Estimate) -> bool:
    """Whether the chains may serve the next measurement, and are small enough to be kept."""
    x = run.chains.x
    fits = len(x) == len(run.alive) and x.numel() * x.element_size() <= MAX_WARM_BYTES
    return fits and all(run.alive) and estimate.status is not EstimateStatus.NEGATIVE


PREPARATION = 12
"""Gradients of each chain before its first draw, about: centre and sharpness."""


def sampling_work(config: SamplerConfig, memories: Iterable[Memory]) -> Work:
    """What the chains of one model take up to the first look at them.

    Args:
        config: How is sampled.
        memories: Of its parts: whether chains go on from where earlier ones stood, and whether each
            gradient is a mean over draws of the loss.
    """
    known = list(memories)
    draws = first_look(config, warm=any(memory.warm for memory in known)) + PREPARATION
    found = [memory.examination for memory in known if memory.examination is not None]
    repeats = max((examination.repeats(config) for examination in found), default=1)
    return Work(gradients=float(config.num_chains * draws * repeats))


def check_llc(
    context: MeasureContext,
    config: SamplerConfig,
    *,
    parameters: Selection = None,
    memory: Memory | None = None,
) -> None:
    """Everything that `measure_llc` may refuse, by a few evaluations of the probe.

    Which engine is quickest is found out by the first measurement.

    Args:
        context: The measurement's context.
        config: How the posterior is sampled.
        parameters: Names, modules or masks of the part; None is the whole model.
        memory: Given the same one, `measure_llc` need not look at the loss again.

    Raises:
        RefusedError: It cannot be measured safely; says why and what to do.
        MeasurementError: The loss at w* is not finite.
    """
    memory = memory if memory is not None else Memory()
    examination = run_through(_examined(context, config, [memory]))
    context = examination.apply(context, config)
    problem, plan = _plan(context, config, [parameters], examination)
    _n_beta(context, config)
    mask_of(problem.layout, parameters, problem.device)
    _picker(problem, config, context.generator)
    if config.engine == "vmap":  # demanded: whether it can be had is to be known now
        run_through(Verdicts().engine_for(problem, plan))
    else:
        check_gradient(problem, plan)


def _n_beta(context: MeasureContext, config: SamplerConfig) -> float:
    if context.n_samples < 1 or (config.n_beta is None and context.n_samples < 3):
        raise RefusedError(
            f"n_samples is {context.n_samples}; nβ = n / log n needs at least 3 loss terms. Give "
            "the number of terms that the probe loss averages over, or n_beta="
        )
    return config.n_beta or estimators.default_n_beta(context.n_samples)


def _integrator(config: SamplerConfig, n_beta: float) -> Integrator:
    step = config.step_size
    if config.scheme in OVERDAMPED:
        return OVERDAMPED[config.scheme](n_beta, config.localization, step)
    root = None if step is None else math.sqrt(step)
    return Baoab(n_beta, config.localization, step=root)


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
            "gradients; leave batch_size out, or take scheme='lm'"
        )
    device = generator.device

    def pick() -> Sequence[int]:
        order = torch.randperm(total, generator=generator, device=device)
        chosen: list[int] = order[:wanted].tolist()
        return chosen

    return pick


def _sample(runs: Sequence[Run], pace: Pace) -> Steps[list[tuple[Summary | None, int]]]:
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


def _extend(runs: Sequence[Run], targets: Sequence[int]) -> Steps[None]:
    if not isinstance(runs[0], OneByOne):
        yield from extend_together(runs, targets)
        return
    for run, target in zip(runs, targets, strict=True):
        if len(run.record) < target:
            yield from run.extend(target)


def _judged(run: Run, config: SamplerConfig) -> tuple[Summary | None, int]:
    burnin = _burnin(run, config)
    return _summarise(run, burnin), burnin


def _burnin(run: Run, config: SamplerConfig) -> int:
    """Draws until both sides are on their plateau."""
    if config.burnin_fraction is None:
        excess, alive, outside = run.record.excess(), np.array(run.alive), np.array(run.outside)
        return max(plateau(excess[alive & side]) for side in (outside, ~outside))
    return min(int(len(run.record) * config.burnin_fraction), max(len(run.record) - 1, 0))


def _summarise(run: Run, burnin: int) -> Summary | None:
    if not any(run.alive) or len(run.record) == 0:
        return None
    alive = run.alive
    return diagnostics.summarise(
        run.n_beta * run.record.excess()[alive],
        burnin,
        run.record.virial.after(burnin, alive),
        run.record.work.mean(burnin, alive),
        run.inflation(burnin),
        run.descent(),
        [beyond for beyond, lives in zip(run.outside, alive, strict=True) if lives],
    )


def _paid(
    run: Run, summary: Summary | None, engine: Engine, fresh: Problem
) -> Steps[Summary | None]:
    """λ̂ with the optimism of chains that knew their draws taken out, and paid into the error."""
    if summary is None:
        return None
    found = yield from optimism(run.engine, engine, (run.problem, fresh), run.chains.x)
    gaps = found * (run.n_beta / 2)
    added = gaps[run.alive] if len(gaps) == len(run.alive) else gaps
    spread = float(added.std()) / math.sqrt(len(added)) if len(added) > 1 else 0.0
    share = float(added.mean())
    stderr = math.hypot(summary.stderr, share, spread)
    return replace(summary, value=summary.value + share, stderr=stderr)


def _rounding(run: Run, summary: Summary | None) -> dict[str, str]:
    """A large constant in the loss, in which what the chains differ by is lost."""
    if summary is None:
        return {}
    level = abs(run.baseline(range(len(run.problem.batches))))
    grain = level * torch.finfo(run.problem.layout.state_dtype).eps
    if run.n_beta * grain <= MAX_ROUNDING * abs(summary.value):
        return {}
    return {
        "rounding": f"the loss at w* is {level:.3g} nats, so that its last digit is worth "
        f"{run.n_beta * grain:.2g} nats of λ̂: take the constant out of the loss, or compute it "
        "in float64"
    }


def _estimate(
    context: MeasureContext,
    config: SamplerConfig,
    run: Run,
    summary: Summary | None,
    burnin: int,
    seconds: float,
    examination: Examination,
) -> Estimate:
    num_chains, num_diverged = len(run.alive), run.alive.count(False)
    faults = {**examination.faults, **_rounding(run, summary)}
    status, reason = diagnostics.judge(summary, context.n_samples, num_diverged, num_chains, faults)
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
        localization=config.localization,
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
        engine=run.engine.name,
        warm=run.warm,
        probe_mode=context.probe_mode,
        status=status,
        reason=reason,
        duration_seconds=seconds,
    )
