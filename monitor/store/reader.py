"""Reading the run history. Rows that a resume has superseded are hidden unless asked for."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import Select, and_, false, func, or_, select, true
from sqlalchemy.engine import Connection, Row

from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.errors import StoreError, did_you_mean
from phasewatch.monitor.core.estimates import EstimateStatus, Observation
from phasewatch.monitor.core.history import History, codes_of
from phasewatch.monitor.core.processes import ProcessIdentity
from phasewatch.monitor.core.transitions import Transition
from phasewatch.monitor.store import schema
from phasewatch.monitor.store.codec import decode_estimate, decode_numbers, decode_transition
from phasewatch.monitor.store.database import Database
from phasewatch.monitor.store.lineage import Span, holes_within, lineage, within

_MIN_PREFIX = 4
"""Letters of an id that may stand for the whole."""

MAX_LISTED = 20
"""Known runs that an error names."""

ROWS_AT_ONCE = 4096
"""Rows fetched together where a whole run is read."""

_STATUSES = {status.value: status for status in EstimateStatus}

_BY_STEP = (
    schema.observations.c.step,
    schema.observations.c.attempt,
    schema.observations.c.id,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """One run, as its latest attempt stands.

    Attributes:
        id: Identity of the run.
        name: Its name.
        attempt: Number of its latest attempt.
        state: Where it stands; INTERRUPTED if it says running and its process is gone.
        started_at: Start of its first attempt, in Unix seconds.
        ended_at: End of its latest attempt; None while it runs, or if it was interrupted.
        last_step: Last step observed; None before the first.
        reason: Why it ended as it did.
        config: The configuration it was started with.
        host: Machine of its latest attempt.
        pid: Process of its latest attempt.
        last_seen: When it last wrote, in Unix seconds.
        branch_of: Id of the run that this one branched off; None if it did not.
        branch_step: Step of the checkpoint from which it branched off.
    """

    id: str
    name: str
    attempt: int
    state: RunState
    started_at: float
    ended_at: float | None
    last_step: int | None
    reason: str
    config: Mapping[str, Any] | None
    host: str
    pid: int
    last_seen: float
    branch_of: str | None = None
    branch_step: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hole:
    """Rows that a fit had observed, and that are not in the store.

    Attributes:
        stream: Name of the stream.
        first_step: What is missing lies after this step,
        last_step: and up to this one.
        num_rows: How many rows are missing.
        reason: Why, as far as is known.
    """

    stream: str
    first_step: int
    last_step: int
    num_rows: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamInfo:
    """One observed stream in short.

    Attributes:
        name: Its name.
        unit: Unit of its values.
        count: Observations that are not superseded.
        last: The latest of them, without its detail.
    """

    name: str
    unit: str
    count: int
    last: Observation


class Reader:
    """Queries on the run history.

    Args:
        database: Where to read.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def runs(self) -> list[RunInfo]:
        """All runs, the latest first."""
        table = schema.attempts
        with self._database.reading() as connection:
            rows = connection.execute(
                select(table).order_by(table.c.started_at, table.c.attempt)
            ).all()
        by_id: dict[str, list[Row[Any]]] = {}
        for row in rows:
            by_id.setdefault(row.run_id, []).append(row)
        latest_first = sorted(by_id.values(), key=lambda group: group[-1].started_at, reverse=True)
        return [_run_info(group) for group in latest_first]

    def run(self, name_or_id: str) -> RunInfo:
        """The run of this id, the latest of this name, or the one whose id or name begins so."""
        runs = self.runs()
        for exact in ("id", "name"):
            for run in runs:
                if getattr(run, exact) == name_or_id:
                    return run
        if len(name_or_id) >= _MIN_PREFIX:
            alike = [run for run in runs if run.id.startswith(name_or_id)]
            if len(alike) == 1:
                return alike[0]
            if alike:
                listed = ", ".join(f"{run.id} ({run.name})" for run in alike[:10])
                raise StoreError(f"{len(alike)} ids begin with {name_or_id!r}: {listed}")
            named = [run for run in runs if run.name.startswith(name_or_id)]
            if len({run.name for run in named}) == 1:
                return named[0]
            if named:
                listed = ", ".join(dict.fromkeys(run.name for run in named[:MAX_LISTED]))
                raise StoreError(
                    f"several names begin with {name_or_id!r}: {listed}; give more of one, or an id"
                )
        names = [*dict.fromkeys(run.name for run in runs)]
        more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
        known = (", ".join(names[:MAX_LISTED]) or "none") + more
        hint = did_you_mean(name_or_id, names)
        raise StoreError(
            f"no run {name_or_id!r} in store {self._database.where}{hint}; known runs: {known}"
        )

    def knows(self, run_id: str) -> bool:
        """Whether any attempt of a run is here."""
        query = select(schema.attempts.c.attempt).where(schema.attempts.c.run_id == run_id)
        with self._database.reading() as connection:
            return connection.execute(query.limit(1)).first() is not None

    def names_alike(self, name: str) -> list[RunInfo]:
        """Runs of one name, the latest first."""
        return [run for run in self.runs() if run.name == name]

    def names(self, run_id: str) -> list[str]:
        """Names of the streams of a run."""
        return sorted(self.units(run_id))

    def units(self, run_id: str) -> dict[str, str]:
        """Unit of each stream of a run, by name."""
        table = schema.streams
        with self._database.reading() as connection:
            runs = _runs_of(lineage(connection, run_id), run_id)
            query = select(table.c.name, table.c.unit).where(table.c.run_id.in_(runs))
            return {row.name: row.unit for row in connection.execute(query.order_by(table.c.id))}

    def streams(self, run_id: str) -> list[StreamInfo]:
        """What was observed, in short."""
        names = self.names(run_id)
        with self._database.reading() as connection:
            spans = lineage(connection, run_id)
            infos = [_stream_info(connection, name, spans) for name in names]
        return [info for info in infos if info is not None]

    def holes(self, run_id: str, attempt: int | None = None) -> list[Hole]:
        """What is known to be missing from a history, by stream and step."""
        table = schema.holes
        found = []
        with self._database.reading() as connection:
            for span in lineage(connection, run_id, attempt):
                query = select(table).where(holes_within(span))
                found += [
                    Hole(
                        stream=row.stream,
                        first_step=row.first_step,
                        last_step=row.last_step,
                        num_rows=row.num_rows,
                        reason=row.reason,
                    )
                    for row in connection.execute(query.order_by(table.c.id))
                ]
        return sorted(found, key=lambda hole: (hole.stream, hole.first_step))

    def history(
        self,
        run_id: str,
        name: str,
        *,
        superseded: bool,
        attempt: int | None = None,
        include_unconverged: bool = False,
        after: int | None = None,
        every: int = 1,
    ) -> History:
        """The values of one stream, each with its error and status.

        Args:
            run_id: Identity of the run.
            name: Name of the stream.
            superseded: Also what a resumed run observed again.
            attempt: As this attempt sees it; None is the latest.
            include_unconverged: Show also the values whose status is not OK.
            after: Only what was observed after this step.
            every: Only steps that are a multiple of this.
        """
        table = schema.observations
        columns = (table.c.step, table.c.value, table.c.stderr, table.c.nonfinite, table.c.status)
        with self._database.reading() as connection:
            spans = _spans(connection, run_id, attempt, superseded=superseded)
            streams = _streams(connection, name, spans)
            query = _of_streams(select(*columns), streams, spans)
            if after is not None:
                query = query.where(table.c.step > after)
            if every > 1:
                query = query.where(table.c.step % every == 0)
            # The driver gives plain tuples; rows of SQLAlchemy would take most of the time.
            rows = connection.execute(query.order_by(*_BY_STEP)).cursor.fetchall()
        if not rows:
            return History.empty(name)
        # Millions of rows: column by column, and only the few odd ones one by one.
        steps, values, stderrs, nonfinite, statuses = zip(*rows, strict=True)
        value_array = np.array(values, dtype=np.float64)  # None becomes NaN
        stderr_array = np.array(stderrs, dtype=np.float64)
        if any(nonfinite):
            for index, code in enumerate(nonfinite):
                if code is None:
                    continue
                value, stderr = decode_numbers(values[index], stderrs[index], code)
                value_array[index] = value
                stderr_array[index] = math.nan if stderr is None else stderr
        return History(
            name,
            streams[-1].unit,
            steps,
            value_array,
            stderr_array,
            codes=codes_of(statuses),
            include_unconverged=include_unconverged,
        )

    def observations(self, run_id: str, name: str, *, superseded: bool) -> list[Observation]:
        """The observations of one stream, each with its detail.

        Args:
            run_id: Identity of the run.
            name: Name of the stream.
            superseded: Also what a resumed run observed again.
        """
        table, details = schema.observations, schema.estimates
        columns = (table, details.c.body, details.c.chain_loss)
        with self._database.reading() as connection:
            spans = _spans(connection, run_id, None, superseded=superseded)
            streams = _streams(connection, name, spans)
            query = _of_streams(select(*columns), streams, spans).outerjoin(
                details, details.c.observation_id == table.c.id
            )
            rows = connection.execute(query.order_by(*_BY_STEP)).all()
        units = {row.id: row.unit for row in streams}
        return [_observation(row, name, units[row.stream_id]) for row in rows]

    def in_order(
        self, run_id: str, step: int | None, attempt: int | None = None
    ) -> Iterator[Observation]:
        """Everything observed in a run, or at one step of it, by step and time.

        Args:
            run_id: Identity of the run.
            step: One step of it; None is all.
            attempt: As this attempt sees it; None is the latest.
        """
        table, streams = schema.observations, schema.streams
        own = ("step", "epoch", "value", "stderr", "nonfinite", "timestamp", "duration_seconds")
        columns = [table.c[name] for name in (*own, "status", "reason")]
        with self._database.reading() as connection:
            spans = lineage(connection, run_id, attempt)
            shown = [
                and_(streams.c.run_id == run, within(table, "step", spans, run))
                for run in _runs_of(spans, run_id)
            ]
            query = (
                select(streams.c.name, streams.c.unit, *columns)
                .join(streams, streams.c.id == table.c.stream_id)
                .where(or_(false(), *shown))
                .where(true() if step is None else table.c.step == step)
                .order_by(table.c.step, table.c.timestamp, table.c.id)
                .execution_options(yield_per=ROWS_AT_ONCE)
            )
            # Millions of rows: a tuple is unpacked in a fraction of the time of `_observation`.
            for (
                name,
                unit,
                at,
                epoch,
                value,
                stderr,
                code,
                written,
                seconds,
                status,
                reason,
            ) in connection.execute(query):
                number, error = decode_numbers(value, stderr, code)
                yield Observation(
                    name=name,
                    step=at,
                    value=number,
                    unit=unit,
                    stderr=error,
                    epoch=epoch,
                    timestamp=written,
                    duration_seconds=seconds,
                    status=_STATUSES[status],
                    reason=reason or "",
                )

    def transitions(
        self, run_id: str, *, superseded: bool, attempt: int | None = None
    ) -> list[Transition]:
        """The transitions of a run as they stand, by onset.

        Args:
            run_id: Identity of the run.
            superseded: Also what a resumed run found again.
            attempt: As this attempt sees it; None is the latest.
        """
        table = schema.transitions
        with self._database.reading() as connection:
            spans = _spans(connection, run_id, attempt, superseded=superseded)
            shown = [
                and_(table.c.run_id == run, within(table, "recorded_step", spans, run))
                for run in _runs_of(spans, run_id)
            ]
            rows = connection.execute(
                select(table.c.id, table.c.body).where(or_(false(), *shown)).order_by(table.c.seq)
            ).all()
        standing = {row.id: row.body for row in rows}  # the last word on each
        found = [decode_transition(body) for body in standing.values()]
        return sorted(found, key=lambda item: (item.onset_step, item.detected_step))

    def transition_changes(self, transition_id: str) -> list[tuple[float, Transition]]:
        """The life of one transition."""
        table = schema.transitions
        with self._database.reading() as connection:
            rows = connection.execute(
                select(table.c.recorded_at, table.c.body)
                .where(table.c.id == transition_id)
                .order_by(table.c.seq)
            ).all()
        return [(row.recorded_at, decode_transition(row.body)) for row in rows]


