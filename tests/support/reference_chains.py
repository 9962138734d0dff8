"""Long-run values of λ̂ from chains that share no code with the estimator: Metropolised HMC.

The density is the estimator's own, p(x) ∝ exp(−U(x)), U = nβ K(w* + x) + γ/2 ‖x‖². Each proposal is
a leapfrog trajectory, accepted by min(1, exp(H − H')): no discretisation is left in the result
(Duane et al. 1987; Neal 2011). What is left is the error of a finite run, which is reported.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from arviz_stats.base.array import array_stats
from torch import Tensor

Potential = Callable[[Tensor], tuple[Tensor, Tensor]]
"""K and ∇K, in nats, at displacements x of shape (chains, d): shapes (chains,) and (chains, d)."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Long-run value of nβ E[K].

    Attributes:
        value: Mean over chains and draws after warm-up.
        stderr: Its standard error, the larger of that from autocorrelations and between chains.
        rhat: Rank-normalised split R-hat of nβ K.
        acceptance: Share of proposals accepted.
        gradients: Gradient evaluations of each chain.
        seconds: CPU time.
    """

    value: float
    stderr: float
    rhat: float
    acceptance: float
    gradients: int
    seconds: float


def sample(
    potential: Potential,
    dimension: int,
    *,
    n_beta: float,
    localization: float,
    num_chains: int = 16,
    num_proposals: int = 200,
    min_seconds: float = 0.0,
    max_seconds: float = 60.0,
    max_leapfrogs: int = 256,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Reference:
    """Run chains from w*; the first third of the proposals is warm-up.

    Trajectories last π/(2 √γ) on average (evenly drawn from half to one and a half of it), a quarter
    period of the softest direction there is, or `max_leapfrogs` steps where that is less. In the
    warm-up the step follows an acceptance of 0.8; then it is held.

    Args:
        potential: K and its gradient.
        dimension: d.
        n_beta: nβ.
        localization: γ.
        num_chains: Chains, run side by side.
        num_proposals: Proposals of each chain, warm-up included.
        min_seconds: Proposals go on until this much CPU time is spent.
        max_seconds: They end when this much is, whatever was asked.
        max_leapfrogs: Longest mean trajectory, in gradient evaluations.
        seed: Seed of the chains.
        dtype: Of the state.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.zeros(num_chains, dimension, dtype=dtype)

    def force(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        excess, grad = potential(x)
        energy = n_beta * excess + localization / 2 * x.square().sum(1)
        return excess, energy, n_beta * grad + localization * x

    began = time.process_time()
    step, gradients, counted, accepted = 1e-3 / math.sqrt(localization), 0, 0, 0.0
    excess, energy, grad = force(x)
    trace: list[Tensor] = []
    warm = 0
    while True:
        spent = time.process_time() - began
        progress = max(len(trace) / num_proposals, spent / max_seconds)
        if min_seconds:
            progress = min(progress, max(spent / min_seconds, spent / max_seconds))
        if progress >= 1 and len(trace) > 2 * warm:
            break
        warming = progress < 1 / 3
        warm = len(trace) + 1 if warming else warm
        length = math.pi / 2 / math.sqrt(localization)
        jitter = 0.5 + float(torch.rand((), generator=generator))
        leaps = max(1, round(jitter * min(length / step, max_leapfrogs)))
        velocity = torch.randn(x.shape, generator=generator, dtype=dtype)
        start = energy + velocity.square().sum(1) / 2
        moved, velocity = x.clone(), velocity - step / 2 * grad
        for leap in range(leaps):
            moved = moved + step * velocity
            found, new_energy, new_grad = force(moved)
            velocity = velocity - step * (0.5 if leap == leaps - 1 else 1.0) * new_grad
        gradients += leaps
        change = start - new_energy - velocity.square().sum(1) / 2
        probability = change.clamp_max(0.0).exp().nan_to_num(0.0)
        taken = torch.rand(num_chains, generator=generator, dtype=dtype) < probability
        x = torch.where(taken[:, None], moved, x)
        grad = torch.where(taken[:, None], new_grad, grad)
        energy, excess = torch.where(taken, new_energy, energy), torch.where(taken, found, excess)
        trace.append(n_beta * excess)
        mean = float(probability.mean())
        if warming:
            step *= math.exp(0.2 * (mean - 0.8))
        else:
            accepted, counted = accepted + mean, counted + 1
    kept = torch.stack(trace[warm:], dim=1).double().numpy()
    between = float(kept.mean(axis=1).std(ddof=1)) / math.sqrt(num_chains)
    within = float(array_stats.mcse(kept, chain_axis=0, draw_axis=1, method="mean"))
    return Reference(
        value=float(kept.mean()),
        stderr=float(np.nanmax([between, within])),
        rhat=float(array_stats.rhat(kept, chain_axis=0, draw_axis=1)),
        acceptance=accepted / max(counted, 1),
        gradients=gradients,
        seconds=time.process_time() - began,
    )


def deep_linear_potential(
    weights: Sequence[Tensor], x: Tensor, y: Tensor, dtype: torch.dtype = torch.float64
) -> tuple[Potential, int]:
    """K of a deep linear net over (x, y), from second moments: its cost does not grow with n.

    L(P) − L(P*) = ½ tr[(P − B) S (P − B)ᵀ] − the same at P*, with S = xᵀx/n and B least squares.
    Written with Δ = P − P*, so that small K keep their digits: ½ tr[Δ S Δᵀ] + tr[Δ G*ᵀ], G* the
    gradient at P*.

    Returns:
        The potential, and d.
    """
    center = [weight.detach().double() for weight in weights]
    shapes = [weight.shape for weight in center]
    sizes = [weight.numel() for weight in center]
    x, y = x.double(), y.double()
    moments = (x.T @ x / len(x)).to(dtype)
    best = torch.linalg.multi_dot(center[::-1]) if len(center) > 1 else center[0]
    slope = ((best @ x.T - y.T) @ x / len(x)).to(dtype)
    best = best.to(dtype)
    flat = torch.cat([weight.flatten() for weight in center]).to(dtype)

    def potential(displacement: Tensor) -> tuple[Tensor, Tensor]:
        parts = (flat + displacement).split(sizes, dim=1)
        layers = [part.view(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]
        products = list(itertools.accumulate(layers, lambda below, w: w @ below))
        delta = products[-1] - best
        pulled = delta @ moments
        value = (delta * (pulled / 2 + slope)).sum(dim=(1, 2))
        above = pulled + slope
        grads: list[Tensor] = []
        for index in range(len(layers) - 1, 0, -1):
            grads.append((above @ products[index - 1].mT).flatten(1))
            above = layers[index].mT @ above
        grads.append(above.flatten(1))
        return value, torch.cat(grads[::-1], dim=1)

    return potential, sum(sizes)
