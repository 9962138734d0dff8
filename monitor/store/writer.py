"""The thread that writes, so that training never waits for a disk.

A producer appends to a queue and, once per batch, wakes the thread. The thread collects for
`GATHER_SECONDS`, then writes everything in one short transaction. It sleeps while there is nothing
to do. What cannot be written stays queued and is tried again; what does not fit is counted.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from sqlalchemy.engine import Connection
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, InterfaceError, StatementError

from phasewatch.monitor.core.processes import HEARTBEAT_SECONDS
from phasewatch.monitor.core.redaction import get_logger
from phasewatch.monitor.store.database import Database
from phasewatch.monitor.store.rows import ColumnRow, HoleRow, ObservationRow, Row, RowWriter
from phasewatch.monitor.store.schema import reason_of

logger = get_logger(__name__)

GATHER_SECONDS = 0.3
"""How long rows are collected before they are written."""

RETRY_SECONDS = 1.0
"""Pause after a failed write."""

ROOM_SECONDS = 0.005
"""Pause between two looks at a queue that is full."""

MAX_ROWS = 5_000
"""Rows of one transaction, so that other processes get their turn."""


@dataclass(slots=True)
class Barrier:
    """Stands in the queue; set once everything before it is committed."""

    size: ClassVar[int] = 0
    reached: threading.Event = field(default_factory=threading.Event)


class Writer:
    """Takes rows without blocking and writes them in batches.

    Args:
        database: Where to write.
        rows: Turns rows into statements.
        capacity: Rows held at most; what comes on top is dropped and counted.
        restore: Enters into a new database, made in place of one that was removed, what is known of
            the open runs.
    """

    def __init__(
        self,
        database: Database,
        rows: RowWriter,
        *,
        capacity: int,
        restore: Callable[[Connection], None],
    ) -> None:
        self._restore = restore
        self._database = database
        self._rows = rows
        self._capacity = capacity
        self._queue: deque[Row | Barrier] = deque()
        self._batch: list[Row | Barrier] = []
        self._wake = threading.Event()
        self._urgent = threading.Event()
        self._closing = False
        self._failing = False
        self._refusal_told = False
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._counting = threading.Lock()
        self._moving = threading.Lock()
        self._lost: dict[tuple[str, int, str, str], HoleRow] = {}
        self._num_put = 0  # by the producers
        self._num_done = 0  # by the writer
        self._last_beat = time.monotonic()
        self.num_dropped = 0
        self.num_failed = 0
        self.cpu_seconds = 0.0

    @property
    def depth(self) -> int:
        """Rows waiting to be written."""
        return self._num_put - self._num_done

    @property
    def is_failing(self) -> bool:
        """Whether the last write failed."""
        return self._failing

    def pending(self) -> list[Row]:
        """Rows that may not be in the database yet, in their order."""
        with self._moving:
            waiting = [*self._batch, *self._queue]
        return [row for row in waiting if not isinstance(row, Barrier)]

    def put(self, row: Row) -> None:
        """Queue one row; drop and count it if the queue is full. Never blocks."""
        if self.depth + row.size > self._capacity:
            self._drop(row, "more rows waited for the store than are kept")
            return
        self.put_always(row)

    def wait_for_room(self, num_rows: int) -> None:
        """Wait while the queue is too full for so many rows, and the writer gets on with it."""
        while self.depth and self.depth + num_rows > self._capacity:
            if self._failing or self._thread is None or not self._thread.is_alive():
                return
            self._urgent.set()
            time.sleep(ROOM_SECONDS)

    def put_always(self, row: Row | Barrier) -> None:
        """Queue what is rare and must not be dropped."""
        with self._counting:
            self._num_put += row.size
        self._queue.append(row)
        if not self._wake.is_set():
            self.nudge()

    def _drop(self, row: Row, reason: str) -> None:
        """Count a row as lost; where it would have been is marked once the store takes rows."""
        self.num_dropped += row.size
        if isinstance(row, ColumnRow):
            name, steps = row.name, row.column.steps
        elif isinstance(row, ObservationRow):
            name, steps = row.observation.name, [row.observation.step]
        else:
            return
        first, last, number = min(steps) - 1, max(steps), row.size
        key = (row.run_id, row.attempt, name, reason)
        with self._moving:
            if (known := self._lost.get(key)) is not None:
                first, last = min(first, known.first_step), max(last, known.last_step)
                number += known.num_rows
            self._lost[key] = HoleRow(row.run_id, row.attempt, name, first, last, number, reason)

    def nudge(self) -> None:
        """Start the thread, or let it see that a run has begun: from now on it must beat."""
        self._wake.set()
        if self._thread is None:
            self._start()

    def flush(self, timeout: float) -> bool:
        """Write everything queued so far; False if that did not work in `timeout` seconds."""
        if self._thread is None or not self._thread.is_alive():
            return self.depth == 0
        barrier = Barrier()
        self.put_always(barrier)
        self._urgent.set()
        return barrier.reached.wait(timeout)

    def close(self, timeout: float) -> int:
        """Write what is queued, stop the thread, and return how many rows were left behind."""
        self.flush(timeout)
        self._closing = True
        self._urgent.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout)
        return self.depth

    def _start(self) -> None:
        with self._starting:
            if self._thread is None and not self._closing:
                self._thread = threading.Thread(
                    target=self._run, name="phasewatch-store", daemon=True
                )
                self._thread.start()

    def _run(self) -> None:
        while not self._closing:
            if self._wake.wait(self._until_next_beat()):
                self._urgent.wait(RETRY_SECONDS if self._failing else GATHER_SECONDS)
                self._urgent.clear()
                self._wake.clear()
            self._cycle()
            self.cpu_seconds = time.thread_time()

    def _until_next_beat(self) -> float | None:
        if not self._rows.has_open_runs:
            return None
        return max(0.0, self._last_beat + HEARTBEAT_SECONDS - time.monotonic())

    def _cycle(self) -> None:
        """Write until the queue is empty or a write fails."""
        try:
            while True:
                self._fill()
                self._guarded(self._write_batch)
                if not self._queue:
                    return
        except Exception as error:  # nothing of the store may reach training: counted and told
            self.num_failed += 1
            self._wake.set()  # there is still something to do
            if not self._failing:
                self._failing = True
                logger.warning(
                    "store %s cannot be written (%s); training goes on, up to %d rows are kept "
                    "and tried again",
                    self._database.where,
                    reason_of(error),
                    self._capacity,
                )

    def _fill(self) -> None:
        num_rows = sum(row.size for row in self._batch)
        with self._moving:
            self._batch[:0] = self._lost.values()
            self._lost.clear()
            while self._queue and num_rows < MAX_ROWS:
                row = self._queue.popleft()
                num_rows += row.size
                self._batch.append(row)

    def _guarded(self, write: Callable[[], None]) -> None:
        if self._database.lost():
            self._reopen()
        write()
        self._last_beat = time.monotonic()
        if self._failing:
            self._failing = False
            logger.info("store %s can be written again", self._database.where)

    def _reopen(self) -> None:
        if not self._failing:
            logger.warning(
                "store %s was removed or replaced while in use; what was in it is gone, the run "
                "goes on in a new file",
                self._database.where,
            )
        self._database.reopen()
        self._rows.rolled_back()
        with self._database.writing() as connection:
            self._restore(connection)
        self.num_failed += 1

    def _write_batch(self) -> None:
        self._write([row for row in self._batch if not isinstance(row, Barrier)])
        self._num_done += sum(row.size for row in self._batch)
        with self._moving:
            done, self._batch = self._batch, []
        for row in done:
            if isinstance(row, Barrier):
                row.reached.set()

    def _write(self, rows: list[Row]) -> None:
        try:
            with self._database.writing() as connection:
                self._rows.write(connection, rows)
        except Exception as error:
            self._rows.rolled_back()
            if not rows or not _lies_in_a_row(error):
                raise
            self._write_halves(rows, error)
        else:
            self._rows.committed(rows)

    def _write_halves(self, rows: list[Row], error: Exception) -> None:
        """One row is refused for what it holds: find it, drop it and count it."""
        if len(rows) == 1:
            self.num_failed += 1
            self._drop(rows[0], f"refused by the database: {reason_of(error)}")
            if not self._refusal_told:
                self._refusal_told = True
                logger.warning(
                    "store %s refuses %r: %s; rows like it are dropped and counted",
                    self._database.where,
                    rows[0],
                    reason_of(error),
                )
            return
        middle = len(rows) // 2
        self._write(rows[:middle])
        self._write(rows[middle:])


def _lies_in_a_row(error: Exception) -> bool:
    """Whether a row is at fault, for what it holds; else the database is, and may recover."""
    if isinstance(error, (DataError, IntegrityError, InterfaceError)):
        return not error.connection_invalidated
    # A StatementError that is no DBAPIError comes from binding a value.
    is_binding = isinstance(error, StatementError) and not isinstance(error, DBAPIError)
    return is_binding or isinstance(error, (OverflowError, TypeError, ValueError))
