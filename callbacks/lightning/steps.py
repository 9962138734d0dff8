"""Counting optimizer steps, and one loss for each."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch

log = logging.getLogger("phasewatch")

STUCK_BATCHES = 16
"""Batches of manual optimization without a counted step after which batches are counted."""


class StepLosses:
    """Turns batches into optimizer steps.

    Lightning's `global_step` counts optimizer steps: the same for every micro-batch under
    accumulation, and for ever 0 where a module steps its raw optimizers.

    Args:
        step: Optimizer steps completed so far.
        manual: Whether the module optimizes by hand.
        counting: Whether an earlier attempt had to count batches.

    Attributes:
        step: Optimizer steps completed.
        counting: Whether batches are counted in place of steps.
        is_one_batch_a_step: Whether nothing is held back and steps are Lightning's; then a batch
            after which `global_step` moved is a step of its own, and need not come here.
    """

    def __init__(self, step: int, *, manual: bool, counting: bool = False) -> None:
        self.step = step
        self.counting = counting
        self._manual = manual
        self._held: list[Any] = []
        self.is_one_batch_a_step = not counting

    def batch_ended(
        self, global_step: int, loss: Any, accumulate: int
    ) -> Iterator[tuple[int, Any]]:
        """Take one batch.

        Args:
            global_step: Lightning's count.
            loss: The batch's loss as Lightning gives it, divided by `accumulate` in automatic
                optimization; None if the step was skipped.
            accumulate: Micro-batches a step.

        Yields:
            Completed steps, with their mean loss (None if there was none).
        """
        if self.counting:
            self.step += 1
            yield self.step, loss
            return
        self._held.append(loss)
        self.is_one_batch_a_step = False
        if global_step != self.step:
            self.step = global_step
            held, self._held = self._held, []
            self.is_one_batch_a_step = True
            yield global_step, self._mean(held, accumulate)
        elif self._manual and len(self._held) >= STUCK_BATCHES:
            yield from self._start_counting()

    def _start_counting(self) -> Iterator[tuple[int, Any]]:
        log.warning(
            "global_step did not move in %d batches: the module steps optimizers that Lightning "
            "does not see; counting batches as steps from here on. Use self.optimizers() to have "
            "steps counted",
            STUCK_BATCHES,
        )
        self.counting = True
        held, self._held = self._held, []
        for loss in held:
            self.step += 1
            yield self.step, loss

    def _mean(self, held: list[Any], accumulate: int) -> Any:
        scale = 1 if self._manual else accumulate
        losses = [loss for loss in held if loss is not None]
        if not losses:
            return None
        if len(losses) == 1 and scale == 1:
            return losses[0]
        return torch.stack([torch.as_tensor(loss) for loss in losses]).mean() * scale
