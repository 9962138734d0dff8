"""A sink that takes its time is moved behind a queue, and training no longer waits for it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from phasewatch.monitor.core.contracts import Sink
from phasewatch.monitor.isolation.threads import unfelt

log = logging.getLogger("phasewatch")

SLOW_SECONDS = 0.05
"""What a call may take."""

PATIENCE_SECONDS = 0.25
"""What slow calls may take beyond it together; each quick one pays back what it leaves."""

CAPACITY = 10_000
"""Calls that wait at most; the oldest gives way, and is counted."""

CLOSE_SECONDS = 10.0
"""How long the end of a run waits for what is queued."""


class QueuedCalls:
    """Calls of one sink: made at once while it is quick, from a thread of its own after that.

    Args:
        sink: The sink.
        failed: Told of what a call raises, and of calls that were given up.
    """

    def __init__(self, sink: Sink, failed: Callable[[BaseException], None]) -> None:
        self._sink = sink
        self._failed = failed
        self._queue: deque[Callable[[Sink], None]] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._busy = False
        self._closing = False
        self._owed = 0.0

    @property
    def is_queued(self) -> bool:
        """Whether calls go through the queue."""
        return self._thread is not None

    def call(self, call: Callable[[Sink], None]) -> None:
        """Make a call, or queue it.

        Raises:
            BaseException: Whatever a call that is made at once raises.
        """
        if self._thread is not None:
            self._put(call)
            return
        begin = time.perf_counter()
        try:
            call(self._sink)
        finally:
            seconds = time.perf_counter() - begin
            self._owed = max(0.0, self._owed + seconds - SLOW_SECONDS)
            if self._owed > PATIENCE_SECONDS:  # once may be the machine's fault
                self._move(seconds)

    def close(self) -> None:
        """Wait, within bounds, for what is queued."""
        if self._thread is None:
            return
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(CLOSE_SECONDS)
        if left := len(self._queue) + self._busy:
            self._failed(
                TimeoutError(f"{left} calls were not done in {CLOSE_SECONDS:g} s at the end")
            )

    def _move(self, seconds: float) -> None:
        name = type(self._sink).__name__
        log.warning(
            "sink %s took %.2f s for one call; from now on it works behind a queue, in a thread of "
            "its own, and training does not wait for it",
            name,
            seconds,
        )
        self._thread = threading.Thread(
            target=self._work, name=f"phasewatch-sink-{name}", daemon=True
        )
        self._thread.start()

    def _put(self, call: Callable[[Sink], None]) -> None:
        with self._changed:
            self._queue.append(call)
            is_full = len(self._queue) > CAPACITY
            if is_full:
                self._queue.popleft()
            self._changed.notify()
        if is_full:
            self._failed(
                OverflowError(f"more than {CAPACITY} calls waited; the oldest was given up")
            )

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._queue:
                    if self._closing:
                        return
                    self._changed.wait()
                call, self._busy = self._queue.popleft(), True
            try:
                with unfelt():  # training draws at the same time
                    call(self._sink)
            except BaseException as error:  # this thread is the sink's alone
                self._failed(error)
            self._busy = False
