"""What the writer thread executes: rows grouped into few, cheap statements."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from sqlalchemy import insert, select, text, update
from sqlalchemy.engine import Connection, CursorResult

from phasewatch.monitor.core.columns import Column, unit_of
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.transitions import Recipient, Transition
from phasewatch.monitor.store import schema
from phasewatch.monitor.store.codec import (
    OBSERVATION_COLUMNS,
    SCALAR_COLUMNS,
    SCALAR_CONSTANTS,
    encode_column,
    encode_estimate,
    encode_observation,
    encode_transition,
)
from phasewatch.monitor.store.outbox import enter

ROWS_PER_STATEMENT = 128
"""Rows of one INSERT on SQLite: one such statement costs a third of that many single ones."""


@dataclass(frozen=True, slots=True)
class ObservationRow:
    """One observation."""

    run_id: str
    attempt: int
    observation: Observation
    size: ClassVar[int] = 1


@dataclass(frozen=True, slots=True)
class ColumnRow:
    """Many exact values of one stream."""

    run_id: str
    attempt: int
    name: str
    column: Column

    @property
    def size(self) -> int:
        """Rows it makes in the database."""
        return len(self.column.steps)


@dataclass(frozen=True, slots=True)
class TransitionRow:
    """A transition as it stood when it was queued, who is to be told, and the attempt that says it.

    That may be a later one than the attempt that found it, which `transition.attempt` is.
    """

    transition: Transition
    recorded_at: float
    recipients: tuple[Recipient, ...] = ()
    attempt: int = 1
    size: ClassVar[int] = 1


@dataclass(frozen=True, slots=True)
class HoleRow:
    """Rows of one stream that were lost: they did not fit into the queue, or were refused."""

    run_id: str
    attempt: int
    stream: str
    first_step: int
    last_step: int
    num_rows: int
    reason: str
    size: ClassVar[int] = 0


@dataclass(frozen=True, slots=True)
class EndRow:
    """The end of an attempt."""

    run_id: str
    attempt: int
    state: str
    reason: str
    ended_at: float
    size: ClassVar[int] = 1


Row = ObservationRow | ColumnRow | TransitionRow | HoleRow | EndRow
"""What is queued. `size` is how many rows it counts for."""


class RowWriter:
    """Writes rows within the caller's transaction.

    It knows the open runs of this process (to keep their heartbeat, and to enter them again should
    the file be removed) and the numbers of their streams.
    """

    def __init__(self) -> None:
        self._streams: dict[tuple[str, str, str], int] = {}
        self._open: dict[tuple[str, int], dict[str, Any]] = {}
        self._last_step: dict[tuple[str, int], int] = {}
        self._committed_step: dict[tuple[str, int], int] = {}
        self._statements: dict[tuple[tuple[str, ...], int], str] = {}
        self._said: dict[tuple[str, int], list[TransitionRow]] = {}

    @property
    def has_open_runs(self) -> bool:
        """Whether a run of this process has begun and not ended."""
        return bool(self._open)

    def opened(self, attempt: dict[str, Any]) -> None:
        """Remember an attempt that this process has begun."""
        self._open[attempt["run_id"], attempt["attempt"]] = attempt

    def committed(self, rows: Sequence[Row]) -> None:
        """The transaction that wrote these rows has been committed."""
        for row in rows:
            if isinstance(row, EndRow):
                key = (row.run_id, row.attempt)
                for kept in (self._open, self._last_step, self._said):
                    kept.pop(key, None)
            elif isinstance(row, TransitionRow):
                self.remember([row])
        self._committed_step = dict(self._last_step)

    def rolled_back(self) -> None:
        """The transaction is undone: streams it made are gone, steps it saw are not stored."""
        self._streams.clear()
        self._last_step = dict(self._committed_step)

    def remember(self, rows: Sequence[TransitionRow]) -> None:
        """What earlier attempts have said, to be entered again with the open attempts."""
        for row in rows:
            self._said.setdefault((row.transition.run, row.attempt), []).append(row)

    def said(self, run_id: str) -> list[TransitionRow]:
        """What the open attempts of a run have said of transitions, and is committed."""
        return [row for key in [*self._open] if key[0] == run_id for row in self._said.get(key, ())]

    def enter_attempts(self, connection: Connection) -> list[tuple[str, int]]:
        """Enter the open attempts into a new database, and say which they are."""
        if self._open:
            connection.execute(insert(schema.attempts), [*self._open.values()])
        return [*self._open]

    def write(self, connection: Connection, rows: Sequence[Row]) -> None:
        """Write the rows, and the heartbeat of every open attempt."""
        scalars: list[tuple[Any, ...]] = []
        others: list[tuple[Any, ...]] = []
        ends: list[EndRow] = []
        for row in rows:
            if isinstance(row, ColumnRow):
                self._add_column(connection, row, scalars, others)
            elif isinstance(row, ObservationRow):
                self._add_observation(connection, row, others)
            elif isinstance(row, TransitionRow):
                key = enter_transition(connection, row, self._step_now(row))
                enter(connection, row.transition, key, row.recipients, row.recorded_at)
            elif isinstance(row, HoleRow):
                values = dataclasses.asdict(row) | {"noted_at": time.time()}
                connection.execute(insert(schema.holes), values)
            else:
                ends.append(row)
        self._insert(connection, SCALAR_COLUMNS, SCALAR_CONSTANTS, scalars)
        self._insert(connection, OBSERVATION_COLUMNS, {}, others)
        self._beat(connection)
        for end in ends:
            self._end(connection, end)

    def _add_column(
        self,
        connection: Connection,
        row: ColumnRow,
        scalars: list[tuple[Any, ...]],
        others: list[tuple[Any, ...]],
    ) -> None:
        unit = row.column.unit or unit_of(row.name)
        stream = self._stream(connection, row.run_id, row.name, unit)
        finite, odd = encode_column(stream, row.attempt, row.name, row.column)
        scalars.extend(finite)
        others.extend(odd)
        self._saw(row.run_id, row.attempt, max(row.column.steps, default=-1))

    def _add_observation(
        self, connection: Connection, row: ObservationRow, others: list[tuple[Any, ...]]
    ) -> None:
        observation = row.observation
        stream = self._stream(connection, row.run_id, observation.name, observation.unit)
        values = encode_observation(stream, row.attempt, observation)
        self._saw(row.run_id, row.attempt, int(observation.step))
        if observation.detail is None:
            others.append(values)
            return
        statement = insert(schema.observations)
        named = dict(zip(OBSERVATION_COLUMNS, values, strict=True))
        key = _new_key(connection.execute(statement, named))
        body, chain_loss = encode_estimate(observation.detail)
        connection.execute(
            insert(schema.estimates),
            {"observation_id": key, "body": body, "chain_loss": chain_loss},
        )

    def _stream(self, connection: Connection, run_id: str, name: str, unit: str) -> int:
        known = self._streams.get((run_id, name, unit))
        if known is not None:
            return known
        table = schema.streams
        wanted = (table.c.run_id == run_id, table.c.name == name, table.c.unit == unit)
        found = connection.execute(select(table.c.id).where(*wanted)).scalar()
        if found is None:
            found = _new_key(
                connection.execute(insert(table), {"run_id": run_id, "name": name, "unit": unit})
            )
        self._streams[run_id, name, unit] = found
        return int(found)

    def _saw(self, run_id: str, attempt: int, step: int) -> None:
        if step > self._last_step.get((run_id, attempt), -1):
            self._last_step[run_id, attempt] = step

    def _insert(
        self,
        connection: Connection,
        columns: tuple[str, ...],
        constants: Mapping[str, str],
        rows: list[tuple[Any, ...]],
    ) -> None:
        """Insert observations that differ in `columns` and share `constants`."""
        if not rows:
            return
        if connection.dialect.name != "sqlite" or connection.dialect.paramstyle != "qmark":
            shared = {name: text(value) for name, value in constants.items()}
            named = [dict(zip(columns, row, strict=True)) for row in rows]
            connection.execute(insert(schema.observations).values(shared), named)
            return
        for start in range(0, len(rows), ROWS_PER_STATEMENT):
            part = rows[start : start + ROWS_PER_STATEMENT]
            connection.exec_driver_sql(
                self._statement(columns, constants, len(part)),
                tuple(itertools.chain.from_iterable(part)),
            )

    def _statement(
        self, columns: tuple[str, ...], constants: Mapping[str, str], num_rows: int
    ) -> str:
        statement = self._statements.get((columns, num_rows))
        if statement is None:
            names = ",".join((*columns, *constants))
            one = "(" + ",".join(("?",) * len(columns) + (*constants.values(),)) + ")"
            values = ",".join([one] * num_rows)
            # Made of our own names alone; the values are bound.
            statement = f"INSERT INTO {schema.observations.name} ({names}) VALUES {values}"  # noqa: S608
            self._statements[columns, num_rows] = statement
        return statement

    def _beat(self, connection: Connection) -> None:
        now = time.time()
        table = schema.attempts
        for (run_id, attempt), values in [*self._open.items()]:  # a run may begin meanwhile
            values["heartbeat"] = now
            values["last_step"] = self._last_step.get((run_id, attempt), values["last_step"])
            connection.execute(
                update(table)
                .where(table.c.run_id == run_id, table.c.attempt == attempt)
                .values(heartbeat=now, last_step=values["last_step"])
            )

    def _end(self, connection: Connection, end: EndRow) -> None:
        table = schema.attempts
        connection.execute(
            update(table)
            .where(table.c.run_id == end.run_id, table.c.attempt == end.attempt)
            .values(state=end.state, reason=end.reason, ended_at=end.ended_at)
        )

    def _step_now(self, row: TransitionRow) -> int:
        """How far the run had got: a resume from an earlier step undoes what was said here."""
        seen = self._last_step.get((row.transition.run, row.attempt), 0)
        return max(seen, row.transition.detected_step)


def _new_key(result: CursorResult[Any]) -> int:
    key = result.inserted_primary_key
    assert key is not None  # noqa: S101 - a plain insert of one row always has one
    return int(key[0])


def enter_transition(connection: Connection, row: TransitionRow, recorded_step: int) -> int:
    """Enter a state of a transition, without its messages.

    Args:
        connection: The caller's transaction.
        row: The transition as it stands.
        recorded_step: How far the run had got.

    Returns:
        The number of the state.
    """
    transition = row.transition
    values = {
        "id": transition.id,
        "run_id": transition.run,
        "attempt": row.attempt,
        "recorded_step": recorded_step,
        "recorded_at": row.recorded_at,
        "kind": transition.kind.value,
        "status": transition.status.value,
        "onset_step": transition.onset_step,
        "detected_step": transition.detected_step,
        "end_step": transition.end_step,
        "body": encode_transition(transition),
    }
    return _new_key(connection.execute(insert(schema.transitions), values))
