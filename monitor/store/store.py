"""The history of runs: one database for many runs and many processes.

    store = Store("phasewatch.db")
    store.begin_run(name="demo", run_id=run_id)
    store.add_observation(run_id, 1, observation)      # queued; written within half a second
    store.end_run(run_id, 1, RunState.FINISHED)
    store.close()

What is queued is committed at least every half second and at exit. A process that is killed loses
at most what came in the last half second; its run then reads as interrupted.
"""

from __future__ import annotations

import atexit
import json
import os
import time
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Self

from sqlalchemy import func, insert, select, update
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from phasewatch.monitor.core.columns import Column
from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.errors import StoreError
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.history import History
from phasewatch.monitor.core.processes import ProcessIdentity
from phasewatch.monitor.core.redaction import get_logger, redact, redacted
from phasewatch.monitor.core.transitions import Recipient, Transition
from phasewatch.monitor.store import account, carried, schema
from phasewatch.monitor.store.codec import to_json
from phasewatch.monitor.store.database import Database
from phasewatch.monitor.store.lineage import free_name, has_rival, lineage
from phasewatch.monitor.store.outbox import Outbox
from phasewatch.monitor.store.reader import Hole, Reader, RunInfo, StreamInfo
from phasewatch.monitor.store.rows import (
    ColumnRow,
    EndRow,
    HoleRow,
    ObservationRow,
    Row,
    RowWriter,
    TransitionRow,
)
from phasewatch.monitor.store.writer import Writer

__all__ = ["Begun", "Hole", "RunInfo", "Store", "StreamInfo"]

logger = get_logger(__name__)

CAPACITY = 100_000
"""Rows the queue holds while the database cannot be written."""

CLOSE_SECONDS = 10.0
"""How long closing waits for the last rows."""

ENTER_SECONDS = 30.0
"""How long entering a run waits for a lock that another process holds."""


class Begun(NamedTuple):
    """An attempt that has begun.

    Attributes:
        run_id: Identity of its run.
        attempt: Its number.
        name: Name of its run.
        branch_of: The run it branched off; None if it is no branch.
    """

    run_id: str
    attempt: int
    name: str
    branch_of: str | None = None


_open_stores: weakref.WeakSet[Store] = weakref.WeakSet()


