"""The buffer of per-step scalars: filled every step, emptied in one transfer now and then."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any

from phasewatch.monitor.core.columns import Column

MAX_STEPS = 256
MAX_SECONDS = 1.0
"""The buffer is drained after so many entries or so much time, whichever comes first."""


class ScalarBuffer:
    """Keeps scalars, tensors among them, without reading them: a read may wait for the device.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._entries: list[tuple[int, int | None, float, Mapping[str, Any]]] = []
        self._drained_at = clock()

    def __len__(self) -> int:
        return len(self._entries)

    def append(self, step: int, scalars: Mapping[str, Any], epoch: int | None) -> bool:
        """Keep one step's scalars.

        Args:
            step: Optimizer steps completed.
            scalars: Numbers or 0-dim tensors, by name.
            epoch: Epoch, if known.

        Returns:
            Whether it is time to drain.
        """
        self._entries.append((step, epoch, time.time(), scalars))
        return len(self._entries) >= MAX_STEPS or self._clock() - self._drained_at >= MAX_SECONDS

    def drain(self) -> dict[str, Column]:
        """Empty the buffer: one column a stream, tensors read in one transfer a device."""
        entries, self._entries = self._entries, []
        self._drained_at = self._clock()
        if not entries:
            return {}
        from phasewatch.monitor.isolation.transfer import to_floats  # imports torch

        numbers = to_floats([value for *_, s in entries for value in s.values()])
        columns: dict[str, Column] = {}
        begin = 0
        # Steps that logged the same names, as nearly all do, become columns in one cut.
        for names, group in itertools.groupby(entries, key=lambda entry: tuple(entry[3])):
            steps, epochs, timestamps, _ = map(list, zip(*group, strict=True))
            end = begin + len(steps) * len(names)
            for index, name in enumerate(names):
                column = columns.setdefault(name, Column())
                column.steps += steps
                column.values += numbers[begin + index : end : len(names)]
                column.epochs += epochs
                column.timestamps += timestamps
            begin = end
        return columns
