"""`TransitionMonitor` as a plain class: Lightning's hooks in, `Watch` calls out."""

# ruff: noqa: ARG002  (Lightning says what a hook is given)

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from phasewatch.callbacks.lightning.fit import Fit
from phasewatch.callbacks.lightning.saves import Saves
from phasewatch.callbacks.lightning.stages import renamed_state, stopped_early
from phasewatch.callbacks.shared.loggers import TrainerLoggers
from phasewatch.callbacks.shared.monitor import MonitorBase
from phasewatch.monitor.core.ending import RunState, ended_by, reason_for
from phasewatch.monitor.core.errors import ConfigError
from phasewatch.monitor.run.watch import Watch

log = logging.getLogger("phasewatch")


class MonitorHooks(MonitorBase):
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
        loggers: Whether λ̂ and transitions go into the trainer's own loggers, too, as
            `phasewatch/…`.

    Raises:
        ConfigError: A value is wrong; says which, what was received, what is allowed.

    Example:
        >>> from phasewatch.callbacks import TransitionMonitor
        >>> monitor = TransitionMonitor(every_n_steps=100)  # Trainer(callbacks=[monitor])
        >>> monitor.transitions
        []
    """

    _fit: Fit | None = None
    _loggers: TrainerLoggers | None = None
    _saves: Saves | None = None

    # ---- life cycle

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Check the configuration before anything runs."""
        if stage != "fit" or self._is_disabled() or not trainer.is_global_zero:
            return
        self._refuse_twins(trainer.callbacks)
        if self._watch is None:
            # A rehearsal leaves no trace, like the trainer's own loggers.
            root = Path(trainer.default_root_dir)
            self._loggers = TrainerLoggers()
            self._watch = self._make_watch(
                root,
                leaves_traces=not trainer.fast_dev_run,
                sinks=[self._loggers] if self._config.loggers else [],
            )
            self._watch.keep_checkpoints(".ckpt")
        if self._loggers is not None:  # a second fit may have another trainer
            self._loggers.loggers = trainer.loggers

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin an attempt: open the store, take the probe, ask what can be measured."""
        if self._watch is None:
            if self._takes_part(trainer):
                self._saves = Saves(trainer, None)
            return
        state, self._pending = self._pending, {}
        if self._ended_at is not None and trainer.global_step < self._ended_at:
            state = {}  # of the fit before, and this one begins anew: the watch makes a new run
        self._ended_at = None
        if state:
            self._watch.load_state_dict(state["watch"])
        self._fit = Fit(trainer, pl_module, self._watch, self._subject_settings)
        self._fit.start(state)
        if self._takes_part(trainer):
            self._saves = Saves(trainer, self._watch)

    def _takes_part(self, trainer: Any) -> bool:
        """Whether this process writes checkpoints with the others: all do, or none."""
        wanted = self._config.checkpoint_on is not None
        return wanted and not trainer.fast_dev_run and not self._is_disabled()

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """End the attempt: finished, or stopped early."""
        stopped = stopped_early(trainer)
        if self._fit is None and self._ended_at is None and self._watch is not None:
            self._take_over(self._watch, trainer.global_step)
        self._finish(RunState.STOPPED if stopped else RunState.FINISHED, stopped)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """End the attempt as failed, as stopped on purpose, or as interrupted."""
        state = ended_by(exception, self._config.stop_exceptions)
        self._finish(state, reason_for(exception))

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """End the attempt, if nothing has yet."""
        self._finish(RunState.FINISHED)
        if self._loggers is not None:
            self._loggers.loggers = ()

    def _finish(self, state: RunState, reason: str = "") -> None:
        fit, self._fit = self._fit, None
        self._saves = None
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

    def _take_over(self, watch: Watch, step: int) -> None:
        """Nothing was left to train: enter what only the checkpoint holds of the history."""
        state = self._pending.get("watch", {})
        if not state.get("durable", {}).get("rows"):
            return
        try:
            watch.load_state_dict(state)
            watch.start(int(self._pending.get("step", step)))
            self._pending, self._ended_at = {**self._pending, "watch": watch.state_dict()}, step
            watch.finish()
        except Exception:
            self._failed("what only the checkpoint holds of run %s could not be entered")

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
        if self._saves is not None:
            self._saves.batch_ended(None if self._fit is None else self._fit.step)

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

    # ---- what transformers' Trainer calls

    def on_init_end(self, *_: Any, **__: Any) -> None:
        """Refuse the Trainer of another framework.

        Raises:
            ConfigError: Always; names the callback that it takes.
        """
        raise ConfigError(
            "TransitionMonitor is a callback of Lightning's Trainer; give that of transformers "
            "phasewatch.callbacks.huggingface.TransitionCallback(), which takes the same arguments"
        )

    on_train_begin = on_init_end
