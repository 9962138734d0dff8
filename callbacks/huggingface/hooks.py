"""`TransitionCallback` as a plain class: the Trainer's hooks in, `Watch` calls out."""

# ruff: noqa: ARG002  (the Trainer says what a hook is given)

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from phasewatch.callbacks.huggingface.checkpoints import load_state, save_state
from phasewatch.callbacks.huggingface.loggers import Board, boards_of
from phasewatch.callbacks.huggingface.saves import refusal, save_checkpoint
from phasewatch.callbacks.huggingface.trainers import AroundTraining, calling_trainer
from phasewatch.callbacks.huggingface.training import Training
from phasewatch.callbacks.shared.loggers import TrainerLoggers
from phasewatch.callbacks.shared.monitor import MonitorBase
from phasewatch.monitor.core.ending import RunState, ended_by, reason_for
from phasewatch.monitor.core.errors import ConfigError
from phasewatch.monitor.run.keeper import REFUSED

log = logging.getLogger("phasewatch")


class CallbackHooks(MonitorBase):
    """Watches a model while a `transformers.Trainer` trains it.

    What `phasewatch.callbacks.TransitionMonitor` is for Lightning, with the same arguments: it
    estimates the local learning coefficient and other observables live, detects transitions, stores
    everything and serves it. Training is not touched: weights, optimizer state, random streams and
    log history are the same bit for bit with the callback and without it.

    The loss of every optimizer step is observed as `train_loss`, however seldom the Trainer logs;
    what it logs keeps its names (`eval_loss`, `grad_norm`, `learning_rate`).

    Args:
        config: A `MonitorConfig`, or the path of a YAML file. All defaults live there.
        run_name: Name of the run. Two callbacks in one Trainer need different names.
        observables: What to measure: names, a mapping from name to settings, or own objects;
            "all" for every observable that needs no arguments and fits the model.
        detectors: Detector, or its name, by stream name.
        probe: Data to measure on: dataset, loader or batches. Default: the training data.
        val_probe: The same of validation data.
        loss_fn: `loss_fn(model, batch)`: per-sample losses of shape (batch,), their mean, or
            (sum, count), in nats. Default: the model's `probe_loss(batch)`, else the Trainer's
            `compute_loss` where it is not the plain one, else what the model's forward gives.
        n_samples: Number of terms the loss averages over, where it cannot be told from the batch.
        every_n_steps: Measure every so many optimizer steps, without a budget.
        schedule: The same, in full.
        overhead: Share of wall time for measuring, 0 < overhead ≤ 1; 1 is no budget.
        store: SQLAlchemy URL or path; a relative path lies under the Trainer's `output_dir`.
        exporter: The Prometheus endpoint; False for none, a number for its port.
        alerts: Direct alerts: URLs of targets, or all settings.
        sinks: Further places that results go to.
        loggers: Whether λ̂ and transitions go into the Trainer's TensorBoard, too, as
            `phasewatch/…`. Its log history and other trackers get none of them.

    Raises:
        ConfigError: A value is wrong; says which, what was received, what is allowed.
        ImportError: transformers is not installed.
    """

    _training: Training | None = None
    _around: AroundTraining | None = None
    _writer: Any = None
    """The trainer that checkpoints around a suspicion are written by, where it can."""
    _loggers: TrainerLoggers | None = None
    _boards: Sequence[Board] = ()

    # ---- life cycle

    def on_init_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """See how the coming training ends."""
        trainer, _checkpoint = calling_trainer()
        if trainer is not None and not self._is_disabled() and trainer.is_world_process_zero():
            self._around = AroundTraining(trainer, self._raised)

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Begin an attempt: open the store, take the probe, ask what can be measured."""
        if self._is_disabled() or not state.is_world_process_zero:
            return
        self._finish(RunState.FAILED, "training began anew before it had ended")
        trainer, checkpoint = calling_trainer()
        if trainer is not None:
            self._refuse_twins(trainer.callback_handler.callbacks)
        self._check_loggers(trainer)
        root = Path(args.output_dir)
        if self._watch is None:
            self._loggers = TrainerLoggers()
            self._watch = self._make_watch(
                root, sinks=[self._loggers] if self._config.loggers else []
            )
            self._watch.keep_checkpoints("")
        saved: dict[str, Any] = {}
        if state.global_step:
            told = checkpoint or args.resume_from_checkpoint
            folders = [root / f"checkpoint-{state.global_step}"]
            saved = load_state([*([Path(told)] if told else ()), *folders], self._run_name)
        if saved:
            self._watch.load_state_dict(saved["watch"])
        self._training = Training(
            trainer,
            given["model"],
            self._watch,
            state,
            {
                "args": args,
                "loader": given.get("train_dataloader"),
                "optimizer": given.get("optimizer"),
            },
            self._subject_settings,
        )
        try:
            self._training.start(saved, state.max_steps)
        except BaseException as error:
            self._raised(error)
            raise
        if self._config.checkpoint_on is not None:
            self._writer = trainer
            if reason := refusal(trainer):
                self._writer = None
                self._watch.health.skipped[REFUSED] += 1
                log.warning("checkpoint_on: no checkpoint is written: %s", reason)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """End the attempt: finished, or stopped early."""
        stopped = "" if state.global_step >= state.max_steps else "the training was asked to stop"
        if self._training is not None and not _has_other_weights(args, state):
            self._training.measure_last()
        self._finish(RunState.STOPPED if stopped else RunState.FINISHED, stopped)

    def _raised(self, error: BaseException) -> None:
        """End the attempt as failed, as stopped on purpose, or as interrupted."""
        self._finish(ended_by(error, self._config.stop_exceptions), reason_for(error))

    def _finish(self, state: RunState, reason: str = "") -> None:
        training, self._training = self._training, None
        self._writer = None
        if training is None or self._watch is None:
            return
        training.leave()
        try:
            self._watch.finish(state, reason)
        except Exception:
            # A failure at the end of training must not hide training's own.
            self._watch.health.measurement_failures["monitor"] += 1
            log.exception(
                "ending run %s failed; what was stored before is safe", self._watch.run_name
            )
        boards, self._boards = self._boards, ()
        for board in boards:
            with self._watch.failures.surviving(self._watch.health.step):
                board.close()

    def _check_loggers(self, trainer: Any) -> None:
        """Refuse a wish for loggers where there is none to write to."""
        config = self._config
        if not (config.loggers and "loggers" in config.model_fields_set):
            return
        if trainer is None or not boards_of(trainer.callback_handler.callbacks):
            raise ConfigError(
                "loggers: got True, and this Trainer reports to no TensorBoard, the only one of "
                'its trackers that is written to; give it report_to="tensorboard", or leave '
                "loggers out and see the run with `phasewatch serve`"
            )

    # ---- training

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note which epoch begins."""
        if self._training is None:
            return
        if self._loggers is not None and not self._boards:  # by now every callback has begun
            trainer, _checkpoint = calling_trainer()
            if trainer is not None:
                self._boards = boards_of(trainer.callback_handler.callbacks)
                self._loggers.loggers = self._boards
        self._training.epoch_started(state.epoch)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After the last epoch measure what waits for the end, before other weights are loaded."""
        if self._training is not None:
            self._training.epoch_ended()
            if control.should_training_stop:
                self._training.measure_last()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep the loss; measure if it is time. The hook in which weights are final."""
        if self._training is not None:
            self._training.step_ended(state.global_step)
            if self._writer is not None:
                self._keep_checkpoint(self._training, self._writer, state)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Take what the Trainer logs, evaluations too."""
        if self._training is not None and logs:
            self._training.logged(logs)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep the state beside the Trainer's own, in the checkpoint that was just written."""
        if self._training is None or self._watch is None or state.is_hyper_param_search:
            return
        with self._watch.failures.surviving(state.global_step):
            kept = {**self._training.state_dict(), "watch": self._watch.state_dict()}
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            save_state(folder, self._run_name, kept)

    def _keep_checkpoint(self, training: Training, trainer: Any, state: Any) -> None:
        """Have a checkpoint written, if one is wanted for what may be suspected."""
        watch = self._watch
        if watch is None or (kept := watch.checkpoints) is None:
            return
        if (place := kept.place(state.global_step)) is None:
            return

        def save(folder: Path) -> None:
            save_checkpoint(trainer, state, folder)
            held = {**training.state_dict(), "watch": watch.state_dict()}
            save_state(folder, self._run_name, held)

        kept.write(place, save)

    # ---- what Lightning's Trainer calls

    @property
    def state_key(self) -> NoReturn:
        """Refuse the Trainer of another framework.

        Raises:
            ConfigError: Always; names the callback that it takes.
        """
        self.setup()

    def setup(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse the Trainer of another framework, as `state_key`.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            "TransitionCallback is a callback of transformers' Trainer; give Lightning's "
            "phasewatch.callbacks.TransitionMonitor(), which takes the same arguments"
        )

    on_exception = setup  # asked next; without it the error would be that it lacks


def _has_other_weights(args: Any, state: Any) -> bool:
    """Whether the model holds, after training, the weights of an earlier step."""
    return bool(args.load_best_model_at_end and state.best_model_checkpoint)
