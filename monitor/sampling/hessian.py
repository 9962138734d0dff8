"""Products of the Hessian of the probe loss with vectors.

With L_n the mean probe loss and H its Hessian at w*, over all sampled parameters,

    H v = ∇(∇L_n · v)                                    where the loss has a second derivative,
    H v ≈ [∇L_n(w* + δv) − ∇L_n(w* − δv)] / 2δ           where it has none to offer: reentrant
                                                         checkpointing, functions of the user's own.

Each takes two gradients over the whole probe.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.errors import MeasurementError, RefusedError
from phasewatch.monitor.sampling.engine import LoopEngine, evaluate, plain_attention
from phasewatch.monitor.sampling.engine_choice import working_loop
from phasewatch.monitor.sampling.memory_budget import FREE_SHARE, free_bytes, loop_bytes, mebibytes
from phasewatch.monitor.sampling.posing import pose

MAX_PRODUCTS = 48
"""Products a measurement takes at most: with trying how, below a hundred gradients."""

COARSEST = 1e-5
"""Unit roundoff above which differences of gradients tell nothing."""

DISAGREEMENT = 0.5
"""Relative gap between the two ways above which the second derivative is not believed. Kinks make
some gap; a function whose backward pass hides from autograd, most."""

Way = Literal["exact", "differences"]

_TINY = 1e-30


class Hessian:
    """The Hessian of the probe loss at w*, as products with vectors.

    Args:
        context: What is measured.
        way: How to take them, where an earlier measurement found out; None tries both once, for
            a derivative of the user's own may lack its second part without a word.

    Attributes:
        problem: The posed problem.
        way: How they are taken; None before the first.

    Raises:
        RefusedError: There is no loss, or it cannot be differentiated.
        MeasurementError: The loss is not finite at w*.
    """

    def __init__(
        self,
        context: MeasureContext,
        way: Way | None = None,
    ) -> None:
        self.problem = pose(context)
        self.way = way
        self._loop: LoopEngine | None = None
        self._center = self.problem.center()

    @property
    def num_parameters(self) -> int:
        """The d of a vector that it takes."""
        return self.problem.layout.num_parameters

    def vectors_that_fit(self, wanted: int) -> int:
        """How many vectors of d numbers there is memory for beside the gradients.

        Raises:
            RefusedError: For fewer than four, of `wanted`.
        """
        limit = int(FREE_SHARE * free_bytes(self.problem.device))
        # A second derivative keeps the first one's graph: about three times a gradient's.
        beside = loop_bytes(self.problem, 1) + 2 * self.problem.kept_bytes
        fit = (limit - beside) // self.problem.state_bytes
        if fit < min(wanted, 4):
            raise RefusedError(
                f"curvature needs {mebibytes(beside + 4 * self.problem.state_bytes)} for "
                f"{self.num_parameters} parameters, and may take {mebibytes(limit)}; take a "
                "smaller probe batch"
            )
        return min(wanted, int(fit))

    def __call__(self, vector: Tensor) -> Tensor:
        """H v, shape (d,).

        Raises:
            RefusedError: The loss can be differentiated in no way.
            MeasurementError: The product is not finite.
        """
        if self.way is None:
            found = self._settle(vector)
        elif self.way == "exact":
            found = self._twice_differentiated(vector)
        else:
            found = self._by_differences(vector)
        if not bool(torch.isfinite(found).all()):
            raise MeasurementError("a Hessian-vector product of the probe loss is not finite")
        return found

    def _settle(self, vector: Tensor) -> Tensor:
        """H v, and which way to take it from now on."""
        exact = None
        try:
            exact = self._twice_differentiated(vector)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # no second derivative: checkpointing, the user's own
            if self.problem.precision > COARSEST:
                raise RefusedError(
                    f"the loss has no second derivative ({error}), and gradients with a roundoff "
                    f"of {self.problem.precision:.0e} are too coarse for differences of them; give "
                    "a loss_fn= that can be differentiated twice, or works in float32"
                ) from error
        if exact is not None and self.problem.precision > COARSEST:
            self.way = "exact"
            return exact
        near = self._by_differences(vector)
        if exact is not None and self._agree(exact, near):
            self.way = "exact"
            return exact
        self.way = "differences"
        return near

    def _agree(self, exact: Tensor, near: Tensor) -> bool:
        larger = max(float(exact.norm()), float(near.norm()))
        return float((exact - near).norm()) <= DISAGREEMENT * larger or larger <= _TINY

    def _twice_differentiated(self, vector: Tensor) -> Tensor:
        with plain_attention():
            return self._over_batches(vector)

    def _over_batches(self, vector: Tensor) -> Tensor:
        problem = self.problem
        total = torch.zeros_like(self._center)
        shares = [weight / sum(problem.weights) for weight in problem.weights]
        for index, share in enumerate(shares):
            leaf = self._center.clone().requires_grad_()
            values = {**problem.constants(), **problem.weights_of(leaf)}
            _, product = problem.call(values, problem.batch(index), leaf, False, vector)
            if product is not None:
                total.add_(product, alpha=share)
        return total

    def _by_differences(self, vector: Tensor) -> Tensor:
        loop = self._loop = self._loop or working_loop(self.problem)
        length = float(vector.norm())
        if length == 0.0:
            return torch.zeros_like(vector)
        size = min(float(self._center.norm()), 1.0) or 1.0
        eps = max(self.problem.precision, torch.finfo(vector.dtype).eps)
        delta = size * math.cbrt(eps) / length  # rounding and curvature of the gradient balance
        indices = range(len(self.problem.batches))
        ahead, behind = (
            evaluate(loop, self.problem, sign * delta * vector[None], indices).grad[0]
            for sign in (1.0, -1.0)
        )
        return ahead.sub_(behind).div_(2.0 * delta)
