"""One fit, watched: which hook observes, which one measures, and what a failure does."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from phasewatch.callbacks.metrics import TRAIN_LOSS, LoggedMetrics
from phasewatch.callbacks.steps import StepLosses
from phasewatch.callbacks.subject import Subject
from phasewatch.monitor.errors import ConfigError, RefusedError
from phasewatch.monitor.isolation import guard, refuse_unmeasurable
from phasewatch.monitor.isolation.batches import num_bytes
from phasewatch.monitor.sampling.batches import leading_size
from phasewatch.monitor.watch import Watch

log = logging.getLogger("phasewatch")

MAX_SAVED_BYTES = 8 * 2**20
"""Largest probe of passing batches that is kept in checkpoints."""

MAX_BACKOFF = 10
"""After k failures in a row, 2^k steps pass before the next try, k up to this."""

NOTHING_DUE = 2**63


class Fit:
    """Watches one fit of a trainer.

    Args:
        trainer: The live trainer.
        module: The live module.
        watch: The run's watch, not started.
        settings: What the user gave for the subject: loss_fn, probe, val_probe, n_samples.
    """

    def __init__(self, trainer: Any, module: Any, watch: Watch, settings: dict[str, Any]) -> None:
        self._trainer = trainer
        self._module = module
        self._watch = watch
        self._seed = watch.config.seed
        self._subject = Subject(trainer, module, config=watch.config, **settings)
        self._metrics = LoggedMetrics()
        self._steps = StepLosses(trainer.global_step, manual=not module.automatic_optimization)
        self._epoch: int | None = None
        self._measures_from: float = math.inf
        self._recorded_step = -1
        self._next_log = 0
        self._failures = 0
        self._told: set[str] = set()
        self.wants_batches = False
        self.num_backwards = 0

    # ---- life cycle

    def start(self, state: dict[str, Any]) -> None:
        """Open the run, take the probe, ask what can be measured.

        Args:
            state: What an earlier attempt left, or nothing.

        Raises:
            ConfigError: What the user asked for cannot be had.
        """
        if state.get("counting"):
            self._steps = StepLosses(
                max(int(state["step"]), self._trainer.global_step),
                manual=True,
                counting=True,
            )
        self._watch.start(self._steps.step, expected_steps=self._expected_steps())
        self._next_log = self._steps.step + 1
        self._epoch = self._trainer.current_epoch
        self._metrics.skip(self._trainer)
        with self._watch.spending():
            self._prepare(state.get("probe"))

    @property
    def global_step(self) -> int:
        """Where the trainer stands."""
        return int(self._trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """Steps, and the probe where a resumed run could not find it again."""
        state: dict[str, Any] = {"step": self._steps.step, "counting": self._steps.counting}
        batches = self._subject.batches_taken_in_passing()
        if batches and _is_plain(batches):
            if num_bytes(batches) <= MAX_SAVED_BYTES:
                state["probe"] = list(batches)
            else:
                self._tell_once(
                    "probe",
                    "the probe was taken from passing batches and is too large for checkpoints: "
                    "a resumed run will take another, and its values will jump; pass probe=",
                )
        return state

    # ---- observing

    def batch_passes(self, batch: Any) -> None:
        """Take a copy of a batch for the probe."""
        passing = self._subject.passing
        try:
            with self._watch.spending():
                if passing is not None and passing.offer(batch):
                    self._settle()
        except Exception as error:
            self._give_up_passing(error)

    def before_step(self, optimizer: Any) -> None:
        """Let the watch look at gradients, if the coming step is due.

        Under LBFGS the hook comes several times a step: the first look counts.
        """
        step = self._trainer.global_step + 1
        if step < self._measures_from or step == self._recorded_step or not self._watch.due(step):
            return
        self._recorded_step = step
        try:
            self._watch.before_step(step, self._parameters_of(optimizer))
        except Exception as error:
            self._failed(step, error)

    def batch_ended(self, outputs: Any, batch: Any) -> None:
        """Keep the loss, read what was logged, measure what is due."""
        num_backwards, self.num_backwards = self.num_backwards, 0
        loss = outputs.get("loss") if outputs.__class__ is dict else None
        steps, trainer = self._steps, self._trainer
        step = trainer.global_step
        try:
            if (
                steps.is_one_batch_a_step
                and step != steps.step
                and trainer.accumulate_grad_batches == 1
            ):
                steps.step = step
                if loss is not None:
                    self._metrics.own_train_loss = True
                    self._watch.observe(step, {TRAIN_LOSS: loss}, self._epoch)
            else:
                before = steps.step
                self._observe_losses(step, loss)
                step = steps.step
                if not steps.counting:
                    coming = step if step != before else step + 1
                    self._micro_batch_ended(coming, batch, num_backwards)
                if step == before:
                    return
            if step >= self._next_log:
                self._read_logged(step)
            if step >= self._measures_from and self._watch.due(step):
                self._measure(step)
        except Exception as error:
            self._failed(step, error)

    def _micro_batch_ended(self, step: int, batch: Any, num_backwards: int) -> None:
        """Let the watch look at the gradient of a part of the coming step, if it is due."""
        if step < self._measures_from or not self._watch.due(step) or not self._accumulates():
            return
        scaler = getattr(self._trainer.precision_plugin, "scaler", None)
        self._watch.after_backward(
            step,
            self._module.named_parameters(),
            leading_size(batch) if num_backwards == 1 else 0,
            loss_scale=1.0 if scaler is None else scaler.get_scale(),
            num_replicas=self._trainer.world_size,
        )

    def _accumulates(self) -> bool:
        """Whether what a held-back batch leaves in `.grad` is that micro-batch's own gradient."""
        trainer = self._trainer
        if len(trainer.optimizers) != 1 or trainer.strategy.handles_gradient_accumulation:
            return False
        # Lightning keeps processes from averaging until the last one, a user's own loop may not.
        return bool(trainer.world_size == 1 or self._module.automatic_optimization)

    def _observe_losses(self, global_step: int, loss: Any) -> None:
        accumulate = self._trainer.accumulate_grad_batches
        for step, mean in self._steps.batch_ended(global_step, loss, accumulate):
            if mean is not None:
                self._metrics.own_train_loss = True
                self._watch.observe(step, {TRAIN_LOSS: mean}, self._epoch)

    def epoch_started(self) -> None:
        """Take what the epoch before logged."""
        self.epoch_reduced()
        self._epoch = self._trainer.current_epoch

    def epoch_reduced(self) -> None:
        """Take values of the epoch that Lightning has reduced."""
        with self._surviving():
            self._observe(self._metrics.of_epoch(self._trainer))
            if self.wants_batches and self._subject.passing is not None:
                self._subject.passing.close()
                if self._subject.passing.complete:
                    self._settle()

    def validation_starts(self) -> None:
        """Remember what was logged before."""
        with self._surviving():
            self._metrics.before_validation(self._trainer)

    def validation_ended(self) -> None:
        """Take what validation logged."""
        with self._surviving():
            self._observe(self._metrics.of_validation(self._trainer))

    def _read_logged(self, step: int) -> None:
        every = self._trainer.log_every_n_steps
        if not every:  # barebones: nothing is logged
            self._next_log = NOTHING_DUE
            return
        self._next_log = (step // every + 1) * every
        if step % every == 0 or every == 1:
            self._observe(self._metrics.of_step(self._trainer))

    def _observe(self, values: dict[str, Any]) -> None:
        if values:
            # Held until the next drain, while the trainer may go on adding to the same tensors.
            kept = {name: value.detach().clone() for name, value in values.items()}
            self._watch.observe(self._steps.step, kept, self._epoch)

    # ---- measuring

    def _prepare(self, saved: Any) -> None:
        try:
            refuse_unmeasurable(self._module)
            with self._guarded(0, self._subject.touched()):
                self._subject.prepare(saved)
        except RefusedError as error:
            self._watch.refuse(str(error))
            return
        except ConfigError:
            raise
        except Exception as error:
            self._watch.refuse(f"{type(error).__name__}: {error}")
            return
        self.wants_batches = self._subject.passing is not None
        if not self.wants_batches:
            self._check()

    def _settle(self) -> None:
        self.wants_batches = False
        with self._guarded(self._steps.step):
            self._subject.settle()
        self._check()

    def _give_up_passing(self, error: Exception) -> None:
        """Go on without a probe loss. It is too late for an error: training has begun."""
        self.wants_batches = False
        self._subject.passing = None
        self._subject.reason = self._subject.reason or f"{type(error).__name__}: {error}"
        try:
            self._check()
        except Exception as refused:
            self._tell_once("probe", str(refused))
            self._measures_from = self._steps.step  # what cannot be measured is skipped then

    def _check(self) -> None:
        """Ask every observable whether it can measure this model, and begin."""
        with self._guarded(self._steps.step):
            try:
                context = self._subject.context_to_check(self._steps.step)
            except Exception as error:  # no copy, nothing to measure; training goes on
                self._watch.refuse(f"{type(error).__name__}: {error}")
                return
            self._watch.check(context)
        self._measures_from = self._steps.step

    def _measure(self, step: int) -> None:
        with self._watch.spending(), self._guarded(step):
            self._watch.probe(step, self._subject.context(step, self._epoch))
        self._failures = 0

    @contextmanager
    def _guarded(self, step: int, touched: list[Any] | None = None) -> Iterator[None]:
        datamodule = self._trainer.datamodule
        extra = [*(touched or ()), *([datamodule] if datamodule is not None else ())]
        report = None
        try:
            with guard(self._module, seed=hash((self._seed, step)) % 2**63, extra=extra) as report:
                yield
        finally:
            if report is not None and report.repairs and touched is None:
                self._watch.health.repairs += len(report.repairs)
                self._tell_once(
                    "repairs",
                    "measuring changed what is alive, which was put back: "
                    + "; ".join(report.repairs[:5]),
                )

    def _parameters_of(self, optimizer: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Several optimizers: only the stepping one's gradients are this step's."""
        if len(self._trainer.optimizers) == 1:
            yield from self._module.named_parameters()
            return
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        yield from ((n, p) for n, p in self._module.named_parameters() if id(p) in own)

    # ---- failures

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._failed(self._steps.step, error)

    def _failed(self, step: int, error: Exception) -> None:
        """Count a failure, say the first, and leave growing gaps before the next try."""
        self._failures += 1
        self._watch.health.measurement_failures["monitor"] += 1
        if not math.isinf(self._measures_from):
            self._measures_from = step + 2 ** min(self._failures, MAX_BACKOFF)
        self._tell_once(
            f"failure {type(error).__name__}",
            f"the monitor failed at step {step} ({type(error).__name__}: {error}); training goes "
            "on, further failures are counted in phasewatch_measurement_failures_total",
        )
        log.debug("the failure in full", exc_info=error)

    def _tell_once(self, key: str, message: str) -> None:
        if key not in self._told:
            self._told.add(key)
            log.warning("%s", message)

    def _expected_steps(self) -> float:
        try:
            steps = self._trainer.estimated_stepping_batches
        except Exception as error:
            log.debug("the number of steps to come is not known: %s", error)
            return math.inf
        return math.inf if steps < 0 else float(steps)


def _is_plain(value: Any) -> bool:
    """Whether a checkpoint that is loaded with `weights_only` can hold this."""
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(map(_is_plain, value.values())) and all(map(_is_plain, value))
    return type(value) in (torch.Tensor, int, float, str, bytes, bool, type(None))
