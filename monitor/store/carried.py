"""What a checkpoint carries of the history, because the store does not hold it yet.

Rows that wait for a locked or full store when a checkpoint's state is handed out travel in that
state, as plain containers. A resume enters those that the store has not got meanwhile. What was
entered of each stream is counted in the state too: what is missing then is a hole, and marked.
"""

from __future__ import annotations

import base64
import dataclasses
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from sqlalchemy import func, insert, or_, select
from sqlalchemy.engine import Connection

from phasewatch.monitor.core.columns import Column
from phasewatch.monitor.core.estimates import EstimateStatus, Observation
from phasewatch.monitor.core.transitions import Recipient
from phasewatch.monitor.store import schema
from phasewatch.monitor.store.codec import (
    decode_estimate,
    decode_transition,
    encode_estimate,
    encode_transition,
)
from phasewatch.monitor.store.lineage import Span, holes_within, lineage, within
from phasewatch.monitor.store.rows import ColumnRow, ObservationRow, Row, RowWriter, TransitionRow

MAX_VALUES = 100_000
"""Values carried at most: as many as the store's queue holds. Transitions always are."""

MAX_CHAIN_BYTES = 8 << 20
"""Bytes of chain losses carried at most; an estimate beyond goes without its traces."""

Entered = dict[str, list[int]]
"""By stream: how many rows were handed to the store, and the last of their steps."""


def encode_rows(rows: Iterable[Row], run_id: str) -> tuple[list[dict[str, Any]], int]:
    """Rows of a run as plain containers, and how many values did not fit in."""
    kept: list[dict[str, Any]] = []
    room, chain_room, num_left = MAX_VALUES, MAX_CHAIN_BYTES, 0
    for row in rows:
        if isinstance(row, TransitionRow):
            if row.transition.run == run_id:
                kept.append(_transition_record(row))
            continue
        if not isinstance(row, (ColumnRow, ObservationRow)) or row.run_id != run_id:
            continue
        if row.size > room:
            num_left += row.size
            continue
        room -= row.size
        if isinstance(row, ColumnRow):
            columns = {name: list(getattr(row.column, name)) for name in _COLUMNS}
            own = {"attempt": row.attempt, "name": row.name, "unit": row.column.unit}
            kept.append({"kind": "column", **own, **columns})
        else:
            record = _observation_record(row, chain_room)
            chain_room -= len(record.get("chains", ""))
            kept.append(record)
    return kept, num_left


_COLUMNS = ("steps", "values", "epochs", "timestamps")
_PLAIN = ("name", "step", "value", "unit", "stderr", "epoch", "timestamp", "duration_seconds")


def _transition_record(row: TransitionRow) -> dict[str, Any]:
    return {
        "kind": "transition",
        "attempt": row.attempt,
        "body": encode_transition(row.transition),
        "recorded_at": row.recorded_at,
        "recipients": [dataclasses.asdict(recipient) for recipient in row.recipients],
    }


def _observation_record(row: ObservationRow, chain_room: int) -> dict[str, Any]:
    observation = row.observation
    record: dict[str, Any] = {"kind": "observation", "attempt": row.attempt}
    record |= {name: getattr(observation, name) for name in _PLAIN}
    record |= {"status": observation.status.value, "reason": observation.reason}
    if observation.detail is not None:
        detail = observation.detail
        if detail.chain_loss.nbytes * 4 // 3 > chain_room:
            detail = dataclasses.replace(detail, chain_loss=np.empty((0, 0)))
        body, chains = encode_estimate(detail)
        record |= {"estimate": body, "chains": base64.b64encode(chains).decode()}
    return record


def decode_rows(records: Sequence[Mapping[str, Any]], run_id: str) -> list[Row]:
    """The inverse of `encode_rows`."""
    return [_row(record, run_id) for record in records]


def _row(record: Mapping[str, Any], run_id: str) -> Row:
    attempt = int(record["attempt"])
    if record["kind"] == "column":
        steps, values, epochs, timestamps = (list(record[name]) for name in _COLUMNS)
        column = Column(steps, values, epochs, timestamps, str(record["unit"]))
        return ColumnRow(run_id, attempt, str(record["name"]), column)
    if record["kind"] == "transition":
        recipients = tuple(Recipient(**recipient) for recipient in record["recipients"])
        transition = decode_transition(record["body"])
        return TransitionRow(transition, float(record["recorded_at"]), recipients, attempt)
    detail = None
    if "estimate" in record:
        detail = decode_estimate(record["estimate"], base64.b64decode(record["chains"]))
    observation = Observation(
        **{name: record[name] for name in _PLAIN},
        status=EstimateStatus(record["status"]),
        reason=str(record["reason"]),
        detail=detail,
    )
    return ObservationRow(run_id, attempt, observation)


