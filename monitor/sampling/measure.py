"""One measurement of the LLC, from a context to an `Estimate`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from phasewatch.monitor.config.measuring import SamplerConfig
from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.errors import RefusedError
from phasewatch.monitor.core.estimates import Estimate, EstimateStatus
from phasewatch.monitor.core.together import in_all
from phasewatch.monitor.core.work import Steps, Work, run_through
from phasewatch.monitor.sampling import noise
from phasewatch.monitor.sampling.chains import ChainGroup
from phasewatch.monitor.sampling.drawing import draw
from phasewatch.monitor.sampling.engine import Engine
from phasewatch.monitor.sampling.engine_choice import Verdicts, check_gradient
from phasewatch.monitor.sampling.examination import Examination, examine
from phasewatch.monitor.sampling.landscape import Landscape
from phasewatch.monitor.sampling.memory import Memory
from phasewatch.monitor.sampling.memory_budget import Plan, plan_memory
from phasewatch.monitor.sampling.one_by_one import OneByOne
from phasewatch.monitor.sampling.outcome import outcome, paid
from phasewatch.monitor.sampling.pace import Pace, enough, first_look
from phasewatch.monitor.sampling.posing import pose
from phasewatch.monitor.sampling.posterior import Problem
from phasewatch.monitor.sampling.restrictions import (
    Selection,
    here,
    mask_of,
    names_of,
)
from phasewatch.monitor.sampling.schemes import (
    chosen_localization,
    chosen_n_beta,
    integrator_of,
    picker_of,
)
from phasewatch.monitor.sampling.stopwatch import Stopwatch, paced
from phasewatch.monitor.sampling.witness import Beside, Further

DEAR_SECONDS = 0.25
"""Where a check of the gradient takes longer, the first measurement finds out what the loss is,
which the budget spreads over the training."""

AVERAGED_ALONE = (
    "the loss draws random numbers, and is averaged over draws of them; covariances of losses are "
    "not those of such means. Take the randomness out (dropout, for one), or take one draw of it "
    "with SamplerConfig(noise='frozen')"
)

MAX_WARM_BYTES = 2**28
"""Chains larger than this are not kept between two measurements."""


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
    further: Further | None = None,
) -> Steps[dict[str, Estimate]]:
    """`measure_refined_llc` in steps: it waits where `context.pause` says so.

    The deadline counts its own seconds, not those of the pauses.

    Args:
        context: The measurement's context.
        config: How the posterior is sampled.
        selections: Names, modules or masks, by part.
        memories: What earlier measurements told, by part.
        further: What is asked for beside λ̂.
    """
    if not selections:
        raise RefusedError("there are no restrictions; name at least one part of the model")
    measuring = _refined(context, config, selections, memories, further)
    return (yield from context.together.joined(measuring))


def _refined(
    context: MeasureContext,
    config: SamplerConfig,
    selections: Mapping[str, Selection],
    memories: Mapping[str, Memory] | None,
    further: Further | None,
) -> Steps[dict[str, Estimate]]:
    """The measurement, as all processes make it that hold a part of the model."""
    together = context.together
    selections = {name: here(part, together.shapes, together) for name, part in selections.items()}
    is_live = memories is not None
    if memories is None:
        memories = {name: Memory() for name in selections}
    stopwatch = Stopwatch(clock=context.together.clock)
    examining = _examined(context, config, [memories[name] for name in selections])
    examination = yield from paced(examining, _pause_of(context), stopwatch.running)
    left = max(context.deadline_seconds - stopwatch.seconds, 0.0)
    context = replace(context, deadline_seconds=left)
    fresh = examination.afresh(context, config)
    beside = None
    if further is not None:
        if fresh is not None:
            raise RefusedError(AVERAGED_ALONE)
        other = replace(context, batches=further.batches)
        beside = Beside(further, examination.apply(other, config))
    context = examination.apply(context, config)
    if len(selections) > 1 and not _fit_together(context, config, selections, examination):
        found: dict[str, Estimate] = {}
        for name, part in selections.items():
            own = replace(context, deadline_seconds=left / (len(selections) - len(found)))
            one = yield from _measured(
                own, config, {name: part}, memories, is_live, examination, fresh, beside
            )
            left = max(left - one[name].duration_seconds, 0.0)
            found |= one
        return found
    return (
        yield from _measured(
            context, config, selections, memories, is_live, examination, fresh, beside
        )
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
    beside: Beside | None,
) -> Steps[dict[str, Estimate]]:
    """All parts side by side."""
    stopwatch = Stopwatch(context.deadline_seconds, context.over, context.together.clock)
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
        beside,
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
    beside: Beside | None,
) -> Steps[dict[str, Estimate]]:
    """The chains of all parts; steps are taken within the engine's session."""
    n_beta = chosen_n_beta(context, config)
    localization = _localization(context, config, memories, is_live)
    pick = picker_of(problem, config, context.generator)
    witness = None
    if beside is not None:
        witness = beside.witness(
            problem, engine, config, examination.count, len(selections), whole=pick is None
        )
        yield
    noise_of_own = context.together.noise(context.generator)
    runs = {
        name: (OneByOne if engine.name == "inplace" else ChainGroup)(
            Landscape(
                problem,
                engine,
                n_beta=n_beta,
                localization=localization,
                mask=mask_of(problem.layout, part, problem.device, problem.together),
                control=config.scheme == "lm" and pick is not None,
            ),
            integrator_of(config, n_beta, localization),
            generator=noise_of_own,
            common=context.generator,
            adaptive=config.step_size is None,
            num_chains=config.num_chains,
            num_outside=config.num_chains // 2,
            pick=pick,
            stopwatch=stopwatch,
            witness=witness,
        )
        for name, part in selections.items()
    }
    for name, run in runs.items():
        memory = memories[name]
        memory.move_to(problem.layout)
        yield from run.prepare(memory.sharpest, memory.sharpness, memory.displacement, memory.heat)
    pace = Pace(config, context.n_samples, stopwatch, is_live)
    judged = yield from draw(list(runs.values()), pace)
    if fresh is not None:
        redrawn = pose(fresh, problem.layout.names, examination.count)
        yield
        verdicts = memories[next(iter(selections))].verdicts
        fresh_engine = yield from verdicts.engine_for(redrawn, plan)
        for index, run in enumerate(runs.values()):
            summary, burnin = judged[index]
            judged[index] = (yield from paid(run, summary, fresh_engine, redrawn)), burnin
    seconds = stopwatch.seconds / len(runs)
    estimates = {}
    for (name, run), (summary, burnin) in zip(runs.items(), judged, strict=True):
        estimate = outcome(context, config, run, summary, burnin, seconds, examination)
        memories[name].displacement = None
        if is_live and config.warm_start and _sound(run, estimate):
            memories[name].displacement, memories[name].heat = run.chains.x, run.heat()
        if run.latest is not None:
            memories[name].sharpest = run.latest.top.clone()
            memories[name].sharpness = run.sharpness
        estimates[name] = estimate
        if beside is not None and witness is not None:
            seen = witness.drawn(run.record.witnessed, burnin, run.alive, estimate)
            beside.asked.take(name, seen)
    return estimates


