"""Trace of the Hessian of the probe loss."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.meaning import SUPPORTING
from phasewatch.monitor.core.work import Cost, Steps, Work, run_through
from phasewatch.monitor.observables.curvature.hessian import (
    PROBES,
    UNIT,
    HessianObservable,
    marked,
    require,
)
from phasewatch.monitor.observables.curvature.krylov import (
    Allowance,
    Spectrum,
    work_of_steps,
)
from phasewatch.monitor.observables.sharing import random_of
from phasewatch.monitor.observables.weights.norms import observed
from phasewatch.monitor.sampling.hessian import MAX_PRODUCTS

LOOKS = (8, 16, 32)
"""Numbers of probes after which the trace may be good enough: at few, for whoever stops as soon as
an error happens to look small has stopped too soon."""


DEFLATED = 12
"""Directions that the trace takes out: Lanczos steps find the outliers of a spectrum first."""


class HessianTrace(HessianObservable):
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
        require(self.name, "tolerance", tolerance, tolerance > 0, "a number above 0")
        require(self.name, "max_probes", max_probes, 2 <= max_probes <= MAX_PRODUCTS, PROBES)
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
