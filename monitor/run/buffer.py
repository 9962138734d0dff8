"""The buffer of per-step scalars: filled every step, handed over in one go now and then."""

from __future__ import annotations

import itertools
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np

from phasewatch.monitor.core.columns import Column

MAX_STEPS = 256
MAX_SECONDS = 1.0
"""The buffer is handed over after so many entries or so much time, whichever comes first."""

READ = 512
"""Values that are read in one go."""


@dataclass(slots=True)
class Batch:
    """What training has logged between two hand-overs, not read yet.

    Attributes:
        entries: Step, epoch, Unix seconds and the names of the scalars, one entry a call.
        values: The scalars of all entries, one after the other: numbers, or 0-dim CPU tensors.
    """

    entries: list[tuple[int, int | None, float, tuple[str, ...]]]
    values: list[Any]

    @property
    def size(self) -> int:
        """Points in it."""
        return len(self.values)

    def columns(self, breathe: Callable[[], None] = lambda: None) -> dict[str, Column]:
        """Read the values: one column a stream, in the order in which streams appear.

        Args:
            breathe: Called every now and then, so that a thread may let others go on.
        """
        entries = self.entries
        numbers: list[float] = []
        for begin in range(0, len(self.values), READ):
            numbers += _floats(self.values[begin : begin + READ])
            breathe()
        begins = list(itertools.accumulate((len(entry[3]) for entry in entries), initial=0))
        columns: dict[str, Column] = {}
        for names, rows in self._groups():
            steps, epochs, timestamps, _ = map(list, zip(*(entries[r] for r in rows), strict=True))
            starts = [begins[row] for row in rows]
            for index, name in enumerate(names):
                breathe()
                values = [numbers[start + index] for start in starts]
                if (column := columns.get(name)) is None:
                    columns[name] = Column(steps[:], values, epochs[:], timestamps[:])
                    continue
                column.steps += steps
                column.values += values
                column.epochs += epochs
                column.timestamps += timestamps
        return columns

    def _groups(self) -> Iterable[tuple[tuple[str, ...], Sequence[int]]]:
        """Calls with the same names together; in runs where that would mix up a stream's order."""
        groups: dict[tuple[str, ...], list[int]] = {}
        for row, entry in enumerate(self.entries):
            groups.setdefault(entry[3], []).append(row)
        if sum(map(len, groups)) == len(set().union(*groups)):
            return groups.items()
        return (
            (names, list(run))
            for names, run in itertools.groupby(
                range(len(self.entries)), key=lambda row: self.entries[row][3]
            )
        )


_NUMBERS: frozenset[Any] = frozenset({float, int, bool})


def _floats(values: list[Any]) -> list[float]:
    """Floats of numbers and 0-dim CPU tensors; what is neither becomes NaN, counted later on."""
    try:
        return [float(v if v.__class__ in _NUMBERS else v.item()) for v in values]
    except (AttributeError, TypeError, ValueError, RuntimeError, OverflowError):
        return [_float(value) for value in values]


def _float(value: Any) -> float:
    try:
        return float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return math.nan


class ScalarBuffer:
    """Keeps scalars, tensors among them, without reading them: a read may wait for the device.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._entries: list[tuple[int, int | None, float, tuple[str, ...]]] = []
        self._values: list[Any] = []
        self._names: tuple[str, ...] = ()
        self._taken_at = clock()
        self._latest: tuple[int, int | None, float, tuple[str, ...]] | None = None

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def latest(self) -> tuple[int, int | None, float, tuple[str, ...]] | None:
        """Step, epoch, Unix seconds and names of the latest entry that was taken."""
        return self._latest

    def append(self, step: int, scalars: Mapping[str, Any], epoch: int | None) -> bool:
        """Keep one step's scalars; the mapping may be used again.

        Args:
            step: Optimizer steps completed.
            scalars: Numbers or 0-dim tensors, by name.
            epoch: Epoch, if known.

        Returns:
            Whether it is time to hand them over.
        """
        names = tuple(scalars)
        if names == self._names:
            names = self._names  # one tuple for all steps
        else:
            self._names = names
        self._values.extend(scalars.values())
        entries = self._entries
        entries.append((step, epoch, time.time(), names))
        return len(entries) >= MAX_STEPS or self._clock() - self._taken_at >= MAX_SECONDS

    def clear(self) -> None:
        """Forget what is in it."""
        self._entries, self._values = [], []

    def take(self) -> Batch | None:
        """Empty the buffer, on the training thread; None if there is nothing in it.

        Tensors of an accelerator come over in one transfer, and what may run a user's code is read
        here; plain numbers and CPU tensors are left to be read by whoever asks for the columns.
        """
        self._taken_at = self._clock()
        if not self._entries:
            return None
        self._latest = self._entries[-1]
        batch = Batch(self._entries, self._values)
        self._entries, self._values = [], []
        kinds = set(map(type, batch.values))
        if not kinds <= _NUMBERS and not _is_readable_anywhere(batch.values, kinds):
            from phasewatch.monitor.isolation.transfer import to_floats  # imports torch

            batch.values = to_floats(batch.values)
        return batch


def _is_readable_anywhere(values: list[Any], kinds: set[type]) -> bool:
    """Whether reading neither runs code that is not ours nor waits for a device."""
    # A program that logs tensors has imported torch.
    plain_tensor = getattr(sys.modules.get("torch"), "Tensor", None)
    for kind in kinds - _NUMBERS:
        if kind is not plain_tensor and not (
            issubclass(kind, np.generic) and kind.__module__ == "numpy"
        ):
            return False
    if plain_tensor not in kinds:
        return True
    if len(kinds) > 1:
        values = [value for value in values if type(value) is plain_tensor]
    return all(map(attrgetter("is_cpu"), values))
