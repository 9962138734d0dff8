"""One training, watched: what it prepares, the probe it takes, and what it keeps for a resume."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from phasewatch.callbacks.shared.subject import Subject
from phasewatch.monitor.core.errors import ConfigError, RefusedError
from phasewatch.monitor.isolation import refuse_unmeasurable
from phasewatch.monitor.isolation.batches import num_bytes
from phasewatch.monitor.run.watch import Watch

MAX_SAVED_BYTES = 8 * 2**20
"""Largest probe of passing batches that is kept in checkpoints."""


class WatchedTraining:
    """Watches one training of a trainer, of whatever framework.

    Args:
        module: The live module.
        watch: The run's watch, not started.
        subject: What is measured.

    Attributes:
        wants_batches: Whether the probe is still taken from passing batches.
    """

    def __init__(self, module: nn.Module, watch: Watch, subject: Subject) -> None:
        self._module = module
        self._watch = watch
        self._failures = watch.failures
        self._subject = subject
        self._epoch: int | None = None
        self._measures_from: float = math.inf
        self._has_measured_last = False
        self.wants_batches = False

    @property
    def step(self) -> int:
        """Optimizer steps completed."""
        raise NotImplementedError

    def saved_probe(self) -> dict[str, Any]:
        """The probe, where a resumed run could not find it again, under "probe"."""
        batches = self._subject.batches_taken_in_passing()
        if not batches or not _is_plain(batches):
            return {}
        if num_bytes(batches) <= MAX_SAVED_BYTES:
            return {"probe": list(batches)}
        self._failures.tell_once(
            "probe",
            "the probe was taken from passing batches and is too large for checkpoints: "
            "a resumed run will take another, and its values will jump; pass probe=",
        )
        return {}

    def batch_passes(self, batch: Any) -> None:
        """Take a copy of a batch for the probe."""
        passing = self._subject.passing
        try:
            with self._watch.spending():
                if passing is not None and passing.offer(batch):
                    self._settle()
        except Exception as error:
            self._give_up_passing(error)

    def no_more_batches(self) -> None:
        """The epoch is over: what has passed by is the whole probe, if anything has."""
        passing = self._subject.passing
        if self.wants_batches and passing is not None:
            passing.close()
            if passing.complete:
                self._settle()

    def measure_last(self) -> None:
        """Training ends: measure what the run had no room for. Once."""
        if not math.isinf(self._measures_from) and not self._has_measured_last:
            self._has_measured_last = True
            self._watch.measure_last(self.step, self._subject, self._epoch)

    def _prepare(self, saved: Any) -> None:
        try:
            refuse_unmeasurable(self._module)
            with self._subject.guarded(0, 0, self._subject.touched()):
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
        with self._subject.guarded(self.step, 0):
            self.wants_batches = not self._subject.settle()
        if not self.wants_batches:
            self._check()

    def _give_up_passing(self, error: Exception) -> None:
        """Go on without a probe loss. It is too late for an error: training has begun."""
        self.wants_batches = False
        self._subject.passing = None
        self._subject.reason = self._subject.reason or f"{type(error).__name__}: {error}"
        try:
            self._check()
        except Exception as refused:
            self._failures.tell_once("probe", str(refused))
            self._measures_from = self.step  # what cannot be measured is skipped then

    def _check(self) -> None:
        """Ask every observable whether it can measure this model, and begin."""
        step = self.step
        with self._watch.spending(), self._subject.guarded(step, 0):
            try:
                context = self._subject.context_to_check(step)
            except Exception as error:  # no copy, nothing to measure; training goes on
                self._watch.refuse(f"{type(error).__name__}: {error}")
                return
            self._watch.check(
                context,
                loss=self._subject.loss_source,
                step_seconds=self._subject.step_seconds,
                cost=self._subject.cost,
            )
        self._measures_from = step


def _is_plain(value: Any) -> bool:
    """Whether a checkpoint that is loaded with `weights_only` can hold this."""
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(map(_is_plain, value.values())) and all(map(_is_plain, value))
    return type(value) in (torch.Tensor, int, float, str, bytes, bool, type(None))
