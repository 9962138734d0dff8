"""Checkpoints around a suspicion: a `Keeper` decides, and the training loop's own means write."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from phasewatch.monitor.isolation.guard import generators_kept
from phasewatch.monitor.run.keeper import Keeper


class Checkpoints:
    """The checkpoints of one run, between the loop that writes them and the record of transitions.

    Args:
        keeper: Says when one is wanted, and which are kept.
        spending: Counts the time inside as overhead.
        enter: Enters into a transition's record which checkpoints are kept for it; given its
            identity and the paths.

    Attributes:
        keeper: As given.
    """

    def __init__(
        self,
        keeper: Keeper,
        spending: Callable[[], AbstractContextManager[None]],
        enter: Callable[[str, tuple[str, ...]], None],
    ) -> None:
        self.keeper = keeper
        self._spending = spending
        self._enter = enter

    def place(self, step: int) -> Path | None:
        """Where one is to be written at `step`; None where none is. Never raises."""
        if not self.keeper.due(step):
            return None
        with self._spending():
            place = self.keeper.wants(step)
            self.enter_changed()
        return place

    def write(self, place: Path, save: Callable[[Path], object]) -> None:
        """Have one written, and keep account of it. A failure is counted and said.

        Args:
            place: As `place` gave it.
            save: Writes it.
        """
        with self._spending():
            begin = time.perf_counter()
            try:
                with generators_kept():
                    save(place)
            except Exception as error:
                self.keeper.failed(place, error)
            else:
                self.keeper.wrote(place, time.perf_counter() - begin)
            self.enter_changed()

    def enter_changed(self) -> None:
        """Enter into the record of transitions which checkpoints are kept for them now."""
        changed, self.keeper.changed = self.keeper.changed, set()
        for transition in sorted(changed):
            self._enter(transition, self.keeper.paths_of(transition))
