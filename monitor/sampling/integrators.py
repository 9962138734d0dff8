"""Steps of the chains. Each scheme moves all chains at once, on flat buffers of shape (chains, d).

All target p(x) ∝ exp(−U(x)) with ∇U = nβ ∇L_n(w* + x) + γ x.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(slots=True)
class Chains:
    """Where the chains are.

    Attributes:
        x: Displacements w − w*, shape (chains, d). Kept apart from w: near w* they are small, and
            would lose their digits in the sum.
        velocity: Velocities of an underdamped scheme, or a scheme's other state, shape (chains, d).
    """

    x: Tensor
    velocity: Tensor

    @classmethod
    def at_center(cls, x: Tensor) -> Chains:
        """All chains at w*, at rest; `x` is zero."""
        return cls(x, torch.zeros_like(x))


Work = Callable[[Chains, Tensor], Tensor]
"""Of the chains after a step, and ∇U there, shape (chains, d): what a Metropolis test adds to the
energies, shape (chains,), in double."""


class Integrator(Protocol):
    """One sampling scheme.

    Attributes:
        name: As the configuration calls it.
        exact_on_quadratics: The stationary variance of x is exact there for every stable step.
    """

    name: str
    exact_on_quadratics: bool

    def start(self, chains: Chains, generator: torch.Generator) -> None:
        """Put the chains at w*."""
        ...

    def refresh(self, chains: Chains, generator: torch.Generator) -> None:
        """Draw what chains in equilibrium hold beside their points."""
        ...

    def set_curvature(self, kappa: float) -> None:
        """Choose the step for a largest curvature κ of U."""
        ...

    def advance(self, chains: Chains, grad: Tensor, generator: torch.Generator) -> None:
        """One step, given ∇L_n at the present points.

        Args:
            chains: Positions and momenta of all chains; changed in place.
            grad: ∇L_n at the present positions, shape (chains, parameters), nats per unit of
                weight.
            generator: What noise is drawn from.
        """
        ...

    def watch(self, chains: Chains, force: Tensor) -> Work:
        """Watch the coming step, for `acceptance`.

        Args:
            chains: Before the step.
            force: ∇U there, shape (chains, d).

        Returns:
            log r − U(x) + U(x') of the step, as a function of where it ends.
        """
        ...

    def metric(self, chains: Chains) -> Tensor | None:
        """Diagonal metric P of the present step, (chains, d) or (d,); None is the identity."""
        ...

    @property
    def step_size(self) -> float:
        """ε in Lau's convention."""
        ...


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
    noise's first two moments enter there, so ξ is uniform with unit variance rather than normal:
    that is a quarter of the cost, and what is left of its flat tails after averaging over
    1/(hη) steps is not measurable.

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

    def _next_friction(self) -> float:
        """hη of the coming step."""
        self._steps_done += 1
        if self._damping is not None:
            return self._damping
        if self._friction is not None:
            return self._step * self._friction
        least = min(self._step * FRICTION * math.sqrt(self._localization), MAX_DAMPING)
        return max(1.0 / math.sqrt(self._steps_done), least)

    def advance(self, chains: Chains, grad: Tensor, generator: torch.Generator) -> None:
        """One step of all chains.

        Args:
            chains: Positions and momenta of all chains; changed in place.
            grad: ∇L_n at the present positions, shape (chains, parameters), nats per unit of
                weight.
            generator: What noise is drawn from.
        """
        h, damping = self._step, self._next_friction()
        c = math.exp(-damping)
        spread = math.sqrt(-math.expm1(-2 * damping))
        if self.root is not None:
            self._advance_in_metric(chains, grad, self.root, c, spread, generator)
            return
        for x, v, g in _blocks(chains.x, chains.velocity, grad):
            noise = uniform_noise(torch.empty_like(x), spread, generator)
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
    ) -> None:
        """The same; of large models a chain at a time, so that its blocks are those of √P."""
        h = self._step
        buffers = (chains.x, chains.velocity, grad)
        small = chains.x.numel() <= _block_size(chains.x)
        for some in [buffers] if small else zip(*buffers, strict=True):
            for x, v, g, root in [(*some, metric_root)] if small else _blocks(*some, metric_root):
                noise = uniform_noise(torch.empty_like(x), spread, generator)
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
        left = h / 2 * _dot(chains.velocity, force) - 3 / 8 * h**2 * _dot(force, force)

        def work(chains: Chains, force: Tensor) -> Tensor:
            force = force if root is None else force * root
            return left + h / 2 * _dot(chains.velocity, force) - h**2 / 8 * _dot(force, force)

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
        for x, g in _blocks(chains.x, grad):
            noise = torch.empty_like(x).normal_(0.0, math.sqrt(step), generator=generator)
            noise.add_(x, alpha=1.0 - step * self._localization / 2)
            torch.add(noise, g, alpha=-step * self._n_beta / 2, out=x)

    def watch(self, chains: Chains, force: Tensor) -> Work:
        """½ (x' − x)·(G + G') − (ε/8) (G'·PG' − G·PG)."""
        step, start, before = self._step, chains.x.clone(), force

        def work(chains: Chains, force: Tensor) -> Tensor:
            metric = self.metric(chains)
            weight = 1.0 if metric is None else metric
            squares = _dot(force * weight, force) - _dot(before * weight, before)
            return _dot(chains.x - start, before + force) / 2 - step / 8 * squares

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
        for x, g, square in _blocks(chains.x, grad, chains.velocity):
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


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Scalar products of the rows, in double: energies are compared with them."""
    product: Tensor = torch.linalg.vecdot(left, right)
    return product.cpu().double()


BLOCK, ACCELERATOR_BLOCK = 1 << 17, 1 << 24
"""Numbers updated at a time: few enough to stay in a processor's cache through all updates, and to
make their noise small beside the chains."""


def _block_size(buffer: Tensor) -> int:
    return BLOCK if buffer.device.type == "cpu" else ACCELERATOR_BLOCK


def _blocks(*buffers: Tensor) -> list[tuple[Tensor, ...]]:
    """The buffers, cut alike."""
    size = _block_size(buffers[0])
    if buffers[0].numel() <= size:
        return [buffers]
    return list(zip(*(buffer.reshape(-1).split(size) for buffer in buffers), strict=True))


_ODD = 0x0001_0001_0001_0001
"""Makes each of the four levels in a word odd: −32767, −32765 … 32767, symmetric about zero."""


def uniform_noise(out: Tensor, spread: float, generator: torch.Generator) -> Tensor:
    """Fill `out` with noise of mean 0 and standard deviation `spread`, uniform on 32,768 levels.

    One draw of 64 random bits serves four numbers.

    Args:
        out: Filled in place, any shape.
        spread: Standard deviation.
        generator: What is drawn from.
    """
    count = out.numel()
    words = torch.empty((count + 3) // 4, dtype=torch.int64, device=out.device)
    words.random_(-(2**63), None, generator=generator).bitwise_or_(_ODD)
    levels = words.view(torch.int16)[:count].view(out.shape)
    # Odd levels have variance (65536² − 4)/12.
    return out.copy_(levels).mul_(spread * math.sqrt(12.0 / (65536.0**2 - 4.0)))
