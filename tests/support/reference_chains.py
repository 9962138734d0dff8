"""Long-run values of λ̂ from samplers that share no code with the estimator, and take no step of it.

The density is the estimator's own, p(x) ∝ exp(−U(x)), U = nβ K(w* + x) + γ/2 ‖x‖². Both samplers
leave it exactly invariant: no discretisation is in the result. What is left is the error of a
finite run, which is reported.

Deep linear nets: Gibbs. Given the others, a layer is Gaussian, and is drawn whole. Moves along the
fibre (a multiple of one hidden unit's rows goes to another's, its columns follow) leave the product
as it is and are Gaussian too.

Any other net: Hamiltonian Monte Carlo, leapfrog trajectories accepted by min(1, exp(H − H'))
(Duane et al. 1987; Neal 2011).
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
        draws: Draws of each chain, warm-up included.
        seconds: CPU time.
        acceptance: Share of proposals accepted; 1 for Gibbs.
    """

    value: float
    stderr: float
    rhat: float
    draws: int
    seconds: float
    acceptance: float = 1.0


@dataclass(frozen=True, slots=True)
class Effort:
    """When a reference is good enough.

    Attributes:
        num_chains: Chains, run side by side.
        min_draws: Draws of each chain at least; a third of all is warm-up.
        relative_stderr: Stop at this error, if R-hat is below `rhat`,
        rhat: (see above)
        max_seconds: or when this much CPU time is spent.
    """

    num_chains: int = 16
    min_draws: int = 300
    relative_stderr: float = 0.01
    rhat: float = 1.02
    max_seconds: float = 60.0


