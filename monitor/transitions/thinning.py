"""Fewer points for detection, where a machine is too small for all of them. All are stored.

Detection keeps to a share of a processor. Where that does not do, each stream is looked at once in
a stretch of steps. A point that lies outside what its stream has shown of late is looked at
wherever it comes, so that falls, spikes and values that are no numbers are seen at their step.

What is kept follows from the level and from the numbers alone, not from the clock: the levels are
stored as a stream, `detection_thinning`, and a replay keeps the same points.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phasewatch.monitor.core.columns import Chunk, Column
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.meaning import THINNING, Meanings, Role

LEADING = 8
"""Streams that are thinned last: those that came first, which hold half of a run's false alarms."""

LEAD_LEVELS = 6
"""Levels by which they lag behind the others."""

BLOCK = 64
"""Points kept at even distance that make up a block; a stream's range is that of two blocks."""

MAX_LEVEL = 24

ALLOWANCE_SECONDS = 1.0
"""Processor time that detection may take beyond its share, once: short runs are never thinned."""

RECOVERY_SECONDS = 30.0
"""A level is left only after so long."""

ROOM = 0.4
"""Of the share, what a level must have been content with before the next finer one is tried."""


def width(rank: int, level: int) -> int:
    """Steps of which detection sees one point, for the stream that was the `rank`-th to come."""
    return 1 << (level if rank >= LEADING else max(0, level - LEAD_LEVELS))


def next_level(level: int, num_streams: int) -> int:
    """The next coarser level: the first that changes anything."""
    return max(level, 0 if num_streams > LEADING else LEAD_LEVELS) + 1


def previous_level(level: int, num_streams: int) -> int:
    """The next finer level."""
    return level - 1 if num_streams > LEADING or level > LEAD_LEVELS + 1 else 0


@dataclass(slots=True)
class _Range:
    """What a stream has shown in a block of steps, and in the one before it."""

    last_step: int | None = None
    block: int = -1
    low: float = math.inf
    high: float = -math.inf
    low_before: float = math.inf
    high_before: float = -math.inf

    def enter(self, block: int) -> None:
        """Go on to a later block."""
        if block == self.block:
            return
        if self.low <= self.high:
            self.low_before, self.high_before = self.low, self.high
        self.block, self.low, self.high = block, math.inf, -math.inf

    def bounds(self) -> tuple[float, float]:
        """Values outside are striking: farther off than the range is wide."""
        low, high = min(self.low, self.low_before), max(self.high, self.high_before)
        return low - (high - low), high + (high - low)

    def take(self, value: float) -> None:
        """Widen the range."""
        if math.isfinite(value):
            self.low, self.high = min(self.low, value), max(self.high, value)


