"""Lanczos steps that can be left and taken up again, and shared by all that read curvature.

The Hessian of a turn, and one sequence of steps from one random vector of signs, belong to whoever
measures: its top eigenvalues, its rank and the directions that the trace takes out are read off the
same products. What an observable finds does not depend on which of the others were measured.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.work import Work
from phasewatch.monitor.observables.sharing import Stopwatch, random_of
from phasewatch.monitor.sampling.hessian import MAX_PRODUCTS, Hessian, Way

BLOCK = 8
"""Vectors for which memory is taken at a time."""

_TINY = 1e-30


class Lanczos:
    """Lanczos steps with full reorthogonalisation, one product each.

    scipy's `eigsh` restarts, so that it takes several times the products for the same digits, and
    gives nothing when they are spent.

    Args:
        hessian: H v for a vector of shape (d,).
        start: Where to start, shape (d,), not zero.

    Attributes:
        closed: No further vector is left: the space is exhausted.
    """

    def __init__(self, hessian: Hessian, start: Tensor) -> None:
        self._hessian = hessian
        self._blocks: list[Tensor] = []
        self._num = 0
        self._diagonal: list[float] = []
        self._beside: list[float] = []
        self.closed = False
        self._add(start / start.norm())

    def __len__(self) -> int:
        """Steps taken so far."""
        return len(self._diagonal)

    def step(self) -> None:
        """Take one product, and one vector more."""
        vector = self._blocks[-1][(self._num - 1) % BLOCK]
        rest = self._hessian(vector)
        self._diagonal.append(float(vector @ rest))
        for _ in range(2):  # twice is enough (Parlett 1998, section 6.9)
            rest = self.away(rest, len(self))
        beside = float(rest.norm())
        self._beside.append(beside)
        scale = max(float(np.abs(self.ritz(len(self)).values).max()), _TINY)
        rounding = 10 * torch.finfo(rest.dtype).eps * math.sqrt(len(rest)) * scale
        self.closed = beside <= rounding or len(self) == len(rest)
        if not self.closed:
            self._add(rest / beside)

    def away(self, vector: Tensor, num: int) -> Tensor:
        """A vector less its part in the span of the first vectors of the basis."""
        for index, block in enumerate(self._blocks):
            known = block[: max(0, min(num, self._num) - index * BLOCK)]
            vector = vector - known.T @ (known @ vector)
        return vector

    def ritz(self, num: int) -> Ritz:
        """What the first so many steps have found."""
        diagonal, beside = self._diagonal[:num], self._beside[:num]
        matrix = np.diag(diagonal) + np.diag(beside[:-1], 1) + np.diag(beside[:-1], -1)
        values, vectors = np.linalg.eigh(matrix)
        return Ritz(values, vectors[0] ** 2, beside[-1] * np.abs(vectors[-1]))

    def trace(self, num: int) -> tuple[float, float]:
        """tr(Qᵀ H Q) and ‖H Q‖_F², Q being the first so many vectors of the basis."""
        diagonal, beside = np.array(self._diagonal[:num]), np.array(self._beside[:num])
        squares = (diagonal**2).sum() + 2 * (beside[:-1] ** 2).sum() + (beside[-1:] ** 2).sum()
        return float(diagonal.sum()), float(squares)

    def _add(self, vector: Tensor) -> None:
        if self._num % BLOCK == 0:
            self._blocks.append(vector.new_empty((min(BLOCK, len(vector)), len(vector))))
        self._blocks[-1][self._num % BLOCK] = vector
        self._num += 1


class Ritz:
    """What Lanczos steps tell of a spectrum.

    Attributes:
        values: Ritz values θ, ascending, shape (m,).
        weights: Of the quadrature with nodes θ: squared first components of the tridiagonal
            matrix's eigenvectors, shape (m,).
        residuals: ‖H y − θ y‖ of each Ritz vector y, shape (m,).
    """

    def __init__(
        self,
        values: NDArray[np.float64],
        weights: NDArray[np.float64],
        residuals: NDArray[np.float64],
    ) -> None:
        self.values = values
        self.weights = weights
        self.residuals = residuals


class Allowance(Stopwatch):
    """What one observable may spend on products: so many, and its time.

    Args:
        context: The measurement's context, with its deadline.
        max_products: Products at most, those that were found done among them.

    Attributes:
        num_products: Products so far.
    """

    def __init__(self, context: MeasureContext, max_products: int = MAX_PRODUCTS) -> None:
        super().__init__()
        self._deadline = context.deadline_seconds
        self._max_products = max_products
        self.num_products = 0

    @property
    def exhausted(self) -> str:
        """Why no further product fits; empty while one does."""
        if self.num_products >= self._max_products:
            return f"{self.num_products} Hessian-vector products were not enough"
        if self.num_products and self.seconds + self.slowest > self._deadline:
            return f"its time was over after {self.num_products} Hessian-vector products"
        return ""


class Spectrum:
    """The Hessian of the probe loss in one turn, and the steps that all share.

    Args:
        context: The measurement's context.
        way: How products were found to be taken at an earlier measurement.

    Attributes:
        hessian: Takes the products.
        run: Steps from a random vector of signs.
        num_vectors: Vectors of d numbers there is memory for, `MAX_PRODUCTS` at most.

    Raises:
        RefusedError: There is no loss, it cannot be differentiated, or there is no memory.
        MeasurementError: The loss is not finite at w*.
    """

    def __init__(self, context: MeasureContext, way: Way | None) -> None:
        self.hessian = hessian_of(context, way)
        self.num_vectors = self.hessian.vectors_that_fit(MAX_PRODUCTS)
        self.run = Lanczos(self.hessian, self.signs(random_of(context, "curvature")))

    @classmethod
    def of(cls, context: MeasureContext, way: Way | None) -> Spectrum:
        """That of the turn; it is made by whoever asks first."""
        about = (context.params, context.loss_fn, context.batches)
        return context.shared.get("spectrum", lambda: cls(context, way), *about)

    def signs(self, random: torch.Generator) -> Tensor:
        """Independent signs ±1, shape (d,)."""
        bits = torch.randint(
            2, (self.hessian.num_parameters,), generator=random, device=random.device
        )
        return 2 * bits.to(self.hessian.problem.layout.state_dtype) - 1

    def normal(self, random: torch.Generator) -> Tensor:
        """Independent standard normal numbers, shape (d,)."""
        return torch.randn(
            self.hessian.num_parameters,
            generator=random,
            device=random.device,
            dtype=self.hessian.problem.layout.state_dtype,
        )


def hessian_of(context: MeasureContext, way: Way | None = None) -> Hessian:
    """The Hessian of the turn, and with it the posed problem; made by whoever asks first.

    Raises:
        RefusedError: There is no loss, or it cannot be differentiated.
        MeasurementError: The loss is not finite at w*.
    """
    about = (context.params, context.loss_fn, context.batches)
    hessian = context.shared.get("hessian", lambda: Hessian(context, way=way), *about)
    hessian.way = hessian.way or way
    return hessian


def forwards_to_pose(context: MeasureContext) -> float:
    """Forward passes that are still to be made before the first product."""
    about = (context.params, context.loss_fn, context.batches)
    return 0.0 if context.shared.has("hessian", *about) else 1.0


def work_of_steps(context: MeasureContext, num: int, others: float = 0.0) -> Work:
    """What is still to be done for so many of the shared steps, and for other products.

    Step m is made orthogonal to the m vectors before it twice, with two passes over each.

    Args:
        context: The measurement's context.
        num: Lanczos steps that are needed.
        others: Products beside them.
    """
    known = min(steps_done(context), num)
    return Work(
        forwards=forwards_to_pose(context),
        hessian_products=num - known + others,
        weight_passes=2.0 * (num**2 - known**2) + 20.0 * (num - known + others),
    )


def steps_done(context: MeasureContext) -> int:
    """Lanczos steps that were taken in this turn."""
    about = (context.params, context.loss_fn, context.batches)
    if not context.shared.has("spectrum", *about):
        return 0
    return len(Spectrum.of(context, None).run)
