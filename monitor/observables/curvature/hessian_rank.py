"""How many directions the probe loss curves in: the rank of its Hessian."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.meaning import SUPPORTING
from phasewatch.monitor.core.work import Cost, Steps, Work, run_through
from phasewatch.monitor.observables.curvature.hessian import HessianObservable, marked, require
from phasewatch.monitor.observables.curvature.hessian_top import SETTLING
from phasewatch.monitor.observables.curvature.krylov import (
    Allowance,
    Lanczos,
    Ritz,
    Spectrum,
    work_of_steps,
)
from phasewatch.monitor.observables.sharing import random_of
from phasewatch.monitor.observables.weights.norms import observed
from phasewatch.monitor.sampling.hessian import MAX_PRODUCTS


class HessianRank(HessianObservable):
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
        require(self.name, "tau", tau, 0 < tau < 1, "a number between 0 and 1")
        require(self.name, "num_probes", num_probes, 1 <= num_probes <= 6, "1 to 6")
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
