"""Cutting what waits for detection into portions: by steps, and by streams."""

from __future__ import annotations

import itertools
import math
import operator
from bisect import bisect_right
from collections.abc import Iterator, Mapping

from phasewatch.monitor.core.columns import Column

TURN_STEPS = 32
"""Steps of one go, at least: points of a stream cost less together."""

COLUMNS = 16
"""Streams that are passed on in one go."""


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


def some_at_a_time(columns: Mapping[str, Column]) -> Iterator[dict[str, Column]]:
    """The columns, some at a time."""
    items = iter(columns.items())
    while part := dict(itertools.islice(items, COLUMNS)):
        yield part


def _increases(steps: list[int]) -> bool:
    return all(map(operator.le, steps, steps[1:]))
