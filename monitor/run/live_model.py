"""What a plain training loop gives to be measured: its live model, its data and its loss."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from phasewatch.monitor.config.monitor import MonitorConfig
from phasewatch.monitor.core.health import Health
from phasewatch.monitor.core.types import LossFn, MeasureContext
from phasewatch.monitor.isolation import guard, measure_context
from phasewatch.monitor.isolation.probe import Probe, build_probe

if TYPE_CHECKING:
    from torch import nn


class PlainSubject:
    """The model of a plain loop, measured on copies.

    Args:
        model: The live model.
        source: Dataset, loader or batches to measure on; None measures without data.
        val_source: The same of validation data.
        loss_fn: `loss_fn(model, batch)`, in nats.
        n_samples: Number of loss terms in the probe, where it is not the number of samples.
        config: The run's configuration.

    Attributes:
        model: The live model.
    """

    def __init__(
        self,
        model: nn.Module,
        source: Any,
        val_source: Any,
        loss_fn: LossFn | None,
        n_samples: int | None,
        config: MonitorConfig,
    ) -> None:
        self.model = model
        self._source = source
        self._val_source = val_source
        self._loss_fn = loss_fn
        self._n_samples = n_samples
        self._config = config
        self._probe: Probe | None = None
        self._val_batches: tuple[Any, ...] = ()

    @contextmanager
    def measuring(self, step: int, health: Health) -> Iterator[MeasureContext]:
        """Copy the model as it is now, and shield training while the copy is measured."""
        seed = zlib.crc32(f"{self._config.seed}/{step}".encode())
        sources = [] if self._probe is not None else [self._source, self._val_source]
        extra = [source for source in sources if source is not None]
        with guard(self.model, seed=seed, extra=extra) as report:
            probe = self._ready_probe()
            yield measure_context(
                self.model,
                step=step,
                loss_fn=self._loss_fn,
                batches=probe.batches,
                val_batches=self._val_batches,
                n_samples=probe.n_samples,
                n_data=probe.n_data,
                sample_unit=probe.sample_unit,
                mode=self._config.probe.mode,
                seed=seed,
            )
        health.repairs += len(report.repairs)

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
