"""Linear regression at its minimum: its local posterior is Gaussian, and all covariances are known.

With r_i = w*·x_i − y_i a loss is ℓ_i(w* + u) = ½ r_i² + g_i·u + ½ u'H_i u, g_i = r_i x_i and
H_i = x_i x_i'. At the minimum of L = mean ℓ_i the mean of g_i is zero, so that u ~ N(0, S) with
S = (nβ H + γ)⁻¹, H = mean H_i, or the inverse of a block of it where only a component moves. Odd
moments vanish, and by Isserlis' theorem

    E[½ u'A u] = ½ tr(A S),   Cov[½ u'A u, ½ u'B u] = ½ tr(A S B S),   Cov[a·u, b·u] = a'S b.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

PARTS = {"first": slice(0, 2), "second": slice(2, None)}


class TwoPartLinear(nn.Module):
    """w·x, the weights in two parameters."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        for name, place in PARTS.items():
            self.register_parameter(name, nn.Parameter(weight[place].float().clone()))

    def forward(self, x: Tensor) -> Tensor:
        """Shape (samples,)."""
        return x @ torch.cat([self.first, self.second])


def half_square(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Losses of each sample, up to a constant in nats for unit noise."""
    return 0.5 * (model(batch[0]) - batch[1]).square()


@dataclass(frozen=True)
class Regression:
    """A data set with its fit, and a second one.

    Attributes:
        probe: Inputs and targets.
        second: Those of the second data set.
        weight: w*, in fp64.
        n_beta: nβ.
        localization: γ.
    """

    probe: tuple[Tensor, Tensor]
    second: tuple[Tensor, Tensor]
    weight: Tensor
    n_beta: float = 20.0
    localization: float = 2.0

    @classmethod
    def make(cls, seed: int = 0, num: int = 60, num_second: int = 12, width: int = 6) -> Regression:
        """Data of noise 0.7, and wider ones of noise 1."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        truth, x, far = normal(width), normal(num, width), 2 * normal(num_second, width) + 0.5
        y, far_y = x @ truth + 0.7 * normal(num), far @ truth + normal(num_second)
        fit = torch.linalg.lstsq(x.double(), y.double()[:, None]).solution[:, 0]
        return cls((x, y), (far, far_y), fit)

    @property
    def model(self) -> TwoPartLinear:
        """A new model at w*."""
        return TwoPartLinear(self.weight)

    def cut(self, data: tuple[Tensor, Tensor], *places: int) -> list[tuple[Tensor, Tensor]]:
        """Data in batches that end at these places."""
        ends = [0, *places, len(data[0])]
        return [(data[0][a:b], data[1][a:b]) for a, b in pairwise(ends)]

    def influence(self) -> np.ndarray:
        """−Cov[ℓ_i, ℓ_q] of each sample with each of the second data."""
        (slopes, bends), (far_slopes, far_bends) = (
            self._orders(self.probe),
            self._orders(self.second),
        )
        spread = self._spread(slice(None))
        linear = slopes @ spread @ far_slopes.T
        square = torch.einsum("iab,bc,jcd,da->ij", bends, spread, far_bends, spread) / 2
        return -(linear + square).numpy()

    def susceptibility(self, part: slice) -> tuple[np.ndarray, np.ndarray]:
        """χ, and −Cov_C, of each term of the second data."""
        bend = self._orders(self.probe)[1].mean(0)
        shift = self._orders(self.second)[1] - bend
        whole, own = self._spread(slice(None)), self._spread(part)
        held = torch.einsum("ab,bc,jcd,da->j", bend, own, shift, own) / 2
        level = (bend @ own).trace() / 2
        gap = torch.einsum("jab,ba->j", shift, own - whole) / 2
        return -(held + level * gap).numpy(), -held.numpy()

    def without(self, index: int) -> np.ndarray:
        """By how much E[ℓ_q] rises without sample `index`, all others weighted as before."""
        slopes, bends = self._orders(self.probe)
        far_slopes, far_bends = self._orders(self.second)
        share = self.n_beta / len(slopes)
        before = self._precision()
        after = before - share * bends[index]
        moved = torch.linalg.solve(after, share * slopes[index])
        spread = torch.linalg.inv(after) + moved[:, None] * moved - torch.linalg.inv(before)
        return (far_slopes @ moved + torch.einsum("jab,ba->j", far_bends, spread) / 2).numpy()

    def _orders(self, data: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, y = (part.double() for part in data)
        return (x @ self.weight - y)[:, None] * x, x[:, :, None] * x[:, None, :]

    def _precision(self) -> Tensor:
        bend = self._orders(self.probe)[1].mean(0)
        return self.n_beta * bend + self.localization * torch.eye(len(bend)).double()

    def _spread(self, part: slice) -> Tensor:
        """Covariance of u where only these weights move."""
        precision = self._precision()
        spread = torch.zeros_like(precision)
        spread[part, part] = torch.linalg.inv(precision[part, part])
        return spread


def scaled(found: np.ndarray, truth: np.ndarray, stderr: np.ndarray) -> np.ndarray:
    """Errors in units of the stated ones."""
    return (found - truth) / stderr


def ranks(values: Sequence[float]) -> np.ndarray:
    """The place of each value among all."""
    return np.argsort(np.argsort(values))
