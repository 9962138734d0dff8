"""Which attempts make up the history of one fit, and when a resume is a branch of its own.

Every fit is an attempt of a run, and knows what it resumed: an attempt and a step. Its history is
its own rows, those of its parent up to that step, and so on. What other fits resumed from the same
checkpoint is never in it.

A resume goes on with its run. It is a branch, a run of its own that shares the history up to its
checkpoint, where another fit has the same claim: one that still runs in another process, or a
later one that has come to its end. A later fit that died or failed is done again, not branched.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Table, and_, false, or_, select
from sqlalchemy.engine import Connection, Row

from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.processes import HEARTBEAT_SECONDS, ProcessIdentity
from phasewatch.monitor.store import schema
from phasewatch.monitor.store.database import Database

BEAT_SLACK_SECONDS = 2.0
"""How late a heartbeat may be."""

ENDED_WELL = (RunState.FINISHED.value, RunState.STOPPED.value)


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a history: what one attempt observed, up to a step.

    Attributes:
        run_id: The run.
        attempt: Its attempt.
        last_step: The last step that counts; None if all do.
    """

    run_id: str
    attempt: int
    last_step: int | None


def lineage(connection: Connection, run_id: str, attempt: int | None = None) -> list[Span]:
    """The spans that make up a history, the latest first.

    Args:
        connection: Open, to read.
        run_id: The run.
        attempt: The attempt whose history it is; None is the latest.
    """
    rows = _attempts(connection, run_id)
    if not rows:
        return []
    number = rows[-1].attempt if attempt is None else attempt
    spans: list[Span] = []
    cut: int | None = None
    while (row := next((r for r in rows if r.attempt == number), None)) is not None:
        span = Span(row.run_id, row.attempt, cut)
        if span in spans:  # a store that somebody has edited
            break
        spans.append(span)
        if row.resumed_step is not None:
            cut = row.resumed_step if cut is None else min(cut, row.resumed_step)
        if row.parent_run is not None and row.parent_run != row.run_id:
            rows = _attempts(connection, row.parent_run)
            number = row.parent_attempt
        elif row.parent_attempt is not None:
            number = row.parent_attempt
        else:
            earlier = [r.attempt for r in rows if r.attempt < number]
            number = max(earlier, default=-1)
    return spans


def _attempts(connection: Connection, run_id: str) -> list[Row[Any]]:
    table = schema.attempts
    columns = ("run_id", "attempt", "resumed_step", "parent_run", "parent_attempt")
    query = select(*(table.c[name] for name in columns)).where(table.c.run_id == run_id)
    return [*connection.execute(query.order_by(table.c.attempt))]


def within(table: Table, step: str, spans: Sequence[Span], run_id: str) -> ColumnElement[bool]:
    """The condition that a row of one run lies in a history.

    Args:
        table: Has a column `attempt`.
        step: The column that is cut.
        spans: The history.
        run_id: The run whose rows they are.
    """
    parts = [
        table.c.attempt == span.attempt
        if span.last_step is None
        else and_(table.c.attempt == span.attempt, table.c[step] <= span.last_step)
        for span in spans
        if span.run_id == run_id
    ]
    return or_(false(), *parts)


def holes_within(span: Span) -> ColumnElement[bool]:
    """The condition that a hole lies in a part of a history.

    One that reaches beyond the checkpoint of a resume is not counted: the resume has compared what
    its checkpoint says with what is there, and marked anew what lacks up to it.
    """
    table = schema.holes
    own = and_(table.c.run_id == span.run_id, table.c.attempt == span.attempt)
    return own if span.last_step is None else and_(own, table.c.last_step <= span.last_step)


def rivals(connection: Connection, run_id: str, attempt: int) -> list[Row[Any]]:
    """Attempts that may go on from the same checkpoint of `attempt`: it itself and later ones.

    Args:
        connection: A connection.
        run_id: Identity of the run.
        attempt: The attempt that made the checkpoint.
    """
    table = schema.attempts
    query = select(table).where(table.c.run_id == run_id, table.c.attempt >= attempt)
    return [*connection.execute(query.order_by(table.c.attempt))]


def has_rival(database: Database, run_id: str, attempt: int) -> bool:
    """Whether a resume of a checkpoint of `attempt` is a branch.

    May wait for a heartbeat, a dozen seconds at most, where a process of another machine was heard
    of only just now: it may have been moved here, and may live on.

    Args:
        database: The store's database.
        run_id: Identity of the run.
        attempt: The attempt that made the checkpoint.
    """
    while True:
        with database.reading() as connection:
            rows = rivals(connection, run_id, attempt)
        now = time.time()
        if any(row.attempt > attempt and row.state in ENDED_WELL for row in rows):
            return True
        running = [row for row in rows if row.state == RunState.RUNNING.value]
        here = ProcessIdentity.current()
        near = [row for row in running if row.machine == here.machine and row.process_start]
        if any(
            row.pid != here.pid and _identity(row).is_alive(heartbeat=0, now=now) for row in near
        ):
            return True
        far = [row for row in running if row not in near]
        fresh = [row for row in far if now - row.heartbeat < HEARTBEAT_SECONDS + BEAT_SLACK_SECONDS]
        if not fresh:
            return False
        seen = {row.attempt: row.heartbeat for row in fresh}
        time.sleep(0.5)
        with database.reading() as connection:
            again = rivals(connection, run_id, attempt)
        if any(row.heartbeat > seen.get(row.attempt, row.heartbeat) for row in again):
            return True


def _identity(row: Row[Any]) -> ProcessIdentity:
    return ProcessIdentity(host=row.host, machine=row.machine, pid=row.pid, start=row.process_start)


def free_name(connection: Connection, wanted: str) -> str:
    """`wanted`, or `wanted/2` and so on where a run has that name."""
    table = schema.attempts
    number, name = 1, wanted
    while connection.execute(select(table.c.run_id).where(table.c.name == name).limit(1)).first():
        number += 1
        name = f"{wanted}/{number}"
    return name
