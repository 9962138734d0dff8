"""Curvature of the probe loss at w*: trace, top eigenvalues and rank of its Hessian H.

All are of the mean probe loss L_n, in nats, over the trainable parameters, and take Hessian-vector
products alone: at most `MAX_PRODUCTS`, each of two gradients. Those of one turn share the Lanczos
steps from one random vector; see `krylov`. A probe smaller than the training data has a Hessian of
its own, which differs from that of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.errors import ConfigError, MeasurementError, RefusedError
from phasewatch.monitor.core.estimates import EstimateStatus, Observation
from phasewatch.monitor.core.meaning import SUPPORTING
from phasewatch.monitor.core.work import Cost, Steps, Work, run_through
from phasewatch.monitor.observables.curvature.krylov import (
    Allowance,
    Lanczos,
    Ritz,
    Spectrum,
    work_of_steps,
)
from phasewatch.monitor.observables.sharing import random_of
from phasewatch.monitor.observables.weights.norms import observed
from phasewatch.monitor.sampling.hessian import MAX_PRODUCTS, Way

UNIT = "nats/weight²"

LOOKS = (8, 16, 32)
"""Numbers of probes after which the trace may be good enough: at few, for whoever stops as soon as
an error happens to look small has stopped too soon."""

DEFLATED = 12
"""Directions that the trace takes out: Lanczos steps find the outliers of a spectrum first."""

SETTLING = 5
"""Lanczos steps whose counts are compared."""

MAX_TOP = 16
"""Eigenvalues that `hessian_top` reports at most."""


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
            spectrum = Spectrum.of(context, self._way)
            if not len(spectrum.run):
                spectrum.run.step()
        except RefusedError:
            raise
        except MeasurementError:
            return  # what is not finite now may be finite later
        self._way = spectrum.hessian.way

    def _step(
        self, run: Lanczos, size: int, allowance: Allowance, spectrum: Spectrum
    ) -> Steps[None]:
        """Let there be so many Lanczos steps; a step of the measurement if one must be taken."""
        if len(run) < size:
            with allowance:
                run.step()
            self._way = spectrum.hessian.way
            yield
        allowance.num_products += 1


class HessianTrace(_Curvature):
    """Trace of the Hessian, by Hutchinson's estimator beside the directions of largest curvature.

    With Q the orthonormal basis of the first k Lanczos steps, twelve at most,

        tr H = tr(QᵀHQ) + E[vᵀ H v],    v uniform on the sphere ‖v‖² = d − k, Qᵀv = 0.

    The first part is exact and costs nothing where the top eigenvalues or the rank are measured in
    the same turn; the second has the error of the mean over the probes v, which a few outlying
    eigenvalues no longer dominate. Unit: nats per squared unit of weight.

    It stops when the error is below `tolerance` times max(|tr H|, ‖H‖_F), with ‖H‖_F² =
    ‖HQ‖_F² + E‖H v‖² from the same products. The trace alone would be no measure: it may be
    negative, or zero where curvatures of both signs cancel. A value with a larger error is marked
    unconverged.

    Args:
        tolerance: Largest relative error.
        max_probes: Products at most, Lanczos steps among them.

    Raises:
        ConfigError: An argument is out of its range.

    Example:
        >>> import torch
        >>> from phasewatch.monitor.observables.once import measure_once
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.constant_(model.weight, 1.0)
        >>> x = torch.arange(1.0, 5.0)[:, None]
        >>> loss = lambda model, batch: 0.5 * (model(batch[0]) - batch[1]).square().sum(dim=1)
        >>> found = measure_once(HessianTrace(), model, [(x, x)], loss)
        >>> found[0].name, round(found[0].value, 3)  # the mean of x²
        ('hessian_trace', 7.5)
    """

    name = "hessian_trace"
    unit = UNIT
    cost = Cost.GRADIENT
    needs = "a probe loss"
    source = "Hutch++: Meyer et al. 2021, arXiv 2010.09649; Epperly et al. 2024, arXiv 2301.07825"
    streams: ClassVar = {"hessian_trace": SUPPORTING}

    def __init__(self, tolerance: float = 0.15, max_probes: int = MAX_PRODUCTS) -> None:
        _require(self.name, "tolerance", tolerance, tolerance > 0, "a number above 0")
        _require(self.name, "max_probes", max_probes, 2 <= max_probes <= MAX_PRODUCTS, PROBES)
        super().__init__()
        self._tolerance = tolerance
        self._max_probes = max_probes
        self._usual = LOOKS[0]

    def work(self, context: MeasureContext) -> Work:
        """The directions that are not known yet, and as many probes as the last time."""
        deflated = min(DEFLATED, self._max_probes // 2)
        return work_of_steps(context, deflated, min(self._usual, self._max_probes - deflated))

    def measure(self, context: MeasureContext) -> Observation:
        """Probe until the error is small enough, within `context.deadline_seconds`.

        Raises:
            RefusedError: The loss cannot be differentiated, or there is no memory.
            MeasurementError: The loss, or a product, is not finite.
        """
        return run_through(self.measure_in_steps(context))

    def measure_in_steps(self, context: MeasureContext) -> Steps[Observation]:
        """The same, one product a step."""
        allowance = Allowance(context, self._max_probes)
        with allowance:
            spectrum = Spectrum.of(context, self._way)
        run, hessian = spectrum.run, spectrum.hessian
        size, wanted = 0, min(DEFLATED, self._max_probes // 2, spectrum.num_vectors)
        while size < wanted and not (size and run.closed and size == len(run)):
            yield from self._step(run, size + 1, allowance, spectrum)
            size += 1
            if allowance.exhausted:
                break
        known, squares = run.trace(size)
        random = random_of(context, self.name)
        samples: list[float] = []
        others: list[float] = []
        left = hessian.num_parameters - size
        value, error, allowed = hessian.num_parameters * run.trace(1)[0], math.inf, 0.0
        if not left:
            value, error = known, 0.0
        while left and not allowance.exhausted:
            with allowance:
                vector = run.away(spectrum.normal(random), size)
                vector *= math.sqrt(left) / vector.norm()
                product = hessian(vector)
            allowance.num_products += 1
            samples.append(float(vector.double() @ product.double()))
            others.append(float(product.double().square().sum()))
            yield
            value = known + float(np.mean(samples))
            if len(samples) > 1:
                error = float(np.std(samples, ddof=1)) / math.sqrt(len(samples))
                size_of_h = max(abs(value), math.sqrt(squares + float(np.mean(others))))
                allowed = self._tolerance * size_of_h
            if error <= allowed and len(samples) in LOOKS:
                break
        self._usual = len(samples)
        found = observed(context, self.name, self.unit, value, error)
        if error <= allowed:
            return found
        reason = f"the error is {error:.3g}, more than {allowed:.3g}: {allowance.exhausted}"
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

    The steps start from random signs, new in each turn, so that rank and trace can use them too.

    Args:
        num_values: How many of the largest.
        tolerance: Largest relative residual.
        max_products: Products at most.

    Raises:
        ConfigError: An argument is out of its range.

    Example:
        >>> import torch
        >>> from phasewatch.monitor.observables.once import measure_once
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.constant_(model.weight, 1.0)
        >>> x = torch.arange(1.0, 5.0)[:, None]
        >>> loss = lambda model, batch: 0.5 * (model(batch[0]) - batch[1]).square().sum(dim=1)
        >>> found = measure_once(HessianTop(), model, [(x, x)], loss)
        >>> found[0].name, round(found[0].value, 3)
        ('hessian_top', 7.5)
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
        self._usual = 12  # before the first measurement

    def work(self, context: MeasureContext) -> Work:
        """As many steps as the last measurement took, less those that are known already."""
        return work_of_steps(context, min(self._usual, self._max_products))

    def measure(self, context: MeasureContext) -> list[Observation]:
        """Iterate until the residuals are small enough, within `context.deadline_seconds`.

        Raises:
            RefusedError: The loss cannot be differentiated, or there is no memory.
            MeasurementError: The loss, or a product, is not finite.
        """
        return run_through(self.measure_in_steps(context))

    def measure_in_steps(self, context: MeasureContext) -> Steps[list[Observation]]:
        """The same, one product a step."""
        allowance = Allowance(context, self._max_products)
        with allowance:
            spectrum = Spectrum.of(context, self._way)
        run, size, ended = spectrum.run, 0, False
        while not ended:
            yield from self._step(run, size + 1, allowance, spectrum)
            size += 1
            found = run.ritz(size)
            closed = run.closed and size == len(run)
            ended = bool(allowance.exhausted) or closed or self._converged(found)
            ended = ended or size == spectrum.num_vectors
        self._usual = size
        top = range(len(found.values) - 1, -1, -1)[: self._num_values]
        reason = allowance.exhausted or f"there is memory for {spectrum.num_vectors} vectors only"
        names = [self.name, *(f"{self.name}/{rank}" for rank in range(2, self._num_values + 1))]
        result = [
            self._value(context, name, found, index, reason)
            for name, index in zip(names, top, strict=False)
        ]
        if context.learning_rate:
            edge = 2.0 / context.learning_rate
            result.append(observed(context, f"{self.name}/2_over_lr", self.unit, edge))
        return result

    def _allowed(self, found: Ritz) -> float:
        return self._tolerance * float(np.abs(found.values).max())

    def _converged(self, found: Ritz) -> bool:
        enough = len(found.values) >= self._num_values
        residuals = found.residuals[-self._num_values :]
        return enough and bool((residuals <= self._allowed(found)).all())

    def _value(
        self, context: MeasureContext, name: str, found: Ritz, index: int, reason: str
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

    Example:
        >>> import torch
        >>> from phasewatch.monitor.observables.once import measure_once
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.constant_(model.weight, 1.0)
        >>> x = torch.arange(1.0, 5.0)[:, None]
        >>> loss = lambda model, batch: 0.5 * (model(batch[0]) - batch[1]).square().sum(dim=1)
        >>> found = measure_once(HessianRank(), model, [(x, x)], loss)
        >>> found[0].name, round(found[0].value, 3)
        ('hessian_rank', 1.0)
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
        self._usual = MAX_PRODUCTS

    def work(self, context: MeasureContext) -> Work:
        """As many steps as the last measurement took, less those that are known already."""
        steps, others = self._usual // self._num_probes, self._num_probes - 1
        first = work_of_steps(context, steps, self._usual - steps)
        return replace(first, weight_passes=first.weight_passes + 2.0 * others * steps**2)

    def measure(self, context: MeasureContext) -> Observation:
        """Count, within `context.deadline_seconds`.

        Raises:
            RefusedError: The loss cannot be differentiated, or there is no memory.
            MeasurementError: The loss, or a product, is not finite.
        """
        return run_through(self.measure_in_steps(context))

    def measure_in_steps(self, context: MeasureContext) -> Steps[Observation]:
        """The same, one product a step."""
        allowance = Allowance(context)
        with allowance:
            spectrum = Spectrum.of(context, self._way)
        random = random_of(context, self.name)
        num = spectrum.hessian.num_parameters
        num_steps = min(spectrum.num_vectors, MAX_PRODUCTS // self._num_probes)
        runs: list[list[Ritz]] = []
        while len(runs) < self._num_probes and not allowance.exhausted:
            run = Lanczos(spectrum.hessian, spectrum.signs(random)) if runs else spectrum.run
            size, steps = 0, []
            while not allowance.exhausted and size < num_steps:
                yield from self._step(run, size + 1, allowance, spectrum)
                size += 1
                steps.append(run.ritz(size))
                if run.closed and size == len(run):
                    break
            runs.append(steps[-SETTLING:])
        self._usual = allowance.num_products
        counts = num * self._counted(runs)
        value = min(float(counts[-1]), float(num))
        spread = math.sqrt(2.0 * value * (1.0 - value / num) / len(runs))
        error = math.hypot(spread, float(counts.std()))
        found = observed(context, self.name, self.unit, value, error)
        if error <= 0.5 * max(value, 1.0):
            return found
        return marked(found, f"the error is {error:.3g}, above half the value")

    def _counted(self, runs: Sequence[Sequence[Ritz]]) -> NDArray[np.float64]:
        """Share of the eigenvalues that count, by the last steps; mean over the probes."""
        largest = max(float(np.abs(ritz.values).max()) for steps in runs for ritz in steps)
        shares = []
        for back in range(SETTLING, 0, -1):
            rules = [steps[-min(back, len(steps))] for steps in runs]
            counting = [r.weights[np.abs(r.values) > self._tau * largest].sum() for r in rules]
            shares.append(float(np.mean(counting)))
        return np.array(shares)


PROBES = f"2 to {MAX_PRODUCTS}"


def _require(name: str, argument: str, value: Any, good: bool, allowed: str) -> None:
    if not good:
        raise ConfigError(f"{name}: {argument} is {value!r}; give {allowed}")
