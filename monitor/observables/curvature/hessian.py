"""Curvature of the probe loss at w*: trace, top eigenvalues and rank of its Hessian H.

All are of the mean probe loss L_n, in nats, over the trainable parameters, and take Hessian-vector
products alone: at most `MAX_PRODUCTS`, each of two gradients. A probe smaller than the training
data has a Hessian of its own, which differs from that of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from phasewatch.monitor.core.errors import ConfigError, MeasurementError, RefusedError
from phasewatch.monitor.core.meaning import SUPPORTING
from phasewatch.monitor.core.types import Cost, EstimateStatus, MeasureContext, Observation
from phasewatch.monitor.observables.weights.norms import observed
from phasewatch.monitor.sampling.hessian import MAX_PRODUCTS, Hessian, Krylov, Way, lanczos

UNIT = "nats/weight²"

LOOKS = (8, 16, 32, MAX_PRODUCTS)
"""Numbers of probes after which the trace may be good enough: at few, for whoever stops as soon as
an error happens to look small has stopped too soon."""

SETTLING = 5
"""Lanczos steps whose counts are compared."""

MAX_TOP = 16
"""Eigenvalues that `hessian_top` reports at most."""


def rademacher(context: MeasureContext, num: int, dtype: torch.dtype) -> Tensor:
    """Independent signs ±1, shape (num,), from the context's generator."""
    random = context.generator
    bits = torch.randint(2, (num,), generator=random, device=random.device)
    return 2 * bits.to(dtype) - 1


def marked(observation: Observation, reason: str) -> Observation:
    """The observation as unconverged, if there is a reason to and it is finite."""
    if not reason or observation.status is not EstimateStatus.OK:
        return observation
    return replace(observation, status=EstimateStatus.UNCONVERGED, reason=reason)


class _Curvature:
    """What the observables of this file share: how products are taken, found out once."""

    def __init__(self) -> None:
        self._way: Way | None = None

    def check(self, context: MeasureContext) -> None:
        """Refuse before the first step what cannot be measured, by taking one product.

        Raises:
            RefusedError: Says what was looked for, and the way out.
        """
        try:
            hessian = Hessian(context)
            hessian.vectors_that_fit(4)
            hessian(rademacher(context, hessian.num_parameters, hessian.problem.layout.state_dtype))
        except RefusedError:
            raise
        except MeasurementError:
            return  # what is not finite now may be finite later
        self._way = hessian.way

    def _hessian(self, context: MeasureContext, max_products: int = MAX_PRODUCTS) -> Hessian:
        return Hessian(context, max_products, self._way)


class HessianTrace(_Curvature):
    """Trace of the Hessian, by Hutchinson's estimator with Rademacher probes.

    tr H = E[vᵀ H v] for v with independent entries ±1; the standard error is that of the mean over
    the probes. Unit: nats per squared unit of weight.

    It stops when the error is below `tolerance` times max(|tr H|, ‖H‖_F), with ‖H‖_F² = E‖H v‖²
    from the same products. The trace alone would be no measure: it may be negative, or zero where
    curvatures of both signs cancel. A value with a larger error is marked unconverged.

    Args:
        tolerance: Largest relative error.
        max_probes: Products at most.

    Raises:
        ConfigError: An argument is out of its range.
    """

    name = "hessian_trace"
    unit = UNIT
    cost = Cost.GRADIENT
    needs = "a probe loss"
    source = "Hutchinson 1990, Commun. Stat. 19, 433"
    streams: ClassVar = {"hessian_trace": SUPPORTING}

    def __init__(self, tolerance: float = 0.15, max_probes: int = MAX_PRODUCTS) -> None:
        _require(self.name, "tolerance", tolerance, tolerance > 0, "a number above 0")
        _require(self.name, "max_probes", max_probes, 2 <= max_probes <= MAX_PRODUCTS, PROBES)
        super().__init__()
        self._tolerance = tolerance
        self._max_probes = max_probes

    def measure(self, context: MeasureContext) -> Observation:
        """Probe until the error is small enough, within `context.deadline_seconds`.

        Raises:
            RefusedError: The loss cannot be differentiated.
            MeasurementError: The loss, or a product, is not finite.
        """
        hessian = self._hessian(context, self._max_probes)
        dtype = hessian.problem.layout.state_dtype
        samples: list[float] = []
        squares: list[float] = []
        error, allowed = math.inf, 0.0
        while not hessian.exhausted:
            vector = rademacher(context, hessian.num_parameters, dtype)
            product = hessian(vector)
            samples.append(float(vector.double() @ product.double()))
            squares.append(float(product.double().square().sum()))
            if len(samples) > 1:
                error = float(np.std(samples, ddof=1)) / math.sqrt(len(samples))
                size = max(abs(float(np.mean(samples))), math.sqrt(float(np.mean(squares))))
                allowed = self._tolerance * size
            if error <= allowed and len(samples) in LOOKS:
                break
        found = observed(context, self.name, self.unit, float(np.mean(samples)), error)
        if error <= allowed:
            return found
        reason = f"the error is {error:.3g}, more than {allowed:.3g}: {hessian.exhausted}"
        return marked(found, reason)


