"""Inflation: by how much the finite step and minibatch noise raise λ̂, predicted from the chains.

An Euler step x' = x − (ε/2) P Ĝ + √(εP) ξ, with Ĝ = nβ ĝ + γ x an unbiased gradient of U, leaves
E|x|² (in the metric P⁻¹) unchanged only if

    E[x·∇U] = d + (ε/4) E[Ĝ·PĜ],

for any U: in equilibrium at this ε, the chains are too hot by the second term. On a quadratic
x·∇U = 2U, so the excess of U is (ε/8) E[Ĝ·PĜ] exactly, step and noise together: over the directions
it sums ½ (1 + ε P_i Σ_ii/4)/(1 − ε P_i κ_i/4) − ½, with Σ = (nβ)² Cov(ĝ). The part that λ̂ sees is

    Δλ = (ε/8) E[nβ ĝ·PĜ],      and of that to minibatch noise    Δλ_batch = (ε/8) tr(PΣ).

Where U grows faster than a square (w⁴ and other singular points) the excess is smaller, by half
for w⁴: Δλ errs upwards there. BAOAB and its limit, Leimkuhler–Matthews, have no excess from the
step on a quadratic; noise heats the latter by the same tr(PΣ), to first order in ε.

tr Σ is measured, not assumed: at some draws other batches are evaluated at the same points. For m
of the probe's M batches, drawn without replacement, and m' of the rest,

    Cov(ĝ) = E[(ĝ − ĝ')(ĝ − ĝ')ᵀ] (1/m − 1/M) / (1/m + 1/m'),

whatever correction of the gradients is in force.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from phasewatch.monitor.sampling.integrators import Chains, Integrator
from phasewatch.monitor.sampling.traces import Trace

NOISE_EVERY = 32
"""Draws from one look at the minibatch noise to the next; each costs one more gradient."""


@dataclass(frozen=True, slots=True)
class Inflation:
    """Predicted excess of λ̂, in units of λ̂.

    Attributes:
        step: From the finite step.
        batch: From minibatch noise.
    """

    step: float = 0.0
    batch: float = 0.0


def noise_share(used: int, others: int, total: int) -> float:
    """Cov(ĝ) over E[(ĝ − ĝ')(ĝ − ĝ')ᵀ] for m used batches, m' others, M in all.

    Args:
        used: m, batches whose gradients were averaged.
        others: m', batches of the other average.
        total: M, batches in all.
    """
    return (1 / used - 1 / total) / (1 / used + 1 / others)


def euler_heat(
    x: Tensor, grad: Tensor, integrator: Integrator, state: Chains, *, n_beta: float, pull: float
) -> Tensor | None:
    """(ε/8) nβ ĝ·P(nβ ĝ + γx) of each chain; None for schemes exact on quadratics.

    Args:
        x: Displacements, shape (chains, d).
        grad: ĝ there, shape (chains, d).
        integrator: How the chains move.
        state: The chains, for the metric P.
        n_beta: nβ.
        pull: γ.
    """
    if integrator.exact_on_quadratics:
        return None
    weighted = _weighted(grad, state, integrator)
    force: Tensor = torch.linalg.vecdot(weighted, grad) * n_beta
    force = force + torch.linalg.vecdot(weighted, x) * pull
    return force * (n_beta * integrator.step_size / 8)


def noise_heat(
    gap: Tensor, integrator: Integrator, state: Chains, *, n_beta: float, share: float
) -> Tensor:
    """(ε/8) tr(PΣ) of each chain from ĝ − ĝ', on batches of which none are shared.

    Args:
        gap: ĝ − ĝ' at the same points, shape (chains, d).
        integrator: How the chains move.
        state: The chains, for the metric P.
        n_beta: nβ.
        share: `noise_share` of the batches.
    """
    squared: Tensor = torch.linalg.vecdot(_weighted(gap, state, integrator), gap)
    return squared * (n_beta**2 * integrator.step_size / 8 * share)


def predict(
    euler: Trace, noise: Trace, burnin: int, alive: Sequence[bool], *, minibatch: bool
) -> Inflation:
    """The prediction from the draws after burn-in; NaN where there should be records but are none.

    Args:
        euler: Records of `euler_heat`.
        noise: Records of `noise_heat`.
        burnin: Draws to leave out.
        alive: Which chains count.
        minibatch: Whether the steps use part of the probe only.
    """
    batch = noise.mean(burnin, alive) if minibatch else 0.0
    if not euler:
        return Inflation(0.0, batch)
    return Inflation(euler.mean(burnin, alive) - batch, batch)


def _weighted(vector: Tensor, state: Chains, integrator: Integrator) -> Tensor:
    metric = integrator.metric(state)
    return vector if metric is None else vector * metric
