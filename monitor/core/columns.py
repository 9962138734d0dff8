"""The buffer of per-step scalars: filled every step, emptied in one transfer now and then."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from phasewatch.monitor.core.types import EstimateStatus, Observation

MAX_STEPS = 256
MAX_SECONDS = 1.0
"""The buffer is drained after so many entries or so much time, whichever comes first."""


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
        from phasewatch.monitor.observables.weights.norms import to_floats  # imports torch

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
