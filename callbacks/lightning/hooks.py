"""`TransitionMonitor` as a plain class: Lightning's hooks in, `Watch` calls out."""

# ruff: noqa: ARG002  (Lightning says what a hook is given)

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from phasewatch.callbacks.lightning.fit import Fit
from phasewatch.callbacks.lightning.settings import settle_config
from phasewatch.callbacks.lightning.stages import renamed_state, stopped_early
from phasewatch.detectors.base import Detector
from phasewatch.monitor.config.alerts import AlertsConfig
from phasewatch.monitor.config.monitor import ExporterConfig, MonitorConfig
from phasewatch.monitor.config.schedule import EveryNSteps, LogSpaced
from phasewatch.monitor.core.arguments import named_arguments
from phasewatch.monitor.core.ending import ended_by, reason_for
from phasewatch.monitor.core.errors import ConfigError
from phasewatch.monitor.core.history import History
from phasewatch.monitor.core.types import Observable, RunState, Sink, Transition
from phasewatch.monitor.run.watch import Watch

log = logging.getLogger("phasewatch")

DISABLED = "PHASEWATCH_DISABLED"
"""Environment variable: "1" makes the callback do nothing at all."""


class MonitorHooks:
    """Watches a model while it trains, and says when it changes in kind.

    One callback estimates the local learning coefficient and other observables live, runs
    change-point detectors over them and over everything the module logs, stores all of it, and
    serves it to Prometheus. Training is not touched: weights, optimizer state, random streams and
    logged values are the same bit for bit with the callback and without it.

    Args:
        config: A `MonitorConfig`, or the path of a YAML file. All defaults live there.
        run_name: Name of the run. Two monitors in one Trainer need different names.
        observables: What to measure: names, a mapping from name to settings, or own objects;
            "all" for every observable that needs no arguments and fits the model.
        detectors: Detector, or its name, by stream name.
        probe: Data to measure on: dataset, loader or batches. Default: the training data.
        val_probe: The same of validation data.
        loss_fn: `loss_fn(model, batch)`: per-sample losses of shape (batch,) or their mean, in
            nats. Default: the module's `probe_loss(batch)`, else its `training_step`.
        n_samples: Number of terms the loss averages over, where it is not the number of samples.
        every_n_steps: Measure every so many optimizer steps, without a budget.
        schedule: The same, in full.
        overhead: Share of wall time for measuring, 0 < overhead ≤ 1; 1 is no budget.
        store: SQLAlchemy URL or path; a relative path lies under the trainer's
            `default_root_dir`.
        exporter: The Prometheus endpoint; False for none, a number for its port.
        alerts: Direct alerts: URLs of targets, or all settings.
        sinks: Further places that results go to.

    Raises:
        ConfigError: A value is wrong; says which, what was received, what is allowed.

    Example:
        >>> from phasewatch.callbacks import TransitionMonitor
        >>> monitor = TransitionMonitor(every_n_steps=100)  # Trainer(callbacks=[monitor])
        >>> monitor.transitions
        []
    """

    @named_arguments
    def __init__(
        self,
        config: MonitorConfig | str | Path | None = None,
        *,
        run_name: str | None = None,
        observables: Literal["all"] | Sequence[str | Observable] | Mapping[str, Any] | None = None,
        detectors: Mapping[str, Detector | str | dict[str, Any]] | None = None,
        probe: Any = None,
        val_probe: Any = None,
        loss_fn: Callable[..., torch.Tensor] | None = None,
        n_samples: int | None = None,
        every_n_steps: int | None = None,
        schedule: EveryNSteps | LogSpaced | None = None,
        overhead: float | None = None,
        store: str | Path | None = None,
        exporter: ExporterConfig | bool | int | None = None,
        alerts: AlertsConfig | Sequence[str] | None = None,
        sinks: Sequence[Sink] | None = None,
    ) -> None:
        super().__init__()
        if loss_fn is not None and not callable(loss_fn):
            raise ConfigError(
                f"loss_fn: got {loss_fn!r}; give a function loss_fn(model, batch) -> losses"
            )
        if n_samples is not None and n_samples < 1:
            raise ConfigError(f"n_samples: got {n_samples!r}; give a number of at least 1")
        self._config, self._observables, self._detectors = settle_config(
            config,
            observables=observables,
            detectors=detectors,
            run_name=run_name,
            every_n_steps=every_n_steps,
            schedule=schedule,
            overhead=overhead,
            store=store,
            exporter=exporter,
            alerts=alerts,
        )
        self._subject_settings = {
            "loss_fn": loss_fn,
            "probe": probe,
            "val_probe": val_probe,
            "n_samples": n_samples,
        }
        self._sinks = tuple(sinks or ())
        self._watch: Watch | None = None
        self._fit: Fit | None = None
        self._pending: dict[str, Any] = {}
        self._ended_at: int | None = None  # step at which `_pending` was left by a fit of ours

    # ---- what users read

    @property
    def config(self) -> MonitorConfig:
        """The configuration, with what the constructor was given."""
        return self._config

    @property
    def watch(self) -> Watch | None:
        """The running watch; None before a fit, on ranks other than 0, and when disabled."""
        return self._watch

    @property
    def transitions(self) -> list[Transition]:
        """Transitions found so far, in the order of their onset."""
        return self._watch.transitions if self._watch is not None else []

    def history(self, name: str, *, include_unconverged: bool = False) -> History:
        """Everything observed of one stream: steps, values, standard errors, each of shape (n,).

        Args:
            name: Stream name, for example "llc" or "train_loss".
            include_unconverged: Show also the values whose status is not OK, which are NaN else.
        """
        if self._watch is None:
            return History.empty(name)
        return self._watch.history(name, include_unconverged=include_unconverged)

    # ---- life cycle

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Check the configuration before anything runs."""
        if stage != "fit" or os.environ.get(DISABLED) == "1" or not trainer.is_global_zero:
            return
        self._refuse_twins(trainer)
        if self._watch is None:
            config = self._config
            if trainer.fast_dev_run:  # a rehearsal leaves no trace, like the trainer's own loggers
                config = config.replace(store="sqlite://", exporter={"enabled": False}, alerts=())
            self._watch = Watch(
                config,
                observables=self._observables,
                detectors=self._detectors,
                sinks=self._sinks,
                root=Path(trainer.default_root_dir),
            )

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin an attempt: open the store, take the probe, ask what can be measured."""
        if self._watch is None:
            return
        state, self._pending = self._pending, {}
        if self._ended_at is not None and trainer.global_step < self._ended_at:
            state = {}  # of the fit before, and this one begins anew: the watch makes a new run
        self._ended_at = None
        if state:
            self._watch.load_state_dict(state["watch"])
        self._fit = Fit(trainer, pl_module, self._watch, self._subject_settings)
        self._fit.start(state)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """End the attempt: finished, or stopped early."""
        stopped = stopped_early(trainer)
        self._finish(RunState.STOPPED if stopped else RunState.FINISHED, stopped)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """End the attempt as failed, as stopped on purpose, or as interrupted."""
        state = ended_by(exception, self._config.stop_exceptions)
        self._finish(state, reason_for(exception))

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """End the attempt, if nothing has yet."""
        self._finish(RunState.FINISHED)

    def _finish(self, state: RunState, reason: str = "") -> None:
        fit, self._fit = self._fit, None
        if fit is None or self._watch is None:
            return
        self._ended_at = fit.global_step
        try:
            # Kept for a second fit and for checkpoints that are written after the end.
            self._pending = {**fit.state_dict(), "watch": self._watch.state_dict()}
        except Exception:
            self._failed("keeping the state of run %s failed; a second fit starts afresh")
        try:
            self._watch.finish(state, reason)
        except Exception:
            self._failed("ending run %s failed; what was stored before is safe")

    def _failed(self, message: str) -> None:
        """Count and log a failure at the end of a fit, which must not hide training's own."""
        if self._watch is not None:
            self._watch.health.measurement_failures["monitor"] += 1
            log.exception(message, self._watch.run_name)

    # ---- training

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Take the values of the epoch that was reduced last."""
        if self._fit is not None:
            self._fit.epoch_started()

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Copy the batch, while a probe is taken from passing ones."""
        if self._fit is not None and self._fit.wants_batches:
            self._fit.batch_passes(batch)

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """Count: a batch with one backward pass may be a micro-batch of the coming step."""
        if self._fit is not None:
            self._fit.num_backwards += 1

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Look at the unclipped gradient, if the coming step is due."""
        if self._fit is not None:
            self._fit.before_step(optimizer)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the loss; measure if it is time. The only hook in which weights are final."""
        if self._fit is not None:
            self._fit.batch_ended(outputs, batch)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Take the values of the last epoch, and measure what waits for the end."""
        if self._fit is not None:
            self._fit.training_ends()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Remember what is logged already."""
        if self._fit is not None and not trainer.sanity_checking:
            self._fit.validation_starts()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Take what validation logged, once."""
        if self._fit is not None and not trainer.sanity_checking:
            self._fit.validation_ended()

    # ---- checkpoints

    @property
    def state_key(self) -> str:
        """Key in checkpoints: by run name where one was given, never by what is tuned."""
        name = self._run_name
        return "TransitionMonitor" if name is None else f"TransitionMonitor{{'run_name': {name!r}}}"

    def state_dict(self) -> dict[str, Any]:
        """Identity, schedule, detectors and transitions of the run, as plain containers."""
        if self._fit is None or self._watch is None:
            return self._pending
        return {**self._fit.state_dict(), "watch": self._watch.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state for the next start. Tuners call this in the middle: nothing opens here."""
        self._pending = dict(state_dict)
        self._ended_at = None

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Find the run of a checkpoint that has it under another name: it goes on renamed."""
        if (found := renamed_state(checkpoint, self.state_key)) is not None:
            self.load_state_dict(found)

    # ---- helpers

    @property
    def _run_name(self) -> str | None:
        return self._config.run_name

    def _refuse_twins(self, trainer: Any) -> None:
        for other in trainer.callbacks:
            if other is self or not isinstance(other, MonitorHooks):
                continue
            if other._run_name == self._run_name:
                raise ConfigError(
                    f"run_name: two monitors in one Trainer are both named {self._run_name!r}; "
                    "give each its own run_name"
                )
