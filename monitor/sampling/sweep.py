"""The sweep that a researcher would do by hand: λ̂ over step size ε, localization γ and nβ.

It recommends by the usual advice: at the final weights, step size and localization as large as
the trace still plateaus, on the plateau of λ̂. Beside each (γ, nβ) it runs the automatic step.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from phasewatch.monitor.config.base import describe
from phasewatch.monitor.config.measuring import SamplerConfig
from phasewatch.monitor.core.errors import ConfigError
from phasewatch.monitor.core.estimates import Estimate, EstimateStatus
from phasewatch.monitor.isolation import guard, measure_context
from phasewatch.monitor.sampling.estimators import default_n_beta
from phasewatch.monitor.sampling.factory import Subject
from phasewatch.monitor.sampling.measure import measure_llc
from phasewatch.monitor.sampling.memory import Memory
from phasewatch.monitor.sampling.schemes import OUTSIDE_OF_RUNS

STEP_MULTIPLES = (1 / 16, 1 / 4, 1.0, 4.0, 16.0, 64.0)
"""Default steps, in automatic steps: down to where chains are too slow, up to where they burst."""

LOCALIZATIONS = (0.1, 1.0, 10.0, 100.0)
N_BETA_MULTIPLES = (0.25, 1.0, 4.0)
"""Default nβ, in n / log n."""

TOLERANCE = 0.1
"""Two estimates agree within this share, or within two standard errors of their difference."""

Progress = Callable[[int, int], None]
"""Called with the number of points done and of all points."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """A grid of estimates, and what it says.

    Attributes:
        grid: One estimate for each (ε, γ, nβ).
        automatic: One with the automatic step for each (γ, nβ), with as many draws as it asks for.
        recommended: The point of the grid to use; None if nothing settled.
        why: Why, a sentence each.
    """

    grid: tuple[Estimate, ...]
    automatic: tuple[Estimate, ...]
    recommended: Estimate | None
    why: tuple[str, ...]


def run_sweep(
    subject: Subject,
    *,
    steps: Sequence[float] = (),
    localizations: Sequence[float] = LOCALIZATIONS,
    n_betas: Sequence[float] = (),
    num_chains: int | None = None,
    num_draws: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Sweep:
    """Measure every point of the grid with chains of equal length, from the same seed.

    The automatic step beside it may draw on, as it does by default, until it has settled.

    Args:
        subject: What is measured.
        steps: ε, in Lau's convention; none takes multiples of the automatic step, which comes from
            the measured curvature.
        localizations: γ.
        n_betas: nβ; none takes multiples of n / log n.
        num_chains: Chains of each point; None takes the sampler's default.
        num_draws: Their length, burn-in included; None takes the sampler's default.
        seed: Seed of the chains at every point: neighbours differ by their settings only.
        progress: Called after each point.

    Raises:
        ConfigError: A value of the grid is not allowed.
        RefusedError: The model cannot be measured safely; says why and what to do.
        MeasurementError: The loss at w* is not finite.
    """
    if not localizations:
        raise ConfigError("localizations is empty; give at least one γ")
    given = {"num_chains": num_chains, "num_draws": num_draws, "seed": seed}
    base = {name: value for name, value in given.items() if value is not None}
    base["warm_start"] = False  # else a point would start where the one before it ended
    whole = default_n_beta(subject.n_samples)
    temperatures = sorted(n_betas or [share * whole for share in N_BETA_MULTIPLES])
    pairs = list(itertools.product(temperatures, sorted(localizations)))
    automatic_configs = [
        _config(base, n_beta=n_beta, localization=gamma) for n_beta, gamma in pairs
    ]
    for step in steps:  # a wrong one is told before the work
        _config(base, step_size=step)
    fixed = {**base, "max_draws": 0}
    total = len(pairs) * (1 + (len(steps) or len(STEP_MULTIPLES)))
    memory = Memory()
    done = 0

    def measure(config: SamplerConfig) -> Estimate:
        nonlocal done
        found = _measure(subject, config, memory)
        done += 1
        if progress is not None:
            progress(done, total)
        return found

    automatic = tuple(map(measure, automatic_configs))
    steps = sorted(steps or [share * _start(automatic, whole) for share in STEP_MULTIPLES])
    grid = tuple(
        measure(_config(fixed, n_beta=n_beta, localization=gamma, step_size=step))
        for n_beta, gamma in pairs
        for step in steps
    )
    recommended, why = recommend(grid, automatic)
    return Sweep(grid=grid, automatic=automatic, recommended=recommended, why=tuple(why))


def _config(base: dict[str, int], **point: float) -> SamplerConfig:
    try:
        return SamplerConfig.model_validate({**base, **point})
    except ValidationError as error:
        raise ConfigError(describe(error, "the sweep", SamplerConfig)) from None


def _measure(subject: Subject, config: SamplerConfig, memory: Memory) -> Estimate:
    with guard(subject.model, seed=config.seed):
        context = measure_context(
            subject.model,
            step=0,
            loss_fn=subject.loss_fn,
            batches=tuple(subject.batches),
            n_samples=subject.n_samples,
            seed=config.seed,
        )
        return measure_llc(context, config, memory=memory)


def _start(automatic: Sequence[Estimate], n_beta: float) -> float:
    """The automatic step at the settings nearest to the defaults."""
    return _nearest(automatic, n_beta, OUTSIDE_OF_RUNS).step_size


def _nearest(points: Sequence[Estimate], n_beta: float, localization: float) -> Estimate:
    def distance(point: Estimate) -> tuple[float, float]:
        return (
            abs(math.log(point.n_beta / n_beta)),
            abs(math.log((point.localization + 1e-6) / (localization + 1e-6))),
        )

    return min(points, key=distance)


# ---- what it says


def agree(left: Estimate, right: Estimate) -> bool:
    """Whether two λ̂ are equal within `TOLERANCE` or within their errors."""
    gap = abs(left.lambda_hat - right.lambda_hat)
    share = TOLERANCE * max(abs(left.lambda_hat), abs(right.lambda_hat))
    return gap <= max(share, 2 * math.hypot(left.lambda_stderr, right.lambda_stderr))


def plateau(points: Sequence[Estimate]) -> list[Estimate]:
    """The longest run of neighbouring steps that settled and all agree; of equals the last."""
    best: list[Estimate] = []
    run: list[Estimate] = []
    for point in sorted(points, key=lambda point: point.step_size):
        if point.status is not EstimateStatus.OK:
            run = []
            continue
        # Up to the first that agrees with the newcomer, the run is over; the rest goes on.
        while run and not all(agree(point, other) for other in run):
            run = run[1:]
        run = [*run, point]
        if len(run) >= len(best):
            best = run
    return best


def recommend(
    grid: Sequence[Estimate], automatic: Sequence[Estimate]
) -> tuple[Estimate | None, list[str]]:
    """The point to use, and why.

    nβ is that nearest to n / log n. At each γ the step is the largest on the plateau of λ̂. γ is
    the largest up to which λ̂ stays what it is at the smallest that settled.

    Args:
        grid: Estimates over (ε, γ, nβ).
        automatic: Estimates with the automatic step over (γ, nβ).
    """
    n_beta = _nearest(grid, default_n_beta(grid[0].n_samples), grid[0].localization).n_beta
    num_steps = len({point.step_size for point in grid})
    plateaus: dict[float, list[Estimate]] = {}
    for gamma in sorted({point.localization for point in grid}):
        found = plateau(_at(grid, n_beta, gamma))
        if len(found) >= min(2, num_steps):
            plateaus[gamma] = found
    if not plateaus:
        return None, [_nothing(_at(grid, n_beta))]
    chosen = _largest_localization(list(plateaus.values()))
    best = chosen[-1]
    why = [
        _why_step(chosen, _at(grid, n_beta, best.localization)),
        _why_localization(best, list(plateaus.values())),
        _why_n_beta(best, grid),
        _why_automatic(best, automatic),
    ]
    return best, why


def _at(
    points: Sequence[Estimate], n_beta: float, localization: float | None = None
) -> list[Estimate]:
    return [
        point
        for point in points
        if point.n_beta == n_beta and localization in (None, point.localization)
    ]


def _largest_localization(plateaus: Sequence[list[Estimate]]) -> list[Estimate]:
    first = plateaus[0][-1]
    same = itertools.takewhile(lambda found: agree(first, found[-1]), plateaus)
    return list(same)[-1]


def _nothing(points: Sequence[Estimate]) -> str:
    reasons = [point.reason for point in points if point.reason]
    common = max(set(reasons), key=reasons.count) if reasons else "no two neighbouring steps agree"
    return (
        f"No plateau: at nβ = {points[0].n_beta:.4g} no two neighbouring steps both settled and "
        f"agree, at any localization. Most often: {common}. Take more draws, or other steps."
    )


def _said(point: Estimate) -> str:
    return f"λ̂ = {point.lambda_hat:.4g} ± {point.lambda_stderr:.2g}"


def _why_step(chosen: Sequence[Estimate], points: Sequence[Estimate]) -> str:
    best = chosen[-1]
    larger = [point for point in points if point.step_size > best.step_size]
    if not larger:
        beyond = "No larger step was tried."
    else:
        after = min(larger, key=lambda point: point.step_size)
        outcome = f"the estimate is {after.status} ({after.reason})"
        if after.status is EstimateStatus.OK:
            outcome = _said(after)
        beyond = f"At the next step, ε = {after.step_size:.3g}, {outcome}."
    passed = ""
    if best.acceptance is not None:
        passed = f" A Metropolis test would let {best.acceptance:.0%} of its steps pass."
    return (
        f"Step size: at γ = {best.localization:g} and nβ = {best.n_beta:.4g}, λ̂ is on a plateau "
        f"from ε = {chosen[0].step_size:.3g} to ε = {best.step_size:.3g} ({_said(best)}); the "
        f"largest step on it mixes fastest.{passed} {beyond}"
    )


def _why_localization(best: Estimate, plateaus: Sequence[list[Estimate]]) -> str:
    ends = [found[-1] for found in plateaus]
    listed = ", ".join(f"{end.lambda_hat:.4g} at γ = {end.localization:g}" for end in ends)
    if len(ends) == 1:
        return f"Localization: only γ = {best.localization:g} gives a plateau in ε."
    if best is ends[-1]:
        return f"Localization: λ̂ does not depend on it here ({listed}); the largest mixes fastest."
    if best is ends[0]:
        return (
            f"Localization: λ̂ has no plateau in γ ({listed}), so γ is part of the number: keep it "
            "fixed. Recommended is the smallest that settles."
        )
    return (
        f"Localization: λ̂ stays the same up to γ = {best.localization:g} ({listed}); beyond it "
        "the pull to w* shows."
    )


def _why_n_beta(best: Estimate, grid: Sequence[Estimate]) -> str:
    whole = default_n_beta(best.n_samples)
    others = [
        f"{found[-1].lambda_hat:.4g} at nβ = {n_beta:.4g}"
        for n_beta in sorted({point.n_beta for point in grid} - {best.n_beta})
        if (found := plateau(_at(grid, n_beta, best.localization)))
    ]
    listed = f" λ̂ on the other plateaus: {', '.join(others)}." if others else ""
    return (
        f"nβ: the theory asks for n / log n = {whole:.4g}; {best.n_beta:.4g} is the nearest in the "
        f"grid.{listed}"
    )


def _why_automatic(best: Estimate, automatic: Sequence[Estimate]) -> str:
    ours = _nearest(automatic, best.n_beta, best.localization)
    if ours.status is EstimateStatus.DIVERGED:
        return f"The automatic step diverges here: {ours.reason}."
    verdict = "the two agree" if agree(ours, best) else "the two do not agree"
    settled = "" if ours.status is EstimateStatus.OK else f", {ours.status}: {ours.reason}"
    draws = ours.num_burnin + ours.num_draws
    return (
        f"The automatic step, from the curvature at w* ({ours.sharpness or 0.0:.3g}) and along the "
        f"chains, is ε = {ours.step_size:.3g}, {ours.step_size / best.step_size:.2g} times the "
        f"recommended one. After {draws} draws it gives {_said(ours)}{settled}: {verdict}."
    )
