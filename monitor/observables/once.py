"""One measurement of one observable, outside of any run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from phasewatch.monitor.core.context import LossFn, StepRecord
from phasewatch.monitor.core.contracts import Observable
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.isolation import guard, measure_context
from phasewatch.monitor.isolation.probe import probe_of


def measure_once(
    observable: Observable,
    model: nn.Module,
    batches: Sequence[Any] = (),
    loss_fn: LossFn | None = None,
    *,
    step: int = 0,
    seed: int = 0,
    record: StepRecord | None = None,
) -> list[Observation]:
    """Measure a model where it stands; it is left bit for bit as it was.

    Args:
        observable: The observable; one that compares steps is given the same object each time.
        model: The model.
        batches: Batches of data, on the model's device, where the observable needs them.
        loss_fn: `loss_fn(model, batch)`: per-sample losses or their mean, in nats, where the
            observable needs it.
        step: Optimizer steps completed.
        seed: Seed of what is random in the measurement.
        record: What was seen just before the step (`record_step`), where the observable needs it.

    Returns:
        The values, the total first.

    Raises:
        RefusedError: The model, the data or the loss lacks what the observable needs.
        MeasurementError: The measurement failed.

    Example:
        >>> import torch
        >>> from phasewatch.monitor.observables.weights.weight_norm import WeightNorm
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.constant_(model.weight, 3.0)
        >>> [(o.name, round(o.value, 3)) for o in measure_once(WeightNorm(), model)]
        [('weight_norm', 4.243), ('weight_norm/weight', 4.243)]
    """
    probe = probe_of(batches) if batches else None
    with guard(model, seed=seed):
        context = measure_context(
            model,
            step=step,
            loss_fn=loss_fn,
            batches=probe.batches if probe else (),
            n_samples=probe.n_samples if probe else 0,
            seed=seed,
        )
        context = replace(context, record=record)
        check = getattr(observable, "check", None)
        if check is not None:
            check(context)
        found = observable.measure(context)
    return [found] if isinstance(found, Observation) else list(found)
