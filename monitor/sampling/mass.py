"""A mass for each weight, from the forces that the chains meet.

In equilibrium E[(∂_i U)²] = E[∂²_i U] for any U: the mean square of the force on a weight is the
curvature that the chains meet along it, averaged over the posterior, and costs nothing to know.
Chains then move in the coordinates x_i/√P_i,

    P_i = min(1, c / E[(∂_i U)²]),   c the median over the weights,

with unit mass. The target is the same for any fixed P. Weights of little curvature keep P = 1: made
longer still, their steps would meet what stiffens them only elsewhere. P is set anew at a few
draws, each time four times as far apart, so that most of the draws have one.

On a ReLU net whose layers are scaled by 20 and 1/20 the largest curvature falls from 270,000 to 15,
on a small tanh net at its minimum from 31,000 to 1,400; on deep linear nets at singular points P
hardly differs from 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from phasewatch.monitor.core.together import ALONE, Together, in_all

EVERY = 4
"""Draws from one look at the forces to the next: neighbours say the same."""

FIRST_UPDATE, APART = 32, 4
"""Draw after which P is set for the first time, and the factor to the next time."""


class Mass:
    """Running mean squares of the forces.

    Args:
        like: A vector of d numbers; gives dtype and device.
        mask: Which coordinates are sampled, shape (d,); None is all.
        together: The processes among which coordinates are spread. c is then the mean of their
            medians, by the number of their weights.
    """

    def __init__(
        self, like: Tensor, mask: Tensor | None = None, together: Together = ALONE
    ) -> None:
        self._together = together
        self._squares = torch.zeros_like(like)
        self._mask = mask
        self._count = 0

    def add(self, x: Tensor, grad: Tensor, n_beta: float, localization: float) -> None:
        """Take in the forces nβ∇L + γx at the points of the chains.

        Args:
            x: Positions of the chains less w*, shape (chains, d).
            grad: ∇L there, shape (chains, d), nats per unit of weight.
            n_beta: nβ.
            localization: γ.
        """
        for point, slope in zip(x, grad, strict=True):
            force = (slope * n_beta).add_(point, alpha=localization)
            self._squares.addcmul_(force, force)
        self._count += len(x)

    def root(self, localization: float) -> Tensor | None:
        """√P, shape (d,), and forget what it was made of; None if it is not finite."""
        if not self._count:
            return None
        squares = self._squares.div_(self._count).add_(localization)
        sampled = squares if self._mask is None else squares[self._mask > 0]
        middle = self._middle(sampled)
        root = (middle / squares.clamp_min(1e-30)).clamp_max_(1.0).sqrt_()
        self._squares, self._count = torch.zeros_like(squares), 0
        is_good = bool((torch.isfinite(root) & (root > 0.0)).all())
        return root if in_all(self._together, is_good) else None

    def _middle(self, sampled: Tensor) -> Tensor:
        if self._together.size == 1:
            return sampled.median()
        number = len(sampled)
        here = sampled.median() if number else sampled.new_zeros(())
        sums = self._together.total(torch.stack([here * number, sampled.new_tensor(number)]))
        return sums[0] / sums[1]
