"""What a scheme must do. Each moves all chains at once, on flat buffers of shape (chains, d).

All target p(x) ∝ exp(−U(x)) with ∇U = nβ ∇L_n(w* + x) + γ x; see `underdamped` and `overdamped`.
"""

from __future__ import annotations

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