class Store:
    """Run history in SQLite, or in any database SQLAlchemy speaks to.

    Writing never blocks training and never raises into it: see `num_dropped` and `num_failed`.
    A process forked from the one that opened the store (a DataLoader's worker) writes nothing.

    Args:
        source: Path of an SQLite file, `:memory:`, or a SQLAlchemy URL.
        create: Make the file and its tables when missing; False for readers.
        capacity: Rows held at most while they cannot be written.

    Raises:
        StoreError: The database cannot be opened or was written by a newer phasewatch; names it,
            the reason and what to do.
    """

    def __init__(
        self, source: str | Path = "phasewatch.db", *, create: bool = True, capacity: int = CAPACITY
    ) -> None:
        self._forked = False
        self._closed = False
        self._database = Database(source, create=create)
        self._rows = RowWriter()
        self._entered: dict[str, carried.Entered] = {}
        self._attempts: dict[str, int] = {}
        self._messages: dict[str, account.Messages] = {}
        self._writer = Writer(self._database, self._rows, capacity=capacity, restore=self._restore)
        self._reader = Reader(self._database)
        _open_stores.add(self)

    @property
    def where(self) -> str:
        """The file, or the URL without its password."""
        return self._database.where

    @property
    def path(self) -> Path | None:
        """The SQLite file, if the store is one."""
        return self._database.path

    @property
    def is_in_memory(self) -> bool:
        """Whether the history ends with this process."""
        return self._database.is_in_memory

    @property
    def url(self) -> str:
        """The SQLAlchemy URL, password and all: not to be shown."""
        return self._database.url.render_as_string(hide_password=False)

    @property
    def database(self) -> Database:
        """The database behind it."""
        return self._database

    @property
    def outbox(self) -> Outbox:
        """Messages about transitions, sent and waiting."""
        self._refuse_in_fork()
        return Outbox(self._database)

    @property
    def queue_depth(self) -> int:
        """Rows waiting to be written."""
        return self._writer.depth

    @property
    def num_dropped(self) -> int:
        """Rows lost: the queue was full, or the database refused what they hold."""
        return self._writer.num_dropped

    @property
    def num_failed(self) -> int:
        """Writes that failed, each try counted."""
        return self._writer.num_failed

    @property
    def writer_cpu_seconds(self) -> float:
        """Processor time the writer thread has used."""
        return self._writer.cpu_seconds

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Writing ------------------------------------------------------------------------------------

    def begin_run(
        self,
        *,
        name: str,
        run_id: str | None = None,
        attempt: int = 1,
        resumed_step: int | None = None,
        parent: tuple[str, int] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> tuple[str, int]:
        """Enter a run, or another attempt of one. Written at once.

        Args:
            name: Name of the run.
            run_id: Its identity; None makes a new one.
            attempt: Which fit of the run this is. The next free number is taken if it is in use,
                as when one checkpoint is resumed twice.
            resumed_step: Step the run was resumed from. What the parent observed after it is
                superseded: kept, and hidden from reading. None supersedes nothing.
            parent: Run and attempt that are gone on with; None is the attempt before.
            config: The configuration, kept for the record.

        Returns:
            The run's id and the attempt's number: what the `add_` methods are to be given.

        Raises:
            StoreError: The database cannot be written.
        """
        self._refuse_in_fork()
        run_id = run_id or uuid.uuid4().hex
        now = time.time()
        process = ProcessIdentity.current()
        values: dict[str, Any] = {
            "run_id": run_id,
            "name": name,
            "state": RunState.RUNNING.value,
            "reason": "",
            "started_at": now,
            "ended_at": None,
            "resumed_step": resumed_step,
            "parent_run": None if parent is None or parent[0] == run_id else parent[0],
            "parent_attempt": None if parent is None else parent[1],
            "last_step": resumed_step,
            "heartbeat": now,
            "config": None if config is None else to_json(redacted(config)),
            "host": process.host,
            "machine": process.machine,
            "pid": process.pid,
            "process_start": process.start,
        }
        self._patiently(
            f"run {name!r} cannot be entered into", lambda: self._enter(values, attempt)
        )
        self._rows.opened(values)
        self._writer.nudge()
        return run_id, values["attempt"]

    def _enter(self, values: dict[str, Any], attempt: int) -> None:
        table = schema.attempts
        with self._database.writing() as connection:
            number = connection.execute(
                select(func.max(table.c.attempt)).where(table.c.run_id == values["run_id"])
            ).scalar()
            values["attempt"] = max(attempt, (number or 0) + 1)
            connection.execute(insert(table), values)

    def _patiently(self, what: str, write: Callable[[], Any]) -> Any:
        """Write at once, and wait for a while for who holds the lock.

        Raises:
            StoreError: It cannot be written; begins with `what`.
        """
        deadline = time.monotonic() + ENTER_SECONDS
        while True:
            try:
                return write()
            except Exception as error:
                # On a server another process may have taken the same number.
                is_passing = isinstance(error, IntegrityError) or self._database.is_busy(error)
                if is_passing and time.monotonic() < deadline:
                    time.sleep(0.05)
                    continue
                raise StoreError(
                    f"{what} store {self.where}: {schema.reason_of(error)}. Give a store that can "
                    "be written"
                ) from (error if self._database.is_sqlite else None)

    def resume_run(
        self,
        *,
        name: str,
        run_id: str,
        attempt: int,
        step: int,
        is_renamed: bool = False,
        config: Mapping[str, Any] | None = None,
    ) -> Begun:
        """Go on from a checkpoint: with its run, or on a branch where another fit has done so.

        Args:
            name: Name of the run.
            run_id: Identity of the run.
            attempt: The attempt that made the checkpoint.
            step: Step of the checkpoint.
            is_renamed: Whether a person gave the name now: a branch then has it as it is.
            config: The configuration, kept for the record.

        Raises:
            StoreError: The database cannot be written.
        """
        branch_of = run_id if has_rival(self._database, run_id, attempt) else None
        parent = (run_id, attempt)
        if branch_of is not None:
            run_id = uuid.uuid4().hex
            if not is_renamed:
                with self._database.reading() as connection:
                    name = free_name(connection, f"{name}@{step}")
        first = 1 if branch_of is not None else attempt + 1
        begun = self.begin_run(
            name=name,
            run_id=run_id,
            attempt=first,
            resumed_step=step,
            parent=parent,
            config=config,
        )
        return Begun(*begun, name, branch_of)

    def add_to_config(self, run_id: str, attempt: int, **entries: Any) -> None:
        """Keep more with the configuration of an attempt, such as what it is expected to see.

        Args:
            run_id: Identity of the run.
            attempt: Which fit of the run.
            entries: What to keep.

        Raises:
            StoreError: The database cannot be written.
        """
        self._refuse_in_fork()
        table = schema.attempts
        own = (table.c.run_id == run_id) & (table.c.attempt == attempt)

        def write() -> None:
            with self._database.writing() as connection:
                text = connection.execute(select(table.c.config).where(own)).scalar()
                config = json.loads(text) if text else {}
                values = {"config": to_json(config | redacted(entries))}
                connection.execute(update(table).where(own).values(values))

        self._patiently(f"run {run_id} cannot be described in", write)

    def knows(self, run_id: str) -> bool:
        """Whether any attempt of a run is in this store."""
        return self._fresh_reader().knows(run_id)

    def num_attempts(self, run_id: str, attempt: int) -> int:
        """How many attempts, its parents' included, the history of an attempt consists of."""
        with self._database.reading() as connection:
            return len(lineage(connection, run_id, attempt))

    # Checkpoints --------------------------------------------------------------------------------

    def carry(self, run_id: str, timeout: float) -> dict[str, Any]:
        """What a checkpoint must hold of the history, as plain containers.

        Waits up to `timeout` seconds until the store holds everything; while it is known to fail,
        not at all. What it does not hold then is in the result.

        Args:
            run_id: The run.
            timeout: Seconds.
        """
        rows: list[Row] = []
        if not self.flush(0.0 if self._writer.is_failing else timeout):
            rows = self._writer.pending()
        records, num_left = carried.encode_rows(rows, run_id)
        if records or num_left:
            beyond = f"; {num_left} more do not fit and are lost if it stays so" if num_left else ""
            logger.warning(
                "store %s does not yet hold %d rows that a checkpoint speaks of; they are kept in "
                "the checkpoint itself%s",
                self.where,
                sum(row.size for row in rows) - num_left,
                beyond,
            )
        entered = {name: [*seen] for name, seen in self._entered.get(run_id, {}).items()}
        if self._writer.is_failing or not self._read_messages(run_id):
            # What the store held when it could last be read is not all that it holds.
            records = [*carried.encode_rows(self._rows.said(run_id), run_id)[0], *records]
        messages = [dict(message) for message in self._messages.get(run_id, ())]
        said = [row for row in rows if isinstance(row, TransitionRow)]
        states = {
            row.transition.id: row.transition.status.value
            for row in (*self._rows.said(run_id), *said)
        }
        return {
            "rows": records,
            "entered": entered,
            "messages": messages,
            "transitions": states,
            "store": self.where,
        }

    def _read_messages(self, run_id: str) -> bool:
        """See what has become of a run's messages; False if the store does not say now."""
        try:
            with self._database.reading() as connection:
                self._messages[run_id] = account.read(connection, run_id)
        except (StoreError, SQLAlchemyError):
            return False
        return True

    def take_over(
        self,
        run_id: str,
        attempt: int,
        step: int,
        state: Mapping[str, Any],
        parent_run: str,
        transitions: Iterable[Transition] = (),
    ) -> tuple[int, int]:
        """Compare what a checkpoint says with what the store holds, and enter what is missing.

        Args:
            run_id: The run that has resumed.
            attempt: Its attempt.
            step: The step it resumed from.
            state: What `carry` gave.
            parent_run: The run that the checkpoint is of.
            transitions: Those that the checkpoint knows.

        Returns:
            Rows entered, and rows missing for good; these are marked as holes.

        Raises:
            StoreError: The database cannot be read or written.
        """
        entered = {name: [int(n) for n in seen] for name, seen in state["entered"].items()}
        self._entered[run_id] = {name: [*seen] for name, seen in entered.items()}
        rows = carried.decode_rows(state["rows"], parent_run)
        # A branch has told nobody yet: the messages are its parent's.
        messages = state.get("messages", ()) if run_id == parent_run else ()
        known = {transition.id: transition for transition in transitions}

        def compare() -> tuple[int, int]:
            with self._database.writing() as connection:
                num_entered = account.enter_again(
                    connection, messages, known, run_id=run_id, attempt=attempt
                )
                num_entered += carried.enter(connection, RowWriter(), rows)
                return num_entered, carried.note_holes(connection, run_id, attempt, step, entered)

        found: tuple[int, int] = self._patiently(f"run {run_id} cannot be gone on with in", compare)
        now = time.time()
        owned = [replace(transition, run=run_id) for transition in known.values()]
        self._rows.remember([TransitionRow(one, now, (), attempt) for one in owned])
        self._messages[run_id] = messages
        self._read_messages(run_id)
        return found

    def _restore(self, connection: Connection) -> None:
        """Enter the open runs into a new database, with what is known of their history."""
        holes = self._rows_committed()
        for run_id, attempt in self._rows.enter_attempts(connection):
            said = self._rows.said(run_id)
            known = {row.transition.id: row.transition for row in said}
            messages = self._messages.get(run_id, ())
            account.enter_again(connection, messages, known, run_id=run_id, attempt=attempt)
            carried.enter(connection, self._rows, said)
            self._rows.write(connection, [hole for hole in holes if hole.run_id == run_id])

    def _rows_committed(self) -> list[HoleRow]:
        """What has been handed over and does not wait any more: a hole, if the store is gone."""
        waiting: dict[tuple[str, str], list[int]] = {}  # how many, and the first step of them
        for row in self._writer.pending():
            if isinstance(row, ColumnRow):
                name, number, first = row.name, row.size, min(row.column.steps)
            elif isinstance(row, ObservationRow):
                name, number, first = row.observation.name, 1, int(row.observation.step)
            elif isinstance(row, HoleRow):
                name, number, first = row.stream, row.num_rows, row.first_step + 1
            else:
                continue
            seen = waiting.setdefault((row.run_id, name), [0, first])
            seen[0], seen[1] = seen[0] + number, min(seen[1], first)
        reason = "the store was removed or replaced while in use"
        holes = []
        for run_id, attempt in [*self._attempts.items()]:
            for name, (count, last_step) in [*self._entered.get(run_id, {}).items()]:
                number, first = waiting.get((run_id, name), (0, last_step + 1))
                if (lost := count - number) > 0:
                    last = min(last_step, first - 1)
                    holes.append(HoleRow(run_id, attempt, name, -1, last, lost, reason))
        return holes

    def _count(self, run_id: str, name: str, number: int, last_step: int) -> None:
        seen = self._entered.setdefault(run_id, {}).setdefault(name, [0, last_step])
        seen[0] += number
        seen[1] = max(seen[1], last_step)

    # Rows ---------------------------------------------------------------------------------------

    def add_observation(self, run_id: str, attempt: int, observation: Observation) -> None:
        """Queue one observation. Never blocks and never raises.

        Args:
            run_id: Identity of the run.
            attempt: Which fit of the run.
            observation: What was observed.
        """
        if not (self._closed or self._forked):
            self._attempts[run_id] = attempt
            self._writer.put(ObservationRow(run_id, attempt, observation))
            self._count(run_id, observation.name, 1, int(observation.step))

    def add_scalars(self, run_id: str, attempt: int, name: str, column: Column) -> None:
        """Queue many values of one scalar stream at once. Never blocks and never raises.

        Args:
            run_id: Identity of the run.
            attempt: Which fit of the run.
            name: Name of the stream.
            column: Its values.
        """
        if column.steps and not (self._closed or self._forked):
            self._attempts[run_id] = attempt
            self._writer.put(ColumnRow(run_id, attempt, name, column))
            self._count(run_id, name, len(column.steps), max(column.steps))

    def wait_for_room(self, num_rows: int) -> None:
        """Wait until so many rows can be queued, as long as the database can be written."""
        if not (self._closed or self._forked):
            self._writer.wait_for_room(num_rows)

    def add_transition(
        self,
        transition: Transition,
        recipients: tuple[Recipient, ...] = (),
        *,
        attempt: int | None = None,
    ) -> None:
        """Queue a transition as it stands now. Each call keeps one change of its life.

        Args:
            transition: What to keep.
            recipients: Whom to tell: their messages enter the outbox in the same transaction.
            attempt: The attempt that says it; None is the one that found it.
        """
        if not (self._closed or self._forked):
            teller = transition.attempt if attempt is None else attempt
            self._writer.put_always(TransitionRow(transition, time.time(), recipients, teller))

    def end_run(self, run_id: str, attempt: int, state: RunState, reason: str = "") -> None:
        """Say how an attempt ended, and write what is queued before it. Never raises.

        Args:
            run_id: Identity of the run.
            attempt: Which fit of the run.
            state: How it ended.
            reason: Why, in words.
        """
        if not (self._closed or self._forked):
            self._writer.put_always(
                EndRow(run_id, attempt, state.value, redact(reason), time.time())
            )
            self.flush()

    def flush(self, timeout: float = CLOSE_SECONDS) -> bool:
        """Wait until what is queued is committed; False if that took more than `timeout` s."""
        return self._forked or self._closed or self._writer.flush(timeout)

    def close(self, timeout: float = CLOSE_SECONDS) -> None:
        """Write what is queued and let go of the database. May be called again."""
        if self._closed or self._forked:
            return
        left = self._writer.close(timeout)
        self._closed = True
        self._writer.num_dropped += left
        if left:
            logger.error("store %s: %d rows could not be written and are lost", self.where, left)
        self._database.engine.dispose()

    # Reading ------------------------------------------------------------------------------------

    def runs(self) -> list[RunInfo]:
        """All runs, the latest first.

        Raises:
            StoreError: The database cannot be read.
        """
        return self._fresh_reader().runs()

    def run(self, name_or_id: str) -> RunInfo:
        """The run of this id, the latest of this name, or the one whose id begins like this.

        Raises:
            StoreError: There is none; lists the known names.
        """
        return self._fresh_reader().run(name_or_id)

    def runs_named(self, name: str) -> list[RunInfo]:
        """All runs of one name, the latest first: a name that was given may be given again."""
        return self._fresh_reader().names_alike(name)

    def holes(self, run_id: str, *, attempt: int | None = None) -> list[Hole]:
        """What is known to be missing from the history of a run."""
        return self._fresh_reader().holes(run_id, attempt)

    def names(self, run_id: str) -> list[str]:
        """Names of what was observed in a run, sorted."""
        return self._fresh_reader().names(run_id)

    def units(self, run_id: str) -> dict[str, str]:
        """Unit of each stream of a run, by name."""
        return self._fresh_reader().units(run_id)

    def streams(self, run_id: str) -> list[StreamInfo]:
        """What was observed in a run: for each name how often, and the last value."""
        return self._fresh_reader().streams(run_id)

    def history(
        self,
        run_id: str,
        name: str,
        *,
        superseded: bool = False,
        attempt: int | None = None,
        include_unconverged: bool = False,
        after: int | None = None,
        every: int = 1,
    ) -> History:
        """Steps, values and standard errors (NaN where exact) of one stream, each of shape (n,).

        Args:
            run_id: Id of the run.
            name: Name of the stream; arrays are empty if it was never observed.
            superseded: Show what a resume has superseded as well.
            attempt: The attempt whose history it is; None is the latest.
            include_unconverged: Show also the values whose status is not OK, which are NaN else.
            after: Only what was observed after this step.
            every: Only steps that are a multiple of this.
        """
        return self._fresh_reader().history(
            run_id,
            name,
            superseded=superseded,
            attempt=attempt,
            include_unconverged=include_unconverged,
            after=after,
            every=every,
        )

    def observations(
        self, run_id: str, name: str, *, superseded: bool = False
    ) -> list[Observation]:
        """The observations of one stream, by step, each with its detail.

        Args:
            run_id: Identity of the run.
            name: Name of the stream.
            superseded: Also what a resumed run observed again.
        """
        return self._fresh_reader().observations(run_id, name, superseded=superseded)

    def in_order(
        self, run_id: str, *, step: int | None = None, attempt: int | None = None
    ) -> Iterator[Observation]:
        """Everything observed in a run, by step and time, read as it is asked for.

        Args:
            run_id: Id of the run.
            step: Only what was observed at this step.
            attempt: The attempt whose history it is; None is the latest.

        Yields:
            Observations that no resume has superseded, without their details.
        """
        yield from self._fresh_reader().in_order(run_id, step, attempt)

    def transitions(
        self, run_id: str, *, superseded: bool = False, attempt: int | None = None
    ) -> list[Transition]:
        """The transitions of a run as they stand, by onset.

        Args:
            run_id: Identity of the run.
            superseded: Also what a resumed run found again.
            attempt: As this attempt sees it; None is the latest.
        """
        return self._fresh_reader().transitions(run_id, superseded=superseded, attempt=attempt)

    def transition_changes(self, transition_id: str) -> list[tuple[float, Transition]]:
        """The life of one transition: when it was said (Unix seconds), and what."""
        return self._fresh_reader().transition_changes(transition_id)

    def _fresh_reader(self) -> Reader:
        """A reader that sees what this process has queued so far."""
        self._refuse_in_fork()
        if self._closed:
            raise StoreError(f"store {self.where} is closed; open it again to read")
        if self._writer.depth and not self._writer.is_failing:
            self._writer.flush(CLOSE_SECONDS)
        return self._reader

    def _refuse_in_fork(self) -> None:
        if self._forked:
            raise StoreError(
                f"store {self.where} was opened by the parent of process {os.getpid()}; "
                "open it again in this process"
            )

    def _after_fork(self) -> None:
        # The child has neither the thread nor the right to the parent's connections. They stay
        # referenced, for closing them here would meddle with the parent's locks.
        self._forked = True


def _close_all() -> None:
    for store in [*_open_stores]:
        store.close()


def _leave_all() -> None:
    for store in [*_open_stores]:
        store._after_fork()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_all)
