"""One fit, watched: which hook observes, which one measures, and what a failure does."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import Any

import torch

from phasewatch.callbacks.lightning.metrics import TRAIN_LOSS, LoggedMetrics, held
from phasewatch.callbacks.lightning.steps import StepLosses
from phasewatch.callbacks.lightning.subject import FitSubject
from phasewatch.callbacks.shared.processes import longest_turn_seconds
from phasewatch.callbacks.shared.training import WatchedTraining
from phasewatch.monitor.isolation.batches import leading_size
from phasewatch.monitor.run.watch import Watch

log = logging.getLogger("phasewatch")

NOTHING_DUE = 2**63


class Fit(WatchedTraining):
    """Watches one fit of a trainer.

    Args:
        trainer: The live trainer.
        module: The live module.
        watch: The run's watch, not started.
        settings: What the user gave for the subject: loss_fn, probe, val_probe, n_samples.
    """

    def __init__(self, trainer: Any, module: Any, watch: Watch, settings: dict[str, Any]) -> None:
        super().__init__(module, watch, FitSubject(trainer, module, watch=watch, **settings))
        self._trainer = trainer
        self._metrics = LoggedMetrics()
        self._steps = StepLosses(trainer.global_step, manual=not module.automatic_optimization)
        self._recorded_step = -1
        self._next_log = 0
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
        self._watch.bound_turns(longest_turn_seconds())
        self._watch.start(self._steps.step, expected_steps=self._expected_steps())
        self._next_log = self._steps.step + 1
        self._epoch = self._trainer.current_epoch
        self._metrics.skip(self._trainer)
        with self._watch.spending():
            self._prepare(state.get("probe"))

    @property
    def step(self) -> int:
        """Optimizer steps completed."""
        return self._steps.step

    @property
    def global_step(self) -> int:
        """Where the trainer stands."""
        return int(self._trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """Steps, and the probe where a resumed run could not find it again."""
        state: dict[str, Any] = {"step": self._steps.step, "counting": self._steps.counting}
        return state | self.saved_probe()

    # ---- observing

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
            self._failures.record(step, error)

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
                self._watch.probe(step, self._subject, self._epoch)
        except Exception as error:
            self._failures.record(step, error)

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
        with self._failures.surviving(self._steps.step):
            self._observe(self._metrics.of_epoch(self._trainer))
            self.no_more_batches()

    def training_ends(self) -> None:
        """Take the values of the last epoch, and measure what the run had no room for."""
        self.epoch_reduced()
        self.measure_last()

    def validation_starts(self) -> None:
        """Remember what was logged before."""
        with self._failures.surviving(self._steps.step):
            self._metrics.before_validation(self._trainer)

    def validation_ended(self) -> None:
        """Take what validation logged."""
        with self._failures.surviving(self._steps.step):
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
            self._watch.observe(self._steps.step, held(values), self._epoch)

    # ---- measuring

    def _parameters_of(self, optimizer: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Several optimizers: only the stepping one's gradients are this step's."""
        if len(self._trainer.optimizers) == 1:
            yield from self._module.named_parameters()
            return
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        yield from ((n, p) for n, p in self._module.named_parameters() if id(p) in own)

    def _expected_steps(self) -> float:
        try:
            steps = self._trainer.estimated_stepping_batches
        except Exception as error:
            log.debug("the number of steps to come is not known: %s", error)
            return math.inf
        return math.inf if steps < 0 else float(steps)
