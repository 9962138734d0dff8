"""What an estimate of the LLC becomes as values of streams."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple, Protocol

from phasewatch.monitor.core.errors import MeasurementError, RefusedError
from phasewatch.monitor.core.estimates import Estimate, EstimateStatus, Observation

NU_HAT = "nu_hat"
"""Stream of the singular fluctuation that belongs to "llc"; to another name it is a part."""


@contextmanager
def refusals() -> Iterator[None]:
    """Turn whatever a check raises into a refusal, but for what may pass at a later step."""
    try:
        yield
    except RefusedError:
        raise
    except MeasurementError:
        return  # a loss that is not finite now may be finite later
    except Exception as error:
        raise RefusedError(
            f"the loss cannot be evaluated on a copy ({type(error).__name__}: {error}); "
            "give the monitor a loss_fn= that can"
        ) from error


class When(Protocol):
    """What was measured at: a context, or less."""

    @property
    def step(self) -> int:
        """Optimizer steps completed."""

    @property
    def epoch(self) -> int | None:
        """Epoch, if known."""


class Moment(NamedTuple):
    """A step, where there is no context of a measurement."""

    step: int
    epoch: int | None = None


def observed_llc(context: When, name: str, estimate: Estimate) -> Observation:
    """λ̂ as a value of the stream `name`.

    Args:
        context: The measurement's context.
        name: Name of the stream.
        estimate: What was estimated.
    """
    return Observation(
        name=name,
        step=context.step,
        epoch=context.epoch,
        value=estimate.lambda_hat,
        unit="1",
        stderr=estimate.lambda_stderr,
        timestamp=time.time(),
        duration_seconds=estimate.duration_seconds,
        status=estimate.status,
        reason=estimate.reason,
        detail=estimate,
    )


def beside(context: When, name: str, estimate: Estimate) -> Iterator[Observation]:
    """What else the chains tell; without single losses, nothing.

    Args:
        context: The measurement's context.
        name: Name of the stream of λ̂.
        estimate: What was estimated.
    """
    if estimate.nu_hat is None:
        return
    nu_name = NU_HAT if name == "llc" else f"{name}/{NU_HAT}"
    yield derived(context, nu_name, "1", estimate.nu_hat, estimate.nu_stderr, estimate)
    if estimate.wbic is not None:
        error = estimate.lambda_stderr * estimate.n_samples / estimate.n_beta
        yield derived(context, f"{name}/wbic", "nats", estimate.wbic, error, estimate)
    if estimate.waic is not None:
        waic, unit = f"{name}/waic", "nats per sample"
        yield derived(context, waic, unit, estimate.waic, estimate.waic_stderr, estimate)


def derived(
    context: When,
    name: str,
    unit: str,
    value: float,
    stderr: float | None,
    estimate: Estimate,
) -> Observation:
    """What the same chains tell beside λ̂, and no better than that.

    Args:
        context: The measurement's context.
        name: Name of the stream.
        unit: Unit of the value.
        value: The value.
        stderr: Its standard error; None where too few draws tell one.
        estimate: That of λ̂, whose status it shares.
    """
    status, reason = estimate.status, estimate.reason
    if status is EstimateStatus.OK and not math.isfinite(math.nan if stderr is None else stderr):
        status, reason = EstimateStatus.UNCONVERGED, f"too few draws to tell the error of {name}"
    return replace(
        observed_llc(context, name, estimate),
        value=value,
        unit=unit,
        stderr=stderr,
        status=status,
        reason=reason,
        detail=None,
    )
