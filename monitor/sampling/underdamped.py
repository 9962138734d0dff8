"""Schemes with velocities, or what stands for them: BAOAB, and its limit of infinite friction."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from phasewatch.monitor.sampling.buffers import block_size, blocks, row_dots
from phasewatch.monitor.sampling.increments import increments
from phasewatch.monitor.sampling.integrators import Chains, Work

FRICTION, MAX_DAMPING = 4.0, 0.6
"""hη is never below the smaller of 4 √γ h and 0.6. The first is twice what is critical for the
localization, the softest direction there is. Beyond the second, chains of a strong localization
only crawl: with hη = 3 they kept half as many independent draws."""


class Baoab:
    """Underdamped Langevin dynamics with unit mass, split as BAOAB (Leimkuhler & Matthews 2013).

    With step h and friction η, c = exp(−hη):

        B  v ← v − h ∇U(x)        (the half kicks of neighbouring steps share one gradient)
        A  x ← x + (h/2) v
        O  v ← c v + √(1 − c²) ξ
        A  x ← x + (h/2) v

    On a quadratic U the stationary variance of x is exact for every stable h (h √κ < 2). Only the
    first two moments of the noise ξ enter there; `increments` says when it is normal.

    Friction falls with the number k of steps from w*, h η_k = 1/√k. As chains spread along soft
    directions, a product of weights makes others stiffer. An oscillator that is stiffened slowly
    keeps E/ω, so it heats up with ω; where ω grows as t^a, friction c/t leaves it a/(c − a) too
    hot. With a constant η, hη = 0.05, nets of five layers read 28 % high after 128 draws and 16 %
    after 512. Too much friction keeps the chains at w*: soft directions are not filled before
    (ωt)² = 2c. Here c = √k, so both errors fall as the chains grow longer, whatever their length.

    With a metric P the same step is made in the coordinates x/√P: forces and moves are multiplied
    by √P, velocities stay of unit mass (`mass`).

    Args:
        n_beta: nβ.
        localization: γ.
        friction: η; None takes hη = 1/√k, or the least that `FRICTION` says.
        step: h; None sets h = 2 s/√κ with s = `FRACTION`.

    Attributes:
        root: √P, shape (d,); None is the identity.
    """

    name = "baoab"
    exact_on_quadratics = True
    FRACTION = 0.4
    """Share of the stability limit h √κ = 2."""

    def __init__(
        self,
        n_beta: float,
        localization: float,
        friction: float | None = None,
        step: float | None = None,
    ) -> None:
        self._n_beta = n_beta
        self._localization = localization
        self._given = step
        self._friction = friction
        self._damping: float | None = None
        self._step = step or 0.0
        self._steps_done = 0
        self.root: Tensor | None = None

    @property
    def step_size(self) -> float:
        """ε = h²."""
        return self._step**2

    def set_curvature(self, kappa: float) -> None:
        """Set h = 2 s/√κ, unless a step was given."""
        if self._given is None:
            self._step = 2 * self.FRACTION / math.sqrt(kappa)

    def set_damping(self, damping: float) -> None:
        """Set hη to one value for all steps to come."""
        self._damping = damping

    def start(self, chains: Chains, generator: torch.Generator) -> None:
        """All chains at w*, with velocities of equilibrium."""
        chains.x.zero_()
        self.refresh(chains, generator)

    def refresh(self, chains: Chains, generator: torch.Generator) -> None:
        """Velocities of equilibrium, and the friction of a start."""
        chains.velocity.normal_(generator=generator)
        self._steps_done = 0

    def _lasting_friction(self) -> float:
        """hη in the long run."""
        if self._damping is not None:
            return self._damping
        if self._friction is not None:
            return self._step * self._friction
        return min(self._step * FRICTION * math.sqrt(self._localization), MAX_DAMPING)

    def _next_friction(self, lasting: float) -> float:
        """hη of the coming step."""
        self._steps_done += 1
        if self._damping is not None or self._friction is not None:
            return lasting
        return max(1.0 / math.sqrt(self._steps_done), lasting)

    def advance(self, chains: Chains, grad: Tensor, generator: torch.Generator) -> None:
        """One step of all chains.

        Args:
            chains: Positions and momenta of all chains; changed in place.
            grad: ∇L_n at the present positions, shape (chains, parameters), nats per unit of
                weight.
            generator: What noise is drawn from.
        """
        h, lasting = self._step, self._lasting_friction()
        damping = self._next_friction(lasting)
        c = math.exp(-damping)
        spread = math.sqrt(-math.expm1(-2 * damping))
        if self.root is not None:
            self._advance_in_metric(chains, grad, self.root, c, spread, generator, lasting)
            return
        for x, v, g in blocks(chains.x, chains.velocity, grad):
            noise = increments(x, spread, generator, damping=lasting)
            v.add_(g, alpha=-h * self._n_beta)
            if self._localization:
                v.add_(x, alpha=-h * self._localization)
            x.add_(v, alpha=h / 2)
            torch.add(noise, v, alpha=c, out=v)
            x.add_(v, alpha=h / 2)

    def _advance_in_metric(
        self,
        chains: Chains,
        grad: Tensor,
        metric_root: Tensor,
        c: float,
        spread: float,
        generator: torch.Generator,
        lasting: float,
    ) -> None:
        """The same; of large models a chain at a time, so that its blocks are those of √P."""
        h = self._step
        buffers = (chains.x, chains.velocity, grad)
        small = chains.x.numel() <= block_size(chains.x)
        for some in [buffers] if small else zip(*buffers, strict=True):
            for x, v, g, root in [(*some, metric_root)] if small else blocks(*some, metric_root):
                noise = increments(x, spread, generator, damping=lasting)
                v.addcmul_(g, root, value=-h * self._n_beta)
                if self._localization:
                    v.addcmul_(x, root, value=-h * self._localization)
                x.addcmul_(v, root, value=h / 2)
                torch.add(noise, v, alpha=c, out=v)
                x.addcmul_(v, root, value=h / 2)

    def watch(self, chains: Chains, force: Tensor) -> Work:
        """(h/2) (p·G + q·G') + (h²/8) (|G|² − |G'|²), p = v − h G and q around the friction."""
        h, root = self._step, self.root
        force = force if root is None else force * root
        left = h / 2 * row_dots(chains.velocity, force) - 3 / 8 * h**2 * row_dots(force, force)

        def work(chains: Chains, force: Tensor) -> Tensor:
            force = force if root is None else force * root
            return (
                left + h / 2 * row_dots(chains.velocity, force) - h**2 / 8 * row_dots(force, force)
            )

        return work

    def metric(self, chains: Chains) -> Tensor | None:  # noqa: ARG002
        """P, shape (d,)."""
        return None if self.root is None else self.root.square()


class LeimkuhlerMatthews(Baoab):
    """Leimkuhler & Matthews 2013: an overdamped step whose noise averages two neighbours.

        w ← w − (ε/2) [nβ ĝ(w) + γ (w − w*)] + √ε (ξ_t + ξ_{t+1})/2

    The velocities hold the noise ξ. It is BAOAB with h = √ε in the limit of infinite friction, at
    the cost of an Euler step, and like it exact on a quadratic. It holds no energy for long, so
    minibatch noise heats it as it heats SGLD and no more.

    Args:
        n_beta: nβ.
        localization: γ.
        step: ε; None sets ε = 4 s²/κ with s = `FRACTION`.
    """

    name = "lm"
    FRACTION = 0.45

    def __init__(self, n_beta: float, localization: float, step: float | None = None) -> None:
        root = None if step is None else math.sqrt(step)
        super().__init__(n_beta, localization, friction=math.inf, step=root)
