"""What a plain training loop gives to be measured: its live model, its data and its loss."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from phasewatch.monitor.config.monitor import MonitorConfig
from phasewatch.monitor.core.context import LossFn, MeasureContext
from phasewatch.monitor.core.errors import MeasurementError, RefusedError
from phasewatch.monitor.core.health import Health
from phasewatch.monitor.core.seeds import seed_from
from phasewatch.monitor.isolation import guard, live_context, measure_context
from phasewatch.monitor.isolation.batches import count_samples
from phasewatch.monitor.isolation.probe import Probe, batch_size_of, build_probe, is_indexed
from phasewatch.monitor.run.probe_size import builder_of, mean_loss, sized_probe
from phasewatch.monitor.sampling.evaluation_cost import EvaluationCost, evaluation_cost

if TYPE_CHECKING:
    from torch import nn

    from phasewatch.monitor.run.watch import Watch

log = logging.getLogger("phasewatch")

DEFAULT_BATCH = 32
"""Size of the first batch where no loader tells that of training."""


class PlainSubject:
    """The model of a plain loop, measured on copies.

    Args:
        model: The live model.
        source: Dataset, loader or batches to measure on; None measures without data.
        val_source: The same of validation data.
        loss_fn: `loss_fn(model, batch)`, in nats.
        n_samples: Number of loss terms in the probe, where it is not the number of samples.
        config: The run's configuration.
        health: Where what had to be put back is counted.

    Attributes:
        model: The live model.
        cost: What one gradient of the probe takes, where that is known already.
        step_seconds: What a training step should take, likewise.
    """

    def __init__(
        self,
        model: nn.Module,
        source: Any,
        val_source: Any,
        loss_fn: LossFn | None,
        n_samples: int | None,
        config: MonitorConfig,
        health: Health,
    ) -> None:
        self.model = model
        self._health = health
        self._source = source
        self._val_source = val_source
        self._loss_fn = loss_fn
        self._n_samples = n_samples
        self._config = config
        self._probe: Probe | None = None
        self._val_batches: tuple[Any, ...] = ()
        self.cost: EvaluationCost | None = None
        self.step_seconds: float | None = None

    @contextmanager
    def guarded(self, step: int, turn: int) -> Iterator[None]:
        """Shield training from what is measured inside."""
        seed = seed_from(self._config.seed, step, turn)
        sources = [] if self._probe is not None else [self._source, self._val_source]
        extra = [source for source in sources if source is not None]
        with guard(self.model, seed=seed, extra=extra) as report:
            yield
        self._health.repairs += len(report.repairs)

    def context(self, step: int, epoch: int | None) -> MeasureContext:
        """Copy the model as it is now. Called inside `guarded`."""
        probe = self._ready_probe()
        return measure_context(
            self.model,
            step=step,
            epoch=epoch,
            loss_fn=self._loss_fn,
            batches=probe.batches,
            val_batches=self._val_batches,
            n_samples=probe.n_samples,
            n_data=probe.n_data,
            sample_unit=probe.sample_unit,
            mode=self._config.probe.mode,
            seed=seed_from(self._config.seed, step, 0),
        )

    def live_context(self, step: int, epoch: int | None) -> MeasureContext:
        """The weights as they are, for observables that only read them."""
        return live_context(
            self.model,
            step=step,
            epoch=epoch,
            mode=self._config.probe.mode,
            seed=seed_from(self._config.seed, step, 0),
        )

    def size(self, watch: Watch) -> None:
        """Take the probe, as large as pays. Called inside `guarded`, before the first step.

        Args:
            watch: Knows the budget.
        """
        config = self._config.probe
        given = {"num_samples", "batch_size"} & config.model_fields_set
        if (
            self._probe is not None
            or self._loss_fn is None
            or given
            or not is_indexed(self._source)
        ):
            return
        settings: dict[str, Any] = {"config": config, "seed": self._config.seed}
        build = builder_of(self._source, self._n_samples, **settings)
        size = batch_size_of(self._source) or DEFAULT_BATCH
        self._probe = build(min(size, config.num_samples), min(size, config.num_samples))
        if self._val_source is not None:
            self._val_batches = build_probe(self._val_source, **settings).batches
        context = self.context(0, None)

        def growth(_: Probe) -> float:
            self.cost = evaluation_cost(context)
            samples = sum(map(count_samples, context.batches))
            self.step_seconds = self.cost.gradient_seconds * size / max(1, samples)
            return watch.probe_growth(context, self.cost, self.step_seconds)

        first = self._probe
        try:
            self._probe = sized_probe(
                first,
                build,
                size,
                config.num_samples,
                growth=growth,
                loss_of=partial(mean_loss, context),
                kept_bytes=lambda _: self.cost.kept_bytes if self.cost else 0,
            )
        except (RefusedError, MeasurementError) as error:  # the check of each observable says it
            log.debug("the probe stays as it is: %s", error)
        if self._probe is not first:
            self.cost = None

    def _ready_probe(self) -> Probe:
        if self._probe is None:
            settings: dict[str, Any] = {"config": self._config.probe, "seed": self._config.seed}
            if self._val_source is not None:
                self._val_batches = build_probe(self._val_source, **settings).batches
            self._probe = (
                Probe(batches=(), n_samples=0)
                if self._source is None
                else build_probe(self._source, n_samples=self._n_samples, **settings)
            )
        return self._probe