def _runs_of(spans: Sequence[Span], run_id: str) -> list[str]:
    return [*dict.fromkeys((run_id, *(span.run_id for span in spans)))]


def _spans(
    connection: Connection, run_id: str, attempt: int | None, *, superseded: bool
) -> list[Span]:
    """The history of an attempt; with what was superseded, every attempt of the run in full."""
    spans = lineage(connection, run_id, attempt)
    if not superseded:
        return spans
    table = schema.attempts
    numbers = connection.execute(select(table.c.attempt).where(table.c.run_id == run_id)).scalars()
    own = [Span(run_id, number, None) for number in numbers]
    return [*own, *(span for span in spans if span.run_id != run_id)]


def _streams(connection: Connection, name: str, spans: Sequence[Span]) -> list[Row[Any]]:
    """The streams of one name in a history: nearly always one."""
    table = schema.streams
    runs = {span.run_id for span in spans}
    query = select(table.c.id, table.c.run_id, table.c.unit)
    return [*connection.execute(query.where(table.c.run_id.in_(runs), table.c.name == name))]


def _of_streams(
    query: Select[Any], streams: Sequence[Row[Any]], spans: Sequence[Span]
) -> Select[Any]:
    """Restrict a query on observations to what counts of some streams."""
    table = schema.observations
    # An equality, unlike a join or a list, lets the index give the order.
    which = [
        and_(table.c.stream_id == stream.id, within(table, "step", spans, stream.run_id))
        for stream in streams
    ]
    return query.select_from(table).where(or_(false(), *which))