def run(draw: Callable[[bool], Tensor], effort: Effort) -> Reference:
    """Draw until it is good enough.

    Args:
        draw: Moves all chains, and returns nβ K of each; told whether this is still warm-up.
        effort: When to stop.
    """
    began = time.process_time()
    trace: list[Tensor] = []
    target = effort.min_draws
    while True:
        while len(trace) < target:
            trace.append(draw(len(trace) < effort.min_draws // 3).double())
            spent = time.process_time() - began
            if spent > effort.max_seconds and len(trace) >= 30:
                break
        found = _summary(torch.stack(trace, dim=1).numpy(), spent)
        good = found.rhat < effort.rhat and found.stderr < effort.relative_stderr * found.value
        if good or spent > effort.max_seconds:
            return found
        target = math.ceil(1.5 * len(trace))


def _summary(trace: np.ndarray, seconds: float) -> Reference:
    kept = trace[:, trace.shape[1] // 3 :]
    between = float(kept.mean(axis=1).std(ddof=1)) / math.sqrt(len(kept))
    within = float(array_stats.mcse(kept, chain_axis=0, draw_axis=1, method="mean"))
    return Reference(
        value=float(kept.mean()),
        stderr=max(between, within),
        rhat=float(array_stats.rhat(kept, chain_axis=0, draw_axis=1)),
        draws=trace.shape[1],
        seconds=seconds,
    )


def deep_linear_reference(
    weights: Sequence[Tensor],
    x: Tensor,
    y: Tensor,
    *,
    n_beta: float,
    localization: float,
    effort: Effort | None = None,
    seed: int = 0,
) -> Reference:
    """Long-run value for a deep linear net at `weights` with data x, y; it draws from the moments.

    With S = xᵀx/n, Δ = P − P* and G* the gradient at P*, K = ½ tr[Δ S Δᵀ] + tr[Δ G*ᵀ].
    """
    effort = effort or Effort()
    chains = Gibbs(weights, x, y, n_beta, localization, effort.num_chains, seed)
    return run(lambda _: chains.draw(), effort)


class Gibbs:
    """Chains of a deep linear net; all that depends on data is S and G*."""

    def __init__(
        self,
        weights: Sequence[Tensor],
        x: Tensor,
        y: Tensor,
        n_beta: float,
        localization: float,
        num_chains: int,
        seed: int,
    ) -> None:
        self.center = [weight.detach().double() for weight in weights]
        self.layers = [w.expand(num_chains, *w.shape).clone() for w in self.center]
        x, y = x.double(), y.double()
        self.moments = x.T @ x / len(x)
        self.best = _product(self.center)
        self.slope = (self.best @ x.T - y.T) @ x / len(x)
        self.n_beta, self.localization = n_beta, localization
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self) -> Tensor:
        """One sweep over the layers, and moves along the fibre at each hidden layer."""
        for node in range(len(self.layers) - 1):
            for unit in torch.randperm(len(self.center[node]), generator=self.generator)[:3]:
                self._shear(node, int(unit))
        for index in range(len(self.layers)):
            self._redraw(index)
        delta = _product(self.layers) - self.best
        return self.n_beta * (delta * (delta @ self.moments / 2 + self.slope)).sum(dim=(1, 2))

    def _redraw(self, index: int) -> None:
        """W_l from its Gaussian, of precision nβ (aᵀa ⊗ b S bᵀ) + γ with P = a W_l b."""
        above = _product(self.layers[index + 1 :], len(self.best))
        below = _product(self.layers[:index], len(self.moments))
        a, u = torch.linalg.eigh(above.mT @ above)
        m, v = torch.linalg.eigh(below @ self.moments @ below.mT)
        pull = (self.best @ self.moments - self.slope) * self.n_beta
        pull = above.mT @ pull @ below.mT + self.localization * self.center[index]
        precision = self.n_beta * a.clamp_min(0)[..., :, None] * m.clamp_min(0)[..., None, :]
        precision = precision + self.localization
        shape = self.layers[index].shape
        noise = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        rotated = u.mT @ pull @ v / precision + noise / precision.sqrt()
        self.layers[index] = u @ rotated @ v.mT

    def _shear(self, node: int, unit: int) -> None:
        """Row_unit += Σ_j t_j row_j below, column_j −= t_j column_unit above; t is Gaussian."""
        below, above = self.layers[node], self.layers[node + 1]
        rows = below.clone()
        rows[:, unit] = 0.0
        column = above[:, :, unit]
        size = column.square().sum(1)
        if not bool((size > 0).all()):  # before the first sweep
            return
        identity = torch.eye(rows.shape[1], dtype=rows.dtype)
        precision = self.localization * (rows @ rows.mT + size[:, None, None] * identity)
        off = torch.einsum("co,coh->ch", column, above - self.center[node + 1])
        off = off - torch.einsum("chi,ci->ch", rows, below[:, unit] - self.center[node][unit])
        factor = torch.linalg.cholesky(precision)
        noise = torch.randn(off.shape, generator=self.generator, dtype=off.dtype)[..., None]
        mean = torch.cholesky_solve(self.localization * off[..., None], factor)
        t = (mean + torch.linalg.solve_triangular(factor.mT, noise, upper=True))[..., 0]
        t[:, unit] = 0.0
        below[:, unit] += torch.einsum("chi,ch->ci", rows, t)
        above -= column[:, :, None] * t[:, None, :]


def _product(layers: Sequence[Tensor], size: int = 0) -> Tensor:
    """W_L … W_1; the identity of `size` of none."""
    result = layers[0] if layers else torch.eye(size, dtype=torch.float64)
    for layer in layers[1:]:
        result = layer @ result
    return result


def hmc_reference(
    potential: Potential,
    dimension: int,
    *,
    n_beta: float,
    localization: float,
    effort: Effort | None = None,
    max_leapfrogs: int = 256,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Reference:
    """Long-run value for any potential. In the warm-up the step follows an acceptance of 0.8.

    Trajectories last π/(2 √γ) on average (evenly drawn from half to one and a half of it), a
    quarter period of the softest direction there is, or `max_leapfrogs` steps where that is less.
    """
    effort = effort or Effort()
    generator = torch.Generator().manual_seed(seed)
    x = torch.zeros(effort.num_chains, dimension, dtype=dtype)

    def force(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        excess, grad = potential(x)
        energy = n_beta * excess + localization / 2 * x.square().sum(1)
        return excess, energy, n_beta * grad + localization * x

    excess, energy, grad = force(x)
    log_step, proposals, accepted = math.log(1e-2 / math.sqrt(localization)), 0, []

    def draw(warming: bool) -> Tensor:
        nonlocal x, excess, energy, grad, log_step, proposals
        step = math.exp(log_step)
        length = min(math.pi / 2 / math.sqrt(localization) / step, max_leapfrogs)
        leaps = max(1, round((0.5 + float(torch.rand((), generator=generator))) * length))
        if warming and proposals < 20:
            leaps = min(leaps, 8)
        velocity = torch.randn(x.shape, generator=generator, dtype=dtype)
        start = energy + velocity.square().sum(1) / 2
        moved, velocity = x, velocity - step / 2 * grad
        for leap in range(leaps):
            moved = moved + step * velocity
            new_excess, new_energy, new_grad = force(moved)
            velocity = velocity - step * (0.5 if leap == leaps - 1 else 1.0) * new_grad
        change = start - new_energy - velocity.square().sum(1) / 2
        probability = change.clamp_max(0.0).exp().nan_to_num(0.0)
        taken = torch.rand(len(x), generator=generator, dtype=dtype) < probability
        x = torch.where(taken[:, None], moved, x)
        grad = torch.where(taken[:, None], new_grad, grad)
        energy = torch.where(taken, new_energy, energy)
        excess = torch.where(taken, new_excess, excess)
        proposals += 1
        mean = float(probability.mean())
        if warming:
            log_step += (mean - 0.8) * max(0.2, 2 / (1 + proposals / 10))
        else:
            accepted.append(mean)
        return n_beta * excess

    found = run(draw, effort)
    return Reference(
        found.value, found.stderr, found.rhat, found.draws, found.seconds, float(np.mean(accepted))
    )


def deep_linear_potential(
    weights: Sequence[Tensor], x: Tensor, y: Tensor, dtype: torch.dtype = torch.float64
) -> tuple[Potential, int]:
    """K of a deep linear net over (x, y) from second moments, and d."""
    center = [weight.detach().double() for weight in weights]
    shapes, sizes = [w.shape for w in center], [w.numel() for w in center]
    x, y = x.double(), y.double()
    moments = (x.T @ x / len(x)).to(dtype)
    best = _product(center)
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
