"""Columns of numbers: what streams carry, many points at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from phasewatch.monitor.core.estimates import EstimateStatus, Observation
from phasewatch.monitor.core.meaning import guess


@dataclass(slots=True)
class Column:
    """Values of one stream, in the order in which they were observed.

    Their unit is that of the name where it is empty.
    """

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    epochs: list[int | None] = field(default_factory=list)
    timestamps: list[float] = field(default_factory=list)
    unit: str = ""

    def add(self, step: int, value: float, epoch: int | None, timestamp: float) -> None:
        """Append one value.

        Args:
            step: Optimizer steps completed.
            value: The value.
            epoch: Epoch, if known.
            timestamp: Unix time in seconds.
        """
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


def unit_of(name: str) -> str:
    """Unit of a logged scalar, as its name says: a loss is in nats, most others plain numbers."""
    return guess(name).unit


def observations_of(
    name: str, column: Column, *, latest_only: bool = False
) -> Iterator[Observation]:
    """The values of a column as observations.

    Args:
        name: Name of the stream.
        column: Its values.
        latest_only: Give the last value alone.
    """
    begin = len(column.steps) - 1 if latest_only else 0
    for index in range(begin, len(column.steps)):
        value = column.values[index]
        finite = math.isfinite(value)
        yield Observation(
            name=name,
            step=column.steps[index],
            epoch=column.epochs[index],
            value=value,
            unit=column.unit or unit_of(name),
            timestamp=column.timestamps[index],
            status=EstimateStatus.OK if finite else EstimateStatus.DIVERGED,
            reason="" if finite else f"{name} is {value}",
        )
