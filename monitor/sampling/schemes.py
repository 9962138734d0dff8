"""What the configuration chooses: nβ, the scheme, and the batches of a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch

from phasewatch.monitor.config.measuring import SamplerConfig
from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.errors import RefusedError
from phasewatch.monitor.sampling import estimators
from phasewatch.monitor.sampling.integrators import Integrator
from phasewatch.monitor.sampling.overdamped import RmspropSgld, Sgld
from phasewatch.monitor.sampling.posterior import Problem
from phasewatch.monitor.sampling.underdamped import Baoab, LeimkuhlerMatthews

OVERDAMPED: Mapping[str, Callable[[float, float, float | None], Integrator]] = {
    kind.name: kind for kind in (Sgld, RmspropSgld, LeimkuhlerMatthews)
}
"""Schemes without velocities, by name: they take (nβ, γ, ε)."""


def chosen_n_beta(context: MeasureContext, config: SamplerConfig) -> float:
    """nβ as configured, or n / log n."""
    if context.n_samples < 1 or (config.n_beta is None and context.n_samples < 3):
        raise RefusedError(
            f"n_samples is {context.n_samples}; nβ = n / log n needs at least 3 loss terms. Give "
            "the number of terms that the probe loss averages over, or n_beta="
        )
    return config.n_beta or estimators.default_n_beta(context.n_samples)


def integrator_of(config: SamplerConfig, n_beta: float) -> Integrator:
    """The configured scheme."""
    step = config.step_size
    if config.scheme in OVERDAMPED:
        return OVERDAMPED[config.scheme](n_beta, config.localization, step)
    root = None if step is None else math.sqrt(step)
    return Baoab(n_beta, config.localization, step=root)


def picker_of(
    problem: Problem, config: SamplerConfig, generator: torch.Generator
) -> Callable[[], Sequence[int]] | None:
    """Which batches a step uses; None is all of them.

    Args:
        problem: What is sampled.
        config: How many batches, and the scheme.
        generator: What they are drawn with.

    Raises:
        RefusedError: The scheme takes no minibatches.
    """
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
