"""The largest eigenvalues of the Hessian of the probe loss."""

from __future__ import annotations

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
    Ritz,
    Spectrum,
    work_of_steps,
)
from phasewatch.monitor.observables.weights.norms import observed
from phasewatch.monitor.sampling.hessian import MAX_PRODUCTS

SETTLING = 5
"""Lanczos steps whose counts are compared."""


MAX_TOP = 16
"""Eigenvalues that `hessian_top` reports at most."""


class HessianTop(HessianObservable):
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
        require(self.name, "num_values", num_values, 1 <= num_values <= MAX_TOP, allowed)
        require(self.name, "tolerance", tolerance, tolerance > 0, "a number above 0")
        require(self.name, "max_products", max_products, 2 <= max_products <= MAX_PRODUCTS, PROBES)
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