def _stream_info(connection: Connection, name: str, spans: Sequence[Span]) -> StreamInfo | None:
    streams = _streams(connection, name, spans)
    last = connection.execute(
        _of_streams(select(schema.observations), streams, spans)
        .order_by(*(column.desc() for column in _BY_STEP))
        .limit(1)
    ).one_or_none()
    if last is None:
        return None
    counting = _of_streams(select(func.count()), streams, spans)
    units = {stream.id: stream.unit for stream in streams}
    return StreamInfo(
        name=name,
        unit=units[last.stream_id],
        count=connection.execute(counting).scalar_one(),
        last=_observation(last, name, units[last.stream_id]),
    )


def _observation(row: Row[Any], name: str, unit: str) -> Observation:
    value, stderr = decode_numbers(row.value, row.stderr, row.nonfinite)
    body = getattr(row, "body", None)
    return Observation(
        name=name,
        step=row.step,
        value=value,
        unit=unit,
        stderr=stderr,
        epoch=row.epoch,
        timestamp=row.timestamp,
        duration_seconds=row.duration_seconds,
        status=EstimateStatus(row.status),
        reason=row.reason or "",
        detail=None if body is None else decode_estimate(body, row.chain_loss),
    )


def _run_info(attempts: list[Row[Any]]) -> RunInfo:
    latest = max(attempts, key=lambda row: row.attempt)
    first = min(attempts, key=lambda row: row.attempt)
    state, reason = RunState(latest.state), latest.reason
    if state is RunState.RUNNING:
        process = ProcessIdentity(
            host=latest.host,
            machine=latest.machine,
            pid=latest.pid,
            start=latest.process_start,
        )
        if not process.is_alive(heartbeat=latest.heartbeat, now=time.time()):
            state = RunState.INTERRUPTED
            reason = f"process {latest.pid} on {latest.host} is gone and has left no word"
    return RunInfo(
        id=latest.run_id,
        name=latest.name,
        attempt=latest.attempt,
        state=state,
        started_at=min(row.started_at for row in attempts),
        ended_at=latest.ended_at,
        last_step=latest.last_step,
        reason=reason,
        config=None if latest.config is None else json.loads(latest.config),
        host=latest.host,
        pid=latest.pid,
        last_seen=latest.heartbeat,
        branch_of=first.parent_run,
        branch_step=None if first.parent_run is None else first.resumed_step,
    )