def _localization(
    context: MeasureContext,
    config: SamplerConfig,
    memories: Mapping[str, Memory],
    is_live: bool,
) -> float:
    """γ, the same for all parts of a model, and through a run."""
    if config.localization is not None:
        return config.localization
    known = next((m.localization for m in memories.values() if m.localization is not None), None)
    if known is None:
        here = sum(p.numel() for p in context.params.values())
        num_parameters = round(math.fsum(context.together.each(here)))
        known = chosen_localization(config, num_parameters, in_run=is_live)
    for memory in memories.values():
        memory.localization = known
    return known


def _sound(run: ChainGroup, estimate: Estimate) -> bool:
    """Whether the chains may serve the next measurement, and are small enough to be kept."""
    x = run.chains.x
    fits = len(x) == len(run.alive) and x.numel() * x.element_size() <= MAX_WARM_BYTES
    fits = in_all(run.landscape.together, fits)
    return fits and all(run.alive) and estimate.status is not EstimateStatus.NEGATIVE


PREPARATION, DESCENT, NEAR_DESCENT = 12, 80, 20
"""Gradients of each chain before its first draw, about: centre and sharpness; and of those that
come down from outside (50 to 100 on nets of all kinds, 200 where they end in another basin first;
15 to 30 where γ is chosen so that outside is near)."""


def sampling_work(config: SamplerConfig, memories: Iterable[Memory]) -> Work:
    """What the chains of one model take up to the first look at them.

    Args:
        config: How is sampled.
        memories: Of its parts: whether chains go on from where earlier ones stood, and whether each
            gradient is a mean over draws of the loss.
    """
    known = list(memories)
    warm = any(memory.warm for memory in known)
    is_near = config.localization is None
    length = (first_look if is_near else enough)(config, warm=warm)
    draws = config.num_chains * (length + PREPARATION)
    if not warm:
        draws += config.num_chains // 2 * (NEAR_DESCENT if is_near else DESCENT)
    found = [memory.examination for memory in known if memory.examination is not None]
    repeats = max((examination.repeats(config) for examination in found), default=1)
    return Work(gradients=float(draws * repeats))


def check_llc(
    context: MeasureContext,
    config: SamplerConfig,
    *,
    parameters: Selection = None,
    memory: Memory | None = None,
) -> None:
    """Everything that `measure_llc` may refuse, by a few evaluations of the probe.

    Which engine is quickest is found out by the first measurement. Where evaluations are dear,
    so is what the loss is: training waits for the check.

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
    known, began = memory.examination, time.perf_counter()
    if known is not None:
        _check_posed(known.apply(context, config), config, parameters, known)
        return
    drawing = replace(context, loss_fn=noise.drawing_loss(context.loss_fn))
    _check_posed(drawing, config, parameters, Examination())
    if time.perf_counter() - began > DEAR_SECONDS:
        return
    examination = run_through(_examined(context, config, [memory]))
    if examination.noise:
        _check_posed(examination.apply(context, config), config, parameters, examination)


def _check_posed(
    context: MeasureContext, config: SamplerConfig, parameters: Selection, examination: Examination
) -> None:
    problem, plan = _plan(context, config, [parameters], examination)
    chosen_n_beta(context, config)
    mask_of(problem.layout, parameters, problem.device, problem.together)
    picker_of(problem, config, context.generator)
    if config.engine == "vmap":  # demanded: whether it can be had is to be known now
        run_through(Verdicts().engine_for(problem, plan))
    else:
        check_gradient(problem, plan)