@dataclass(slots=True)
class Thinner:
    """Keeps the points that detection is to see.

    Args:
        meanings: What the streams mean.

    Attributes:
        num_thinned: Points left out so far.
    """

    meanings: Meanings = field(default_factory=Meanings)
    num_thinned: int = 0
    _ranks: dict[str, int] = field(default_factory=dict)
    _ranges: dict[str, _Range] = field(default_factory=dict)
    _changes: list[tuple[int, int]] = field(default_factory=list)  # after which step, which level

    @property
    def level(self) -> int:
        """The level of points to come; 0 keeps everything."""
        return self._changes[-1][1] if self._changes else 0

    @property
    def num_streams(self) -> int:
        """Streams seen so far that may be thinned."""
        return len(self._ranks)

    def change(self, level: int, after: int) -> None:
        """Use another level for the steps after a step."""
        while self._changes and self._changes[-1][0] >= after:
            self._changes.pop()
        self._changes = [*self._changes[-BLOCK:], (after, level)]

    def _may_be_watched(self, name: str) -> bool:
        return self.meanings.of(name).role is not Role.DIAGNOSTIC

    def thin(self, columns: Mapping[str, Column]) -> Mapping[str, Column]:
        """What detection sees of these columns; in them, steps do not decrease."""
        for name in columns:
            if name not in self._ranks and self._may_be_watched(name):
                self._ranks[name] = len(self._ranks)
        if not any(level for _, level in self._changes):
            return columns
        kept = {}
        for name, column in columns.items():
            if name in self._ranks:
                column = self._thin(name, self._ranks[name], column)
            if column.steps:
                kept[name] = column
        return kept

    def _thin(self, name: str, rank: int, column: Column) -> Column:
        steps = column.steps
        cuts = [0, *(bisect_right(steps, after) for after, _ in self._changes), len(steps)]
        levels = [0, *(level for _, level in self._changes)]
        chosen: list[int] = []
        for (begin, end), level in zip(pairwise(cuts), levels, strict=True):
            size = width(rank, level)
            if begin >= end:
                continue
            if size == 1:
                self._ranges.pop(name, None)
                chosen += range(begin, end)
            else:
                known = self._ranges.setdefault(name, _Range())
                chosen += _choose(known, column, begin, end, size)
        self.num_thinned += len(steps) - len(chosen)
        if len(chosen) == len(steps):
            return column
        return Column(
            [steps[i] for i in chosen],
            [column.values[i] for i in chosen],
            [column.epochs[i] for i in chosen],
            [column.timestamps[i] for i in chosen],
        )

    def state_dict(self) -> dict[str, Any]:
        """Levels, and what streams have shown, as plain containers."""
        return {
            "num_thinned": self.num_thinned,
            "streams": list(self._ranks),
            "changes": [list(change) for change in self._changes],
            "ranges": {
                name: [r.last_step, r.block, r.low, r.high, r.low_before, r.high_before]
                for name, r in self._ranges.items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.num_thinned = int(state["num_thinned"])
        self._ranks = {name: rank for rank, name in enumerate(state["streams"])}
        self._changes = [(int(after), int(level)) for after, level in state["changes"]]
        self._ranges = {name: _Range(*values) for name, values in state["ranges"].items()}


def _choose(known: _Range, column: Column, begin: int, end: int, size: int) -> list[int]:
    """Indices of the points that are kept: the first of each stretch, and striking ones."""
    steps = np.asarray(column.steps[begin:end])
    values = np.asarray(column.values[begin:end], dtype=np.float64)
    stretches = steps // size
    before = -1 if known.last_step is None else known.last_step // size
    regular = np.diff(stretches, prepend=before) != 0
    blocks = stretches // BLOCK
    chosen: list[int] = []
    edges = [0, *(np.flatnonzero(np.diff(blocks)) + 1).tolist(), len(steps)]
    for start, stop in pairwise(edges):
        known.enter(int(blocks[start]))
        chosen += _choose_in_block(known, values[start:stop], regular[start:stop], begin + start)
    last = np.flatnonzero(regular)
    if len(last):
        known.last_step = int(steps[last[-1]])
    return chosen


def _choose_in_block(
    known: _Range, values: NDArray[np.float64], regular: NDArray[np.bool_], offset: int
) -> list[int]:
    """A range only widens within a block: what is inside it at the start stays inside."""
    low, high = known.bounds()
    outside = ~((values >= low) & (values <= high))  # NaN is outside, too
    chosen = []
    for index in np.flatnonzero(outside | regular).tolist():
        value = float(values[index])
        low, high = known.bounds()
        if regular[index] or not low <= value <= high:
            known.take(value)
            chosen.append(offset + index)
    return chosen


def thinned(chunks: Iterable[Chunk], meanings: Meanings | None = None) -> Iterator[Chunk]:
    """What detection saw of the stored values of a run, by the levels stored among them.

    Args:
        chunks: The stored values, in the order in which they came.
        meanings: What the streams mean; None goes by their names.
    """
    thinner = Thinner(meanings or Meanings())
    for chunk in chunks:
        if isinstance(chunk, Observation):
            yield chunk
            continue
        changes = chunk.get(THINNING)
        if changes is not None:
            for step, level in zip(changes.steps, changes.values, strict=True):
                thinner.change(round(level), step)
        kept = thinner.thin({name: c for name, c in chunk.items() if name != THINNING})
        if kept:
            yield dict(kept)


class Pace:
    """Says how coarse detection must look to keep to its share of a processor.

    Args:
        share: Processor time over wall time that detection may take.
        level: The level to begin with.
        clock: Monotonic seconds.
    """

    def __init__(
        self, share: float, level: int = 0, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.level = level
        self.share = share
        self._clock = clock
        self._credit = ALLOWANCE_SECONDS
        self._credit_before = ALLOWANCE_SECONDS
        self._accrued_at = self._changed_at = clock()
        self._spent = 0.0  # at this level

    def spend(self, seconds: float) -> None:
        """Book what detection took."""
        self._credit -= seconds
        self._spent += seconds

    def judge(self, num_streams: int) -> int:
        """The level from now on."""
        now = self._clock()
        earned = self.share * (now - self._accrued_at)
        self._accrued_at = now
        self._credit = min(ALLOWANCE_SECONDS, self._credit + earned)
        level, age = self.level, now - self._changed_at
        if self._credit < 0.0 and self._credit <= self._credit_before:
            level = min(next_level(level, num_streams), MAX_LEVEL)
        elif level and self._has_recovered(age):
            level = previous_level(level, num_streams)
        if level != self.level:
            self.level, self._changed_at, self._spent = level, now, 0.0
        self._credit_before = self._credit
        return level

    def _has_recovered(self, age: float) -> bool:
        """Whether the next finer level, at twice the cost, would do."""
        is_slack = self._spent <= ROOM * self.share * age
        return age >= RECOVERY_SECONDS and self._credit >= 0.0 and is_slack