class HessianTop(_Curvature):
    """Largest eigenvalues of the Hessian, by Lanczos with full reorthogonalisation.

    The largest, the sharpness, as "hessian_top"; the next as "hessian_top/2" and so on. Unit: nats
    per squared unit of weight.
    The error given with each is the residual ‖H y − θ y‖ of its unit Ritz vector y: an eigenvalue
    lies within it. A multiple eigenvalue counts once. Where the residual is above `tolerance`
    times the largest |θ|, the value is marked unconverged.

    Where the learning rate is known, 2/lr is given beside it as "hessian_top/2_over_lr": where
    plain gradient descent becomes unstable (Cohen et al. 2021). Momentum, preconditioning and
    minibatches move that edge.

    A measurement starts from the eigenvectors of the one before, with some noise; they are not
    kept in checkpoints, for each is as large as the model.

    Args:
        num_values: How many of the largest.
        tolerance: Largest relative residual.
        max_products: Products at most.

    Raises:
        ConfigError: An argument is out of its range.
    """

    name = "hessian_top"
    unit = UNIT
    cost = Cost.GRADIENT
    needs = "a probe loss"
    source = "Lanczos 1950; edge of stability: Cohen et al. 2021, arXiv 2103.00065"
    streams: ClassVar = {"hessian_top": SUPPORTING}

    def __init__(
        self, num_values: int = 3, tolerance: float = 0.01, max_products: int = MAX_PRODUCTS
    ) -> None:
        allowed = f"1 to {MAX_TOP}"
        _require(self.name, "num_values", num_values, 1 <= num_values <= MAX_TOP, allowed)
        _require(self.name, "tolerance", tolerance, tolerance > 0, "a number above 0")
        _require(self.name, "max_products", max_products, 2 <= max_products <= MAX_PRODUCTS, PROBES)
        super().__init__()
        self._num_values = num_values
        self._tolerance = tolerance
        self._max_products = max_products
        self._warm: Tensor | None = None

    def measure(self, context: MeasureContext) -> list[Observation]:
        """Iterate until the residuals are small enough, within `context.deadline_seconds`.

        Raises:
            RefusedError: The loss cannot be differentiated, or there is no memory.
            MeasurementError: The loss, or a product, is not finite.
        """
        hessian = self._hessian(context, self._max_products)
        num_steps = hessian.vectors_that_fit(self._max_products)

        def done(found: Krylov) -> bool:
            return bool(hessian.exhausted) or self._converged(found)

        found = lanczos(hessian, self._start(context, hessian), num_steps, done)
        top = range(len(found.values) - 1, -1, -1)[: self._num_values]
        self._warm = torch.stack([found.ritz(index) for index in top]).sum(dim=0)
        reason = hessian.exhausted or f"there is memory for {num_steps} vectors only"
        names = [self.name, *(f"{self.name}/{rank}" for rank in range(2, self._num_values + 1))]
        result = [
            self._value(context, name, found, index, reason)
            for name, index in zip(names, top, strict=False)
        ]
        if context.learning_rate:
            edge = 2.0 / context.learning_rate
            result.append(observed(context, f"{self.name}/2_over_lr", self.unit, edge))
        return result

    def _start(self, context: MeasureContext, hessian: Hessian) -> Tensor:
        dtype = hessian.problem.layout.state_dtype
        fresh = rademacher(context, hessian.num_parameters, dtype)
        fresh /= math.sqrt(len(fresh))
        warm = self._warm
        if warm is None or warm.shape != fresh.shape or warm.device != fresh.device:
            return fresh
        # Noise: from an exact eigenvector alone no other direction would ever be found.
        mixed: Tensor = warm.to(dtype) / warm.norm() + 0.1 * fresh
        return mixed

    def _allowed(self, found: Krylov) -> float:
        return self._tolerance * float(np.abs(found.values).max())

    def _converged(self, found: Krylov) -> bool:
        enough = len(found.values) >= self._num_values
        residuals = found.residuals[-self._num_values :]
        return enough and bool((residuals <= self._allowed(found)).all())

    def _value(
        self, context: MeasureContext, name: str, found: Krylov, index: int, reason: str
    ) -> Observation:
        residual, allowed = float(found.residuals[index]), self._allowed(found)
        value = observed(context, name, self.unit, float(found.values[index]), residual)
        if residual <= allowed:
            return value
        return marked(value, f"the residual is {residual:.3g}, more than {allowed:.3g}: {reason}")


