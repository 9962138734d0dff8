"""Schemes without velocities: SGLD, plain and preconditioned."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from phasewatch.monitor.sampling.buffers import blocks, row_dots
from phasewatch.monitor.sampling.integrators import Chains, Work


class Sgld:
    """Overdamped Langevin dynamics in the convention of Lau et al. 2023 (arXiv 2308.12108).

        w ← w − (ε/2) [nβ ĝ(w) + γ (w − w*)] + √ε ξ

    On a quadratic with curvature κ the Euler step inflates the variance by exactly 1/(1 − εκ/4).

    Args:
        n_beta: nβ.
        localization: γ.
        step: ε; None sets ε = 2 s/κ with s = `FRACTION`.
    """

    name = "sgld"
    exact_on_quadratics = False
    FRACTION = 0.1
    """Share of the step ε = 2/κ: the stiffest direction is inflated by 5 %, others by less."""

    def __init__(self, n_beta: float, localization: float, step: float | None = None) -> None:
        self._n_beta = n_beta
        self._localization = localization
        self._given = step
        self._step = step or 0.0

    @property
    def step_size(self) -> float:
        """ε."""
        return self._step

    def set_curvature(self, kappa: float) -> None:
        """Set ε = 2 s/κ, unless a step was given."""
        if self._given is None:
            self._step = 2 * self.FRACTION / kappa

    def start(self, chains: Chains, generator: torch.Generator) -> None:  # noqa: ARG002
        """All chains at w*."""
        chains.x.zero_()

    def refresh(self, chains: Chains, generator: torch.Generator) -> None:
        """There is nothing."""

    def advance(self, chains: Chains, grad: Tensor, generator: torch.Generator) -> None:
        """One step of all chains.

        Args:
            chains: Positions and momenta of all chains; changed in place.
            grad: ∇L_n at the present positions, shape (chains, parameters), nats per unit of
                weight.
            generator: What noise is drawn from.
        """
        step = self._step
        for x, g in blocks(chains.x, grad):
            noise = torch.empty_like(x).normal_(0.0, math.sqrt(step), generator=generator)
            noise.add_(x, alpha=1.0 - step * self._localization / 2)
            torch.add(noise, g, alpha=-step * self._n_beta / 2, out=x)

    def watch(self, chains: Chains, force: Tensor) -> Work:
        """½ (x' − x)·(G + G') − (ε/8) (G'·PG' − G·PG)."""
        step, start, before = self._step, chains.x.clone(), force

        def work(chains: Chains, force: Tensor) -> Tensor:
            metric = self.metric(chains)
            weight = 1.0 if metric is None else metric
            squares = row_dots(force * weight, force) - row_dots(before * weight, before)
            return row_dots(chains.x - start, before + force) / 2 - step / 8 * squares

        return work

    def metric(self, chains: Chains) -> Tensor | None:  # noqa: ARG002
        """The identity."""
        return None


class RmspropSgld(Sgld):
    """SGLD preconditioned by the running size of the gradient (pSGLD; Li et al. 2016).

        V ← α V + (1 − α) ĝ²,   P = 1/(√V + a),   V = 0 at the start
        w ← w − (ε/2) P [nβ ĝ(w) + γ (w − w*)] + √(εP) ξ

    Conventions are those of devinterp: ĝ is the gradient of the mean loss without the
    localization, and a = 0.1, α = 0.99. The term with the derivative of P is left out, as
    everywhere in the literature: P changes slowly, and the density is the target's up to that.
    """

    name = "rmsprop_sgld"
    DECAY, DAMPING = 0.99, 0.1

    def start(self, chains: Chains, generator: torch.Generator) -> None:
        """All chains at w*, V = 0."""
        super().start(chains, generator)
        chains.velocity.zero_()

    def advance(self, chains: Chains, grad: Tensor, generator: torch.Generator) -> None:
        """One step of all chains; `velocity` holds V.

        Args:
            chains: Positions and momenta of all chains; changed in place.
            grad: ∇L_n at the present positions, shape (chains, parameters), nats per unit of
                weight.
            generator: What noise is drawn from.
        """
        step = self._step
        for x, g, square in blocks(chains.x, grad, chains.velocity):
            square.mul_(self.DECAY).addcmul_(g, g, value=1 - self.DECAY)
            metric = self._metric(square)
            noise = torch.empty_like(x).normal_(0.0, math.sqrt(step), generator=generator)
            force = (g * (-step * self._n_beta / 2)).add_(x, alpha=-step * self._localization / 2)
            x.add_(noise.mul_(metric.sqrt()).addcmul_(force, metric))

    def metric(self, chains: Chains) -> Tensor:
        """P."""
        return self._metric(chains.velocity)

    def _metric(self, square: Tensor) -> Tensor:
        return square.sqrt().add_(self.DAMPING).reciprocal_()