def enter(connection: Connection, writer: RowWriter, rows: Sequence[Row]) -> int:
    """Enter what the store has not got meanwhile, and say how many rows that were.

    Args:
        connection: The caller's transaction.
        writer: Writes rows.
        rows: What a checkpoint held.
    """
    held: dict[tuple[str, int, str], Counter[int]] = {}
    missing: list[Row] = []
    for row in rows:
        if isinstance(row, TransitionRow):
            if not _has_transition(connection, row):
                missing.append(row)
            continue
        if not isinstance(row, (ColumnRow, ObservationRow)):
            continue
        name = row.name if isinstance(row, ColumnRow) else row.observation.name
        key = (row.run_id, row.attempt, name)
        if key not in held:
            held[key] = _steps_held(connection, *key)
        counted = held[key]
        if isinstance(row, ObservationRow):
            if counted[row.observation.step] > 0:
                counted[row.observation.step] -= 1
            else:
                missing.append(row)
            continue
        lacking = Column()
        for step, value, epoch, at in zip(
            row.column.steps,
            row.column.values,
            row.column.epochs,
            row.column.timestamps,
            strict=True,
        ):
            if counted[step] > 0:
                counted[step] -= 1
            else:
                lacking.add(step, value, epoch, at)
        if lacking.steps:
            missing.append(dataclasses.replace(row, column=lacking))
    writer.write(connection, missing)
    return sum(row.size for row in missing)


def _steps_held(connection: Connection, run_id: str, attempt: int, name: str) -> Counter[int]:
    table, streams = schema.observations, schema.streams
    query = (
        select(table.c.step)
        .join(streams, streams.c.id == table.c.stream_id)
        .where(streams.c.run_id == run_id, streams.c.name == name, table.c.attempt == attempt)
    )
    return Counter(connection.execute(query).scalars())


def _has_transition(connection: Connection, row: TransitionRow) -> bool:
    table, transition = schema.transitions, row.transition
    query = select(table.c.seq).where(
        table.c.id == transition.id,
        table.c.run_id == transition.run,
        table.c.status == transition.status.value,
        table.c.recorded_at == row.recorded_at,
    )
    return connection.execute(query.limit(1)).first() is not None


def note_holes(
    connection: Connection, run_id: str, attempt: int, step: int, entered: Entered
) -> int:
    """Mark what the store should hold of a history up to `step`, and does not.

    Args:
        connection: In a transaction that may write.
        run_id: The run that has resumed.
        attempt: The attempt that has resumed.
        step: The step it resumed from.
        entered: What was handed to the store until then, from the checkpoint.

    Returns:
        Rows missing.
    """
    spans = [
        dataclasses.replace(span, last_step=step if span.last_step is None else span.last_step)
        for span in lineage(connection, run_id, attempt)
    ]
    num_missing = 0
    for name, (count, last_step) in entered.items():
        known = _num_noted(connection, name, spans)
        steps = _steps_of(connection, name, spans)
        lacking = count - len(steps) - known
        if lacking <= 0:
            continue
        num_missing += lacking
        reason = _reason(connection, name, spans)
        for first, last, number in _gaps(np.sort(steps), min(last_step, step), lacking):
            row = {"run_id": run_id, "attempt": attempt, "stream": name}
            row |= {"first_step": first, "last_step": last, "num_rows": number}
            row |= {"reason": reason, "noted_at": time.time()}
            connection.execute(insert(schema.holes), row)
    return num_missing


def _num_noted(connection: Connection, name: str, spans: Sequence[Span]) -> int:
    table = schema.holes
    own = or_(*map(holes_within, spans))
    query = select(func.coalesce(func.sum(table.c.num_rows), 0))
    return int(connection.execute(query.where(table.c.stream == name, own)).scalar_one())


def _reason(connection: Connection, name: str, spans: Sequence[Span]) -> str:
    """Why rows are missing: as a hole says that reaches beyond the checkpoint, else a kill."""
    table = schema.holes
    for span in spans:
        own = (table.c.run_id == span.run_id) & (table.c.attempt == span.attempt)
        query = select(table.c.reason).where(
            own, table.c.stream == name, table.c.last_step > span.last_step
        )
        if (reason := connection.execute(query.limit(1)).scalar()) is not None:
            return str(reason)
    return "killed before they were written"


def _steps_of(connection: Connection, name: str, spans: Sequence[Span]) -> np.ndarray[Any, Any]:
    table, streams = schema.observations, schema.streams
    found: list[int] = []
    for run in dict.fromkeys(span.run_id for span in spans):
        numbers = select(streams.c.id).where(streams.c.run_id == run, streams.c.name == name)
        for number in [*connection.execute(numbers).scalars()]:
            query = select(table.c.step).where(
                table.c.stream_id == number, within(table, "step", spans, run)
            )
            found += connection.execute(query).scalars()
    return np.array(found, dtype=np.int64)


def _gaps(steps: np.ndarray[Any, Any], last_step: int, lacking: int) -> list[tuple[int, int, int]]:
    """Where so many rows may be missing: after the last that is there, else the widest gaps."""
    if not len(steps):
        return [(-1, last_step, lacking)]
    if steps[-1] < last_step:
        return [(int(steps[-1]), last_step, lacking)]
    strides = np.diff(steps)
    usual = int(np.median(strides)) if len(strides) else 1
    found = []
    for index in np.argsort(-strides, kind="stable"):
        missing = int(strides[index] // max(usual, 1)) - 1
        if lacking <= 0 or missing <= 0:
            break
        number = min(missing, lacking)
        found.append((int(steps[index]), int(steps[index + 1]) - 1, number))
        lacking -= number
    if lacking > 0:
        found.append((int(steps[0]) - 1, last_step, lacking))
    return found