class HessianRank(_Curvature):
    """How many eigenvalues of the Hessian count: #{i : |λ_i| > τ max_j |λ_j|}.

    By stochastic Lanczos quadrature. From each of K Rademacher probes v, m Lanczos steps give Ritz
    values θ_j and the first components s_1j of the tridiagonal matrix's eigenvectors; then

        rank ≈ mean over v of d Σ_j s_1j² 1[|θ_j| > τ max |θ|].

    The standard error joins that of Hutchinson's trace of a projection of rank r with random
    directions, √(2 r (1 − r/d) / K), with what the last `SETTLING` steps still changed, for few
    steps cannot tell eigenvalues near τ from others. Unit: eigenvalues, out of d. It is marked
    unconverged where the error is above half the value.

    Args:
        tau: Tolerance τ, 0 < τ < 1.
        num_probes: K; each takes 48/K steps.

    Raises:
        ConfigError: An argument is out of its range.
    """

    name = "hessian_rank"
    unit = "1"
    cost = Cost.GRADIENT
    needs = "a probe loss"
    source = "Ubaru, Chen and Saad 2017, SIAM J. Matrix Anal. 38, 1075"
    streams: ClassVar = {"hessian_rank": SUPPORTING}

    def __init__(self, tau: float = 0.01, num_probes: int = 2) -> None:
        _require(self.name, "tau", tau, 0 < tau < 1, "a number between 0 and 1")
        _require(self.name, "num_probes", num_probes, 1 <= num_probes <= 6, "1 to 6")
        super().__init__()
        self._tau = tau
        self._num_probes = num_probes

    def measure(self, context: MeasureContext) -> Observation:
        """Count, within `context.deadline_seconds`.

        Raises:
            RefusedError: The loss cannot be differentiated, or there is no memory.
            MeasurementError: The loss, or a product, is not finite.
        """
        hessian = self._hessian(context)
        num, dtype = hessian.num_parameters, hessian.problem.layout.state_dtype
        num_steps = hessian.vectors_that_fit(MAX_PRODUCTS // self._num_probes)
        runs: list[list[Rule]] = []
        while len(runs) < self._num_probes and not hessian.exhausted:
            steps: list[Rule] = []

            def keep(found: Krylov, steps: list[Rule] = steps) -> bool:
                steps.append((found.values, found.vectors[0] ** 2))
                return bool(hessian.exhausted)

            lanczos(hessian, rademacher(context, num, dtype), num_steps, keep)
            runs.append(steps[-SETTLING:])
        counts = num * self._counted(runs)
        value = min(float(counts[-1]), float(num))
        spread = math.sqrt(2.0 * value * (1.0 - value / num) / len(runs))
        error = math.hypot(spread, float(counts.std()))
        found = observed(context, self.name, self.unit, value, error)
        if error <= 0.5 * max(value, 1.0):
            return found
        return marked(found, f"the error is {error:.3g}, above half the value")

    def _counted(self, runs: Sequence[Sequence[Rule]]) -> NDArray[np.float64]:
        """Share of the eigenvalues that count, by the last steps; mean over the probes."""
        largest = max(float(np.abs(values).max()) for steps in runs for values, _ in steps)
        shares = []
        for back in range(SETTLING, 0, -1):
            rules = [steps[-min(back, len(steps))] for steps in runs]
            counting = [weights[np.abs(v) > self._tau * largest].sum() for v, weights in rules]
            shares.append(float(np.mean(counting)))
        return np.array(shares)


Rule = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Nodes and weights of a quadrature."""

PROBES = f"2 to {MAX_PRODUCTS}"


def _require(name: str, argument: str, value: Any, good: bool, allowed: str) -> None:
    if not good:
        raise ConfigError(f"{name}: {argument} is {value!r}; give {allowed}")
