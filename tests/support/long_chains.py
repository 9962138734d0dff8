"""Long-run values of λ̂ for small nets: Metropolis-adjusted chains on sufficient statistics.

A chain on the whole data is long in no time if the data are few rows. For a net without biases,
f(x) = W_L φ(… φ(W_1 x)), and the loss ½‖y − f(x)‖² averaged over n samples, there are few rows of
data, x and y with a weight c each, with the same loss up to a constant:

- linear nets: x = the R of a QR decomposition of the inputs, y = Qᵀ targets, c = 1;
- inputs of few distinct values: each value once, y = the mean of its targets, c = how many.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Net:
    """f(x) = W_L φ(… φ(W_1 x)), many nets at once: a point is a row of d numbers.

    Attributes:
        widths: Widths of the layers, input first.
        tanh: φ is tanh; else the identity.
    """

    widths: tuple[int, ...]
    tanh: bool = False

    @property
    def num_parameters(self) -> int:
        """Number of parameters d."""
        return sum(a * b for a, b in zip(self.widths, self.widths[1:], strict=False))

    def matrices(self, points: Tensor) -> list[Tensor]:
        """W_1 to W_L of each point, each of shape (points, outputs, inputs)."""
        shapes = [(b, a) for a, b in zip(self.widths, self.widths[1:], strict=False)]
        parts = points.split([a * b for a, b in shapes], dim=-1)
        return [p.reshape(-1, *shape) for p, shape in zip(parts, shapes, strict=True)]

    def outputs(self, points: Tensor, x: Tensor) -> Tensor:
        """f(x) of each point, shape (points, rows, outputs)."""
        hidden = x.expand(len(points), *x.shape)
        for depth, matrix in enumerate(self.matrices(points)):
            hidden = hidden.tanh() if depth and self.tanh else hidden
            hidden = hidden @ matrix.mT
        return hidden


@dataclass(frozen=True)
class Rows:
    """Few rows that stand for n samples.

    Attributes:
        x: Inputs, shape (rows, inputs).
        y: Targets, shape (rows, outputs).
        counts: Weight c of each row.
        n: Samples they stand for.
    """

    x: Tensor
    y: Tensor
    counts: Tensor
    n: int

    @classmethod
    def of(cls, net: Net, x: Tensor, y: Tensor) -> Rows:
        """The rows for these data, in fp64."""
        x, y = x.double(), y.double()
        if not net.tanh:
            q, r = torch.linalg.qr(x)
            return cls(r, q.mT @ y, torch.ones(len(r), dtype=r.dtype), len(x))
        values, which, counts = x.unique(dim=0, return_inverse=True, return_counts=True)
        means = torch.zeros(len(values), y.shape[1], dtype=y.dtype).index_add_(0, which, y)
        return cls(values, means / counts[:, None], counts.double(), len(x))

    def loss(self, net: Net, points: Tensor) -> Tensor:
        """L_n of each point up to one constant, in nats."""
        squares = (self.y - net.outputs(points, self.x)).square().sum(-1)
        return 0.5 * squares @ self.counts / self.n


def minimum(net: Net, rows: Rows, start: Tensor, iterations: int = 1000) -> Tensor:
    """Where L-BFGS comes to rest from `start`, shape (d,)."""
    point = start.double().clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [point],
        max_iter=iterations,
        max_eval=2 * iterations,
        tolerance_grad=1e-10,
        tolerance_change=1e-14,
        history_size=50,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = rows.loss(net, point[None]).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return point.detach()


def long_run_value(
    net: Net,
    rows: Rows,
    center: Tensor,
    *,
    n_beta: float,
    localization: float,
    num_chains: int = 64,
    num_moves: int = 150,
    seed: int = 0,
) -> tuple[float, float]:
    """λ̂ = nβ (E[L_n] − L_n(w*)) by Hamiltonian Monte Carlo, and its standard error.

    Unit mass, half of the moves dropped as burn-in, path lengths up to 2/√γ (a third of the period
    of the flattest direction), and a leapfrog step held at 85 % acceptance during burn-in.

    Args:
        net: The net.
        rows: Its data.
        center: w*, shape (d,).
        n_beta: nβ.
        localization: γ.
        num_chains: Chains, all at once; the error is taken between them.
        num_moves: Moves of each chain, burn-in included.
        seed: Seed of the chains.
    """
    generator = torch.Generator().manual_seed(seed)
    center = center.double()
    at_center = rows.loss(net, center[None])

    def evaluate(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """nβK, the potential U = nβK + γ/2 ‖x‖², and ∇U at displacements x."""
        leaf = x.detach().requires_grad_()
        scaled = n_beta * (rows.loss(net, center + leaf) - at_center)
        potential = scaled + 0.5 * localization * leaf.square().sum(-1)
        (gradient,) = torch.autograd.grad(potential.sum(), leaf)
        return scaled.detach(), potential.detach(), gradient

    x = torch.zeros(num_chains, len(center), dtype=torch.float64)
    scaled, potential, gradient = evaluate(x)
    longest = 2.0 / math.sqrt(localization)
    step, kept = 0.5 / math.sqrt(n_beta + localization), []
    for move in range(num_moves):
        length = longest * float(torch.rand((), generator=generator).clamp_min(0.1))
        jittered = step * (0.8 + 0.4 * float(torch.rand((), generator=generator)))
        momentum = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        energy = potential + 0.5 * momentum.square().sum(-1)
        new, force = x, gradient
        for _ in range(max(1, round(length / jittered))):
            momentum = momentum - 0.5 * jittered * force
            new = new + jittered * momentum
            found = evaluate(new)
            force = found[2]
            momentum = momentum - 0.5 * jittered * force
        rise = found[1] + 0.5 * momentum.square().sum(-1) - energy
        chance = (-rise).exp().clamp_max(1.0).nan_to_num(0.0)
        taken = torch.rand(num_chains, generator=generator, dtype=x.dtype) < chance
        x = torch.where(taken[:, None], new, x)
        gradient = torch.where(taken[:, None], force, gradient)
        scaled, potential = (
            torch.where(taken, a, b) for a, b in zip(found[:2], (scaled, potential), strict=True)
        )
        if move < num_moves // 2:
            step *= math.exp(0.5 * (float(chance.mean()) - 0.85))
        else:
            kept.append(scaled)
    means = torch.stack(kept).mean(0)
    return float(means.mean()), float(means.std()) / math.sqrt(num_chains)


def weights_of(net: Net, point: Tensor) -> Sequence[Tensor]:
    """W_1 to W_L of one point, in fp32, each of shape (outputs, inputs)."""
    return [matrix[0].float() for matrix in net.matrices(point[None])]
