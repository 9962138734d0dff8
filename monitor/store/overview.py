"""What a live page asks of all runs at once: what has changed, and what became of the alerts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import func, select

from phasewatch.monitor.store import schema
from phasewatch.monitor.store.database import Database
from phasewatch.monitor.store.lineage import lineage, within

CLOCK_POINTS = 1000
"""Points between which the time of a step is a straight line."""


def transition_marks(database: Database) -> dict[str, int]:
    """By run, a number that grows whenever a transition of it is entered or changes."""
    table = schema.transitions
    with database.reading() as connection:
        rows = connection.execute(
            select(table.c.run_id, func.max(table.c.seq)).group_by(table.c.run_id)
        )
        return {run: int(mark) for run, mark in rows}


def deliveries(database: Database) -> dict[str, dict[str, int]]:
    """By run, how many of its messages wait, were sent, or were dropped."""
    table = schema.outbox
    counted = select(table.c.run_id, table.c.delivery, func.count())
    found: dict[str, dict[str, int]] = {}
    with database.reading() as connection:
        for run, delivery, number in connection.execute(
            counted.group_by(table.c.run_id, table.c.delivery)
        ):
            found.setdefault(run, {})[delivery] = int(number)
    return found


def clock(
    database: Database, run_id: str, last_step: int | None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Steps of a run, increasing, and when they were, in Unix seconds.

    Args:
        database: Where the run is stored.
        run_id: Identity of the run.
        last_step: The last step of it; None before the first.
    """
    table, streams = schema.observations, schema.streams
    apart = max(1, (last_step or 0) // CLOCK_POINTS)
    with database.reading() as connection:
        spans = lineage(connection, run_id)
        found: list[tuple[int, float]] = []
        for run in {span.run_id for span in spans}:
            seen = (
                select(table.c.step, func.min(table.c.timestamp))
                .join(streams, streams.c.id == table.c.stream_id)
                .where(streams.c.run_id == run, within(table, "step", spans, run))
                .where(table.c.timestamp > 0)
                .group_by(table.c.step)
                .order_by(table.c.step)
            )
            sparse = connection.execute(seen.where(table.c.step % apart == 0)).all()
            found += [(step, at) for step, at in sparse or connection.execute(seen).all()]
    found.sort()
    steps, times = zip(*found, strict=True) if found else ((), ())
    return np.array(steps, dtype=np.int64), np.array(times, dtype=np.float64)
