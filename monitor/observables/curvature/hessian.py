"""What the observables of the Hessian H of the probe loss at w* have in common.

All are of the mean probe loss L_n, in nats, over the trainable parameters, and take Hessian-vector
products alone: at most `MAX_PRODUCTS`, each of two gradients. Those of one turn share the Lanczos
steps from one random vector; see `krylov`. A probe smaller than the training data has a Hessian of
its own, which differs from that of the whole.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.errors import ConfigError, MeasurementError, RefusedError
from phasewatch.monitor.core.estimates import EstimateStatus, Observation
from phasewatch.monitor.core.work import Steps
from phasewatch.monitor.observables.curvature.krylov import (
    Allowance,
    Lanczos,
    Spectrum,
)
from phasewatch.monitor.sampling.hessian import MAX_PRODUCTS, Way

UNIT = "nats/weight²"


def marked(observation: Observation, reason: str) -> Observation:
    """The observation as unconverged, if there is a reason to and it is finite."""
    if not reason or observation.status is not EstimateStatus.OK:
        return observation
    return replace(observation, status=EstimateStatus.UNCONVERGED, reason=reason)


class HessianObservable:
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


PROBES = f"2 to {MAX_PRODUCTS}"


def require(name: str, argument: str, value: Any, good: bool, allowed: str) -> None:
    """Refuse an argument that is not good.

    Args:
        name: Name of the observable.
        argument: Name of the argument.
        value: The value received.
        good: Whether it may be.
        allowed: What may be, in words.

    Raises:
        ConfigError: It is not good.
    """
    if not good:
        raise ConfigError(f"{name}: {argument} is {value!r}; give {allowed}")
