"""Checkpoints around a suspicion, by the Trainer's own means, and by all processes together.

The first process decides, for it alone measures. At the steps of a grid that all know it tells the
others, and then all write together or none does: a strategy may have to gather what it saves. They
do it where Lightning's `ModelCheckpoint` does, at the end of a batch, and move nothing of its.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from phasewatch.monitor.run.keeper import Grid
from phasewatch.monitor.run.watch import Watch

log = logging.getLogger("phasewatch")


class Saves:
    """Writes checkpoints of one fit when they are wanted.

    Made by every process of the fit, when training starts.

    Args:
        trainer: The live trainer.
        watch: The run's watch, started; None in processes that do not measure.
    """

    def __init__(self, trainer: Any, watch: Watch | None) -> None:
        self._trainer = trainer
        self._kept = None if watch is None else watch.checkpoints
        own = None if self._kept is None else self._kept.keeper.grid
        every, length = self._told((None, None) if own is None else (own.every, own.length))
        self._grid = None if length is None else Grid(every, length)
        self._next = 0 if self._grid is None else self._grid.after(trainer.global_step)

    def batch_ended(self, step: int | None) -> None:
        """Write a checkpoint, if one is wanted. Never raises.

        Args:
            step: Steps completed as the watch counts them; None where there is none.
        """
        alone = self._trainer.world_size == 1
        at = step if alone and step is not None else self._trainer.global_step
        if self._grid is None or at < self._next:
            return
        self._next = self._grid.after(at)
        place = None if self._kept is None else self._kept.place(at)
        told = self._told("" if place is None else str(place))
        if not told:
            return
        if self._kept is not None:
            self._kept.write(Path(told), self._save)
            return
        try:
            self._save(Path(told))
        except Exception as error:
            log.warning("writing checkpoint %s failed in this process: %s", told, error)

    def _told(self, value: Any) -> Any:
        """What the first process says."""
        if self._trainer.world_size == 1:
            return value
        return self._trainer.strategy.broadcast(value, src=0)

    def _save(self, path: Path) -> None:
        try:
            self._trainer.save_checkpoint(path, weights_only=False)
        except Exception:
            # The others wait for this process at the end of their own saving.
            self._trainer.strategy.barrier("phasewatch: a checkpoint failed")
            raise
