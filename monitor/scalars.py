"""The buffer of per-step scalars: filled every step, handed over in one go now and then."""

from __future__ import annotations

import itertools
import math
import operator
import sys
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from phasewatch.monitor.types import EstimateStatus, Observation

MAX_STEPS = 256
MAX_SECONDS = 1.0
"""The buffer is handed over after so many entries or so much time, whichever comes first."""


@dataclass(slots=True)
class Column:
    """Values of one stream, in the order in which they were observed."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    epochs: list[int | None] = field(default_factory=list)
    timestamps: list[float] = field(default_factory=list)

    def add(self, step: int, value: float, epoch: int | None, timestamp: float) -> None:
        """Append one value."""
        self.steps.append(step)
        self.values.append(value)
        self.epochs.append(epoch)
        self.timestamps.append(timestamp)


Chunk = dict[str, Column] | Observation
"""What detection takes at once: exact scalars of many streams, or one measured value."""

READ = 512
"""Values that are read without a breath."""

CHUNK = 4096
"""Scalars after which a chunk ends, at the next step."""


def chunked(observations: Iterable[Observation]) -> Iterator[Chunk]:
    """Observations in the order in which they came, as a live run shows them to its detectors.

    What an observable measured took time, and is shown by itself; what training logged took none.
    """
    columns: dict[str, Column] = {}
    size, last_step = 0, 0
    for observation in observations:
        if observation.duration_seconds > 0 or observation.stderr is not None:
            if columns:
                yield columns
                columns, size = {}, 0
            yield observation
            continue
        step = observation.step
        if size >= CHUNK and step > last_step:
            yield columns
            columns, size = {}, 0
        last_step = step
        size += 1
        column = columns.setdefault(observation.name, Column())
        column.add(step, observation.value, observation.epoch, observation.timestamp)
    if columns:
        yield columns


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


TURN_STEPS = 16
"""Steps that stay together, at least: points of a stream cost less together."""


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
            from phasewatch.monitor.observables.norms import to_floats  # imports torch

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
    return all(map(operator.attrgetter("is_cpu"), values))


def split(columns: Mapping[str, Column], num_points: int) -> Iterator[Mapping[str, Column]]:
    """Cut columns between steps into parts of about so many points.

    Columns whose steps decrease somewhere stay in one part: what comes when is not known.
    """
    total = sum(len(column.steps) for column in columns.values())
    num_points = max(num_points, TURN_STEPS * len(columns))
    if total <= 2 * num_points or not all(_increases(c.steps) for c in columns.values()):
        if total:
            yield columns
        return
    longest = max((column.steps for column in columns.values()), key=len)
    stride = max(1, len(longest) * num_points // total)
    begins = dict.fromkeys(columns, 0)
    for last in [*longest[stride - 1 : -1 : stride], math.inf]:
        part = {}
        for name, column in columns.items():
            begin = begins[name]
            end = begins[name] = bisect_right(column.steps, last, begin)
            if begin < end:
                part[name] = Column(
                    column.steps[begin:end],
                    column.values[begin:end],
                    column.epochs[begin:end],
                    column.timestamps[begin:end],
                )
        if part:
            yield part


def _increases(steps: list[int]) -> bool:
    return all(map(operator.le, steps, steps[1:]))


def batches(columns: Mapping[str, Column], num_streams: int) -> Iterator[dict[str, Column]]:
    """The columns, so many at a time."""
    items = iter(columns.items())
    while part := dict(itertools.islice(items, num_streams)):
        yield part


def unit_of(name: str) -> str:
    """Unit of a logged scalar: losses are in nats, anything else is taken as a plain number."""
    return "nats" if "loss" in name.lower() else "1"


def observations_of(
    name: str, column: Column, *, latest_only: bool = False
) -> Iterator[Observation]:
    """The values of a column as observations."""
    begin = len(column.steps) - 1 if latest_only else 0
    for index in range(begin, len(column.steps)):
        value = column.values[index]
        finite = math.isfinite(value)
        yield Observation(
            name=name,
            step=column.steps[index],
            epoch=column.epochs[index],
            value=value,
            unit=unit_of(name),
            timestamp=column.timestamps[index],
            status=EstimateStatus.OK if finite else EstimateStatus.DIVERGED,
            reason="" if finite else f"{name} is {value}",
        )
