"""Long-run values of λ̂ from Metropolis-adjusted chains from both sides; no step of the estimator.

Hamiltonian Monte Carlo with a mass for each weight, set from the forces in the first half of the
warm-up and fixed from then on. Half of the chains start at w*, half at w* + ½ N(0, I/γ). A value is
trusted where both halves agree within 2.5 errors or 4 %, the virial is within 0.06 of 1, and the
early and the late draws agree within 6 %.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from support.reference_chains import Potential

CHAINS = 8
TARGET = 0.8
MAX_LEAPFROGS = 128


@dataclass(frozen=True, slots=True)
class TwoSided:
    """A long-run value and what speaks for it.

    Attributes:
        value: nβ E[K] over both halves.
        stderr: Its standard error between chains.
        within: That of the chains from w*.
        outside: That of the chains from outside.
        virial: Mean of V.
        early: First half of the kept draws over all of them.
        draws: Trajectories of each chain, warm-up included.
        seconds: CPU time.
        trusted: Whether all of it agrees.
    """

    value: float
    stderr: float
    within: float
    outside: float
    virial: float
    early: float
    draws: int
    seconds: float
    trusted: bool


def two_sided_reference(
    potential: Potential,
    dimension: int,
    *,
    n_beta: float,
    localization: float,
    max_seconds: float = 40.0,
    relative_stderr: float = 0.012,
    seed: int = 0,
) -> TwoSided:
    """Draw until it is trusted and known to `relative_stderr`, or the time is over."""
    generator = torch.Generator().manual_seed(seed)
    began = time.process_time()
    x = torch.zeros(CHAINS, dimension, dtype=torch.float64)
    outside = torch.arange(CHAINS) >= CHAINS // 2
    x[outside] = torch.randn(CHAINS // 2, dimension, generator=generator, dtype=torch.float64) * (
        0.5 / math.sqrt(localization)
    )

    def look(points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        excess, grad = potential(points)
        energy = n_beta * excess + localization / 2 * points.square().sum(1)
        return n_beta * excess, energy, n_beta * grad + localization * points

    excess, energy, force = look(x)
    root = torch.ones(dimension, dtype=torch.float64)
    log_step = torch.full((CHAINS, 1), math.log(1e-3), dtype=torch.float64)
    squares, looks = torch.zeros_like(root), 0
    kept: list[Tensor] = []
    virials: list[Tensor] = []
    warm, drawn = True, 0
    while True:
        drawn += 1
        step = log_step.exp() * (0.8 + 0.4 * torch.rand(1, generator=generator).double())
        span = (
            math.pi
            / 2
            / math.sqrt(localization)
            * (0.5 + float(torch.rand(1, generator=generator)))
        )
        limit = 16 if drawn < 40 else MAX_LEAPFROGS
        count = max(1, min(limit, int(span / float(step.mean()))))
        p = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        there, pull = x.clone(), force
        start = energy + p.square().sum(1) / 2
        for _ in range(count):
            p = p - step / 2 * root * pull
            there = there + step * root * p
            new_excess, new_energy, pull = look(there)
            p = p - step / 2 * root * pull
        ratio = start - new_energy - p.square().sum(1) / 2
        ratio = torch.nan_to_num(ratio, nan=-1e9).clamp_max(0.0)
        passes = torch.rand(CHAINS, generator=generator).double().log() < ratio
        x = torch.where(passes[:, None], there, x)
        force = torch.where(passes[:, None], pull, force)
        energy = torch.where(passes, new_energy, energy)
        excess = torch.where(passes, new_excess, excess)
        spent = time.process_time() - began
        if warm:
            log_step += (ratio.exp() - TARGET)[:, None] * (0.3 if drawn < 100 else 0.1)
            squares += force.square().sum(0)
            looks += CHAINS
            if drawn in (60, 150):
                mean = squares / looks + localization
                root = (mean.median() / mean).clamp_max(1.0).sqrt()
                squares, looks = torch.zeros_like(root), 0
            warm = spent < max_seconds * 0.35
            continue
        kept.append(excess)
        virials.append((x * force).sum(1) / dimension)
        if (len(kept) >= 60 and len(kept) % 20 == 0) or spent > max_seconds:
            found = _summary(torch.stack(kept, 1), torch.stack(virials), outside, drawn, spent)
            good = found.trusted and found.stderr < relative_stderr * abs(found.value)
            if good or spent > max_seconds:
                return found


def _summary(
    trace: Tensor, virials: Tensor, outside: Tensor, drawn: int, seconds: float
) -> TwoSided:
    means = trace.mean(1)
    value = float(means.mean())
    sides = [means[~outside], means[outside]]
    errors = [float(side.std()) / math.sqrt(len(side)) for side in sides]
    gap = abs(float(sides[0].mean() - sides[1].mean()))
    half = trace.shape[1] // 2
    early = float(trace[:, :half].mean()) / value
    virial = float(virials.mean())
    met = gap < 2.5 * math.hypot(*errors) or gap < 0.04 * abs(value)
    return TwoSided(
        value=value,
        stderr=float(means.std()) / math.sqrt(len(means)),
        within=float(sides[0].mean()),
        outside=float(sides[1].mean()),
        virial=virial,
        early=early,
        draws=drawn,
        seconds=seconds,
        trusted=met and abs(virial - 1) < 0.06 and abs(early - 1) < 0.06,
    )
