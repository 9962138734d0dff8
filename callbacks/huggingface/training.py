"""One training of a `transformers.Trainer`, watched: which hook observes, which one measures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from phasewatch.callbacks.huggingface.subject import TrainerSubject, moved
from phasewatch.callbacks.huggingface.trainers import AroundSteps
from phasewatch.callbacks.shared.processes import longest_turn_seconds
from phasewatch.callbacks.shared.training import WatchedTraining
from phasewatch.monitor.run.watch import Watch

TRAIN_LOSS = "train_loss"

ABOUT_THE_MACHINE = (
    "_runtime",
    "_per_second",
    "_compilation_time",
    "step_time",
    "total_flos",
    "epoch",
)
"""What the Trainer logs of time and of work: by how the names end."""


class Training(WatchedTraining):
    """Watches one call of `Trainer.train`.

    Args:
        trainer: The live trainer; None where it is not known.
        module: The live model, unwrapped.
        watch: The run's watch, not started.
        state: The trainer's state.
        given: What the trainer hands its callbacks: args, loader, optimizer.
        settings: What the user gave for the subject: loss_fn, probe, val_probe, n_samples.
    """

    def __init__(
        self,
        trainer: Any,
        module: nn.Module,
        watch: Watch,
        state: Any,
        given: Mapping[str, Any],
        settings: Mapping[str, Any],
    ) -> None:
        subject = TrainerSubject(trainer, module, watch=watch, **given, **settings)
        super().__init__(module, watch, subject)
        self._trainer = trainer
        self._device = given["args"].device
        self._step = int(state.global_step)
        self._losses: list[torch.Tensor] = []
        self._steps: AroundSteps | None = None
        if trainer is not None:
            self._steps = AroundSteps(trainer, self._batch_comes, self._loss_came)

    @property
    def step(self) -> int:
        """Optimizer steps completed."""
        return self._step

    def start(self, state: Mapping[str, Any], max_steps: int) -> None:
        """Open the run, take the probe, ask what can be measured.

        Args:
            state: What an earlier attempt left, or nothing.
            max_steps: Step at which the trainer will stop, at the latest.

        Raises:
            ConfigError: What the user asked for cannot be had.
        """
        self._watch.bound_turns(longest_turn_seconds())
        self._watch.start(self._step, expected_steps=max_steps if max_steps > 0 else math.inf)
        with self._watch.spending():
            self._prepare(state.get("probe"))

    def state_dict(self) -> dict[str, Any]:
        """Steps, and the probe where a resumed run could not find it again."""
        return {"step": self._step} | self.saved_probe()

    def leave(self) -> None:
        """Leave the trainer as it was."""
        if self._steps is not None:
            self._steps.remove()

    # ---- observing

    def _batch_comes(self, inputs: Any) -> None:
        if self.wants_batches:
            with self._failures.surviving(self._step + 1):
                self.batch_passes(moved(inputs, self._device))

    def _loss_came(self, loss: Any) -> None:
        """Keep the loss of a micro-batch; after the last one look at the unclipped gradient."""
        with self._failures.surviving(self._step + 1):
            if isinstance(loss, torch.Tensor):
                self._losses.append(loss)
            step = self._step + 1
            accelerator = self._trainer.accelerator
            if not accelerator.sync_gradients or step < self._measures_from:
                return
            scaler = getattr(accelerator, "scaler", None)
            self._watch.before_step(
                step,
                self._module.named_parameters(),
                loss_scale=1.0 if scaler is None else scaler.get_scale(),
            )

    def step_ended(self, global_step: int) -> None:
        """Keep the loss of the step; measure what is due."""
        self._step = step = int(global_step)
        losses, self._losses = self._losses, []
        with self._failures.surviving(step):
            if losses:  # each is divided already by how many make up the step
                loss = losses[0] if len(losses) == 1 else torch.stack(losses).sum()
                self._watch.observe(step, {TRAIN_LOSS: loss}, self._epoch)
            if step >= self._measures_from and self._watch.due(step):
                self._watch.probe(step, self._subject, self._epoch)

    def logged(self, logs: Mapping[str, Any]) -> None:
        """Take what the trainer logs of the model, under its own names."""
        if "train_runtime" in logs:  # its summary: train_loss is the mean of all steps here
            return
        values = {
            ("learning_rate" if name == "lr" else name): float(value)
            for name, value in logs.items()
            if isinstance(value, (int, float)) and not name.endswith(ABOUT_THE_MACHINE)
        }
        loss = values.pop("loss", None)
        if loss is not None and self._steps is None:
            values[TRAIN_LOSS] = loss
        if values:
            with self._failures.surviving(self._step):
                self._watch.observe(self._step, values, self._epoch)

    def epoch_started(self, epoch: float | None) -> None:
        """Note which epoch begins."""
        self._epoch = int((epoch or 0.0) + 1e-6)

    def epoch_ended(self) -> None:
        """Take what has passed by as the whole probe."""
        with self._failures.surviving(self._step):
            self.no_more_batches()
