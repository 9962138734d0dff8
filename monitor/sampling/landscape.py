"""The posterior as the chains of one run see it: loss, gradient and slope at displacements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from phasewatch.monitor.core.together import in_any
from phasewatch.monitor.sampling.diagnostics import Descent
from phasewatch.monitor.sampling.engine import Engine, Evaluation, evaluate
from phasewatch.monitor.sampling.posterior import Problem


class Landscape:
    """L_n around w*, on the sampled coordinates.

    Args:
        problem: What is sampled.
        engine: How gradients are computed.
        n_beta: nβ.
        localization: γ.
        mask: Which coordinates are sampled, shape (d,), ones and zeros; None is all.
        control: Correct each minibatch by its gradient at w* (a control variate):
            ĝ(w) − ĝ(w*) + g(w*) for the gradient, and for the loss
            L̂(w) − [ĝ(w*) − g(w*)]·(w − w*). The probe's batches are fixed, so their gradients at
            w* are computed once, and kept.

    Attributes:
        mask: As given.
        all: The numbers of all batches.
        num_sampled: Coordinates that are sampled.
        center_terms: Loss terms at w*.
        has_terms: Whether a batch gives more than one number.
        together: The processes among which the weights are spread.
    """

    def __init__(
        self,
        problem: Problem,
        engine: Engine,
        *,
        n_beta: float,
        localization: float,
        mask: Tensor | None,
        control: bool,
    ) -> None:
        self.problem = problem
        self.engine = engine
        self.n_beta = n_beta
        self.localization = localization
        self.control = control
        self.all = range(len(problem.batches))
        self.together = problem.together
        here = problem.layout.num_parameters if mask is None else int(mask.count_nonzero())
        self.num_sampled = round(math.fsum(self.together.each(here)))
        self.center_terms = torch.empty(0)
        self.has_terms = False
        self.mask = mask
        self._center_losses: list[float] = []
        self._center_grad = torch.empty(0)
        self._batch_grads: list[Tensor] = []

    def look_at_center(self, num_chains: int) -> Evaluation:
        """L, its terms and its gradient at w*; the loss of each batch is the paired baseline."""
        at_center = self.problem.displacements(num_chains)
        if self.control:
            self._batch_grads = [
                evaluate(self.engine, self.problem, at_center, [index]).grad[0].clone()
                for index in self.all
            ]
        whole = self._restricted(evaluate(self.engine, self.problem, at_center, self.all))
        # One number for each batch: all chains are at w*, so their losses differ by rounding only.
        self._center_losses = whole.batch_losses.cpu().double().mean(dim=1).tolist()
        self._center_grad = whole.grad[0].clone()
        self.center_terms = whole.terms[0].clone()
        self.has_terms = in_any(self.together, whole.terms.shape[1] > len(self.all))
        return whole

    def baseline(self, indices: Sequence[int]) -> float:
        """L(w*) on these batches."""
        weights = [self.problem.weights[index] for index in indices]
        losses = [self._center_losses[index] for index in indices]
        return math.fsum(map(math.prod, zip(weights, losses, strict=True))) / math.fsum(weights)

    def evaluate(self, x: Tensor, indices: Sequence[int]) -> Evaluation:
        """Loss and gradient of these batches at `x`, shape (chains, d)."""
        found = self._restricted(self.raw(x, indices))
        return self._corrected(found, x, indices)

    def gradient(self, x: Tensor, indices: Sequence[int]) -> Tensor:
        """∇L_n of these batches at `x`, uncorrected: a correction is constant."""
        return self._restricted(self.raw(x, indices)).grad

    def _restricted(self, found: Evaluation) -> Evaluation:
        self.restrict(found.grad)
        return found

    def restrict(self, vectors: Tensor) -> None:
        """Zero the coordinates that are not sampled."""
        if self.mask is not None:
            vectors.mul_(self.mask)

    def raw(self, x: Tensor, indices: Sequence[int]) -> Evaluation:
        """What the engine finds on these batches, on all coordinates and uncorrected."""
        return evaluate(self.engine, self.problem, x, indices)

    def seen(self, found: Evaluation, x: Tensor, indices: Sequence[int]) -> Evaluation:
        """What an engine found, restricted and corrected.

        Args:
            found: What it found; changed.
            x: Where, shape (chains, d).
            indices: On which batches.
        """
        return self._corrected(self._restricted(found), x, indices)

    def _corrected(self, found: Evaluation, x: Tensor, indices: Sequence[int]) -> Evaluation:
        if not self.control or indices is self.all:
            return found
        total = torch.zeros_like(self._center_grad)
        for index in indices:
            total.add_(self._batch_grads[index], alpha=self.problem.weights[index])
        share = math.fsum(self.problem.weights[index] for index in indices)
        # ĝ(w*) − g(w*), shape (d,)
        correction = total.div_(share).sub_(self._center_grad)
        self.restrict(correction)
        slope = self.total(x @ correction)
        return replace(found, loss=found.loss - slope, grad=found.grad.sub_(correction))

    def total(self, values: Tensor) -> Tensor:
        """Sums over coordinates, of those of all processes."""
        return self.together.total(values)

    def norms(self, vectors: Tensor) -> Tensor:
        """Lengths of vectors, (chains, d) to (chains,)."""
        if self.together.size == 1:
            lengths: Tensor = vectors.norm(dim=1)
            return lengths
        return self.total(vectors.square().sum(dim=1)).sqrt_()

    def virial(self, x: Tensor, grad: Tensor) -> Tensor:
        """V = x·(nβ∇L + γx)/d of each chain."""
        pull = self.total(torch.linalg.vecdot(x, x)) * self.localization
        return (self.work(x, grad) + pull) / self.num_sampled

    def work(self, x: Tensor, grad: Tensor) -> Tensor:
        """x·nβ∇L of each chain."""
        return self.total(torch.linalg.vecdot(x, grad)) * self.n_beta

    def descent(self, sharpness: float | None, num_chains: int) -> Descent:
        """How far the loss falls from w* along its gradient; by a step of the thermal length.

        Args:
            sharpness: The largest curvature of L at w*; without it nothing is known of the fall.
            num_chains: Points that an engine takes at a time.
        """
        norm = float(self.norms(self._center_grad[None]))
        if not norm > 0.0 or sharpness is None:
            return Descent(norm)
        kappa = max(self.n_beta * sharpness + self.localization, 1e-30)
        length = 1.0 / math.sqrt(kappa)
        ahead = self.problem.displacements(num_chains).add_(self._center_grad, alpha=-length / norm)
        across = self.gradient(ahead, self.all)[0] @ self._center_grad
        slope = float(self.total(across)) / norm
        bend = self.n_beta * (norm - slope) / length + self.localization
        fall = (self.n_beta * norm) ** 2 / (2 * bend) if bend > 0.0 else math.inf
        return Descent(norm, fall)
