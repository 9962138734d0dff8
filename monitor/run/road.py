"""The road of a number behind training: store, detection and sinks, in a thread of their own.

The training thread hands over what was logged, and goes on. One daemon thread reads it, stores it,
detects on it and passes it on, in the order in which it came. It draws no random numbers, holds no
model, and runs no code of the user's: own sinks are called from the training thread, and with own
detectors everything is done there. It works in short turns and sleeps between them, for Python runs
one thread at a time.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from phasewatch.monitor.core.columns import Column
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.health import Health
from phasewatch.monitor.core.meaning import THINNING
from phasewatch.monitor.core.transitions import Transition
from phasewatch.monitor.isolation.threads import unfelt
from phasewatch.monitor.run.buffer import Batch, ScalarBuffer
from phasewatch.monitor.run.portions import some_at_a_time, split
from phasewatch.monitor.run.sinks import Sinks
from phasewatch.monitor.transitions.pipeline import Detection
from phasewatch.monitor.transitions.thinning import Pace, Thinner

log = logging.getLogger("phasewatch")

TURN = 256
"""Points that are detected in one go, about."""

BREATH_SECONDS = 3e-4
"""The thread works about so long and then sleeps for as long. Without the sleep, a training thread
that has waited for its accelerator would wait again, until Python takes the turn from this one by
force: five milliseconds."""

MAX_WAITING = 2_000_000
"""Points that may wait; training that logs more waits itself, and what it waits is overhead."""

PATIENCE_SECONDS = 60.0
"""How long a drain waits."""

STALL_SECONDS = 5.0
"""How long one hand-over waits where too much is waiting."""

EXIT_SECONDS = 10.0
"""How long the end of the interpreter waits for a run that was not finished."""

SCORE_SECONDS = 5.0
"""Detectors' scores are read so often, and at each drain."""


@dataclass(slots=True)
class _Mark:
    """Stands in the queue; set once everything before it has been dealt with."""

    size: ClassVar[int] = 0
    reached: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True)
class _Measured:
    """One measured value."""

    size: ClassVar[int] = 1
    observation: Observation


@dataclass(frozen=True, slots=True)
class _Checkpoints:
    """Which checkpoints are kept around a transition."""

    size: ClassVar[int] = 0
    transition: str
    paths: tuple[str, ...]


_Item = Batch | _Measured | _Checkpoints | _Mark


class Road:
    """Takes what training has logged to the store, the detectors and the sinks of one attempt.

    Args:
        buffer: Where the training thread puts what it logs.
        sinks: The attempt's store and sinks.
        detection: The run's detectors and transitions.
        thinner: What of it detection is to see.
        health: Where failures and points left out are counted.
        share: Processor time over wall time that detection may take.
        beside: Whether to work in a thread; else everything is done by whoever hands over.
        look: Shown everything that was logged.
        tell: Told of every transition that changed, when it did.
    """

    def __init__(
        self,
        buffer: ScalarBuffer,
        sinks: Sinks,
        detection: Detection,
        thinner: Thinner,
        health: Health,
        *,
        share: float,
        beside: bool = True,
        look: Callable[[Mapping[str, Column]], None] = lambda _: None,
        tell: Callable[[Transition], None] = lambda _: None,
    ) -> None:
        self._buffer = buffer
        self._sinks = sinks
        self._detection = detection
        self._thinner = thinner
        self._health = health
        self._pace = Pace(share, thinner.level)
        self._thinned_before = health.thinned_points - thinner.num_thinned
        self._last_step = -1
        self._scored_at = self._breathes_at = -math.inf
        self._told: set[str] = set()
        self._beside = beside
        self._look = look
        self._tell = tell
        self._detects = True
        self._queue: queue.SimpleQueue[tuple[Road, _Item] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._num_hurrying = 0
        self._num_put = 0  # points, by the training thread
        self._num_done = 0  # by the worker
        self._forked = False
        self.lock = threading.RLock()
        self.cpu_seconds = 0.0
        # An idle thread must not keep a forgotten run alive.
        weakref.finalize(self, self._queue.put, None).atexit = False
        _roads.add(self)

    # ---- on the training thread

    def hand_over(self) -> None:
        """Send what is buffered on its way."""
        if self._forked:
            self._buffer.clear()
            return
        batch = self._buffer.take()
        if batch is not None:
            self._put(batch)
        self._sinks.deliver()

    def put(self, observation: Observation) -> None:
        """Send a measured value on its way, after everything that was logged before it."""
        if not self._forked:
            self.hand_over()
            self._put(_Measured(observation))
            self._sinks.deliver()

    def enter_checkpoints(self, transition: str, paths: tuple[str, ...]) -> None:
        """Send on its way which checkpoints are kept around a transition."""
        if not self._forked:
            self._put(_Checkpoints(transition, paths))

    def drain(self, timeout: float = PATIENCE_SECONDS) -> bool:
        """Hand over, and wait until everything has been stored and detected.

        Returns:
            Whether that was so within `timeout` seconds.
        """
        self.hand_over()
        done = self._forked or self._wait(timeout)
        if not self._forked:
            self._sinks.deliver()
        return done

    def close(self) -> bool:
        """Drain, and end the thread; what comes later is done by whoever hands it over.

        Returns:
            Whether everything was dealt with.
        """
        done = self.drain()
        if not done:
            self._detects = False  # what is left is only stored
            done = self.drain()
        self._queue.put(None)
        if self._thread is not None and not self._forked:
            self._thread.join(EXIT_SECONDS)
        self._beside = False
        _roads.discard(self)
        return done

    @property
    def num_waiting(self) -> int:
        """Points handed over that have not been dealt with yet."""
        return self._num_put - self._num_done

    def _put(self, item: _Item) -> None:
        self._num_put += item.size
        if not (self._beside and self._is_running()):
            with unfelt():  # a detector of the user's may draw
                self._work_off()
                self._take(item)
            return
        self._queue.put((self, item))
        if self.num_waiting > MAX_WAITING:
            with self._hurrying():
                end = time.monotonic() + STALL_SECONDS
                while self.num_waiting > MAX_WAITING and time.monotonic() < end:
                    time.sleep(0.005)

    def _is_running(self) -> bool:
        """Whether the thread lives; it is started with the first thing to do."""
        if self._thread is None:
            thread = threading.Thread(
                target=_work, args=(self._queue,), name="phasewatch-road", daemon=True
            )
            try:
                self._detection.prepare()
                thread.start()
            except RuntimeError as error:  # the system has no more threads
                self._beside = False
                log.warning(
                    "no thread can be started (%s): detection is done by the training thread", error
                )
                return False
            self._thread = thread
        return self._thread.is_alive()

    def _wait(self, timeout: float) -> bool:
        if self._thread is None:
            return True
        mark = _Mark()
        with self._hurrying():
            self._put(mark)
            end = time.monotonic() + timeout
            while not mark.reached.wait(min(1.0, max(0.0, end - time.monotonic()))):
                if not self._thread.is_alive():
                    self._work_off()
                if time.monotonic() >= end:
                    return mark.reached.is_set()
        return True

    def _work_off(self) -> None:
        """Do here what a thread that is gone has left."""
        while True:
            try:
                left = self._queue.get_nowait()
            except queue.Empty:
                return
            if left is not None:
                self._take(left[1])

    @contextmanager
    def _hurrying(self) -> Iterator[None]:
        """Let the thread work without a pause: somebody waits for it."""
        self._num_hurrying += 1
        try:
            yield
        finally:
            self._num_hurrying -= 1

    def _after_fork(self) -> None:
        # The child has no thread, and a lock may have been held when it was born.
        self._forked = True
        self.lock = threading.RLock()
        self._buffer.clear()

    # ---- on the worker

    def _take(self, item: _Item) -> None:
        """Deal with one thing. Never raises."""
        try:
            if isinstance(item, Batch):
                self._take_batch(item)
            elif isinstance(item, _Measured):
                self._take_observation(item.observation)
            elif isinstance(item, _Checkpoints):
                self._take_checkpoints(item)
            else:
                self._refresh_scores()
        except BaseException as error:  # whatever it is: the thread goes on
            self._failed("what was logged could not be read", error)
        finally:
            self._num_done += item.size
            if isinstance(item, _Mark):
                item.reached.set()

    def _take_batch(self, batch: Batch) -> None:
        columns = batch.columns(self._breathe)
        if not columns:
            return
        with self._surviving("what was logged could not be passed on"):
            self._look(columns)
            for part in some_at_a_time(columns):
                for name, column in part.items():
                    column.unit = self._detection.meanings.of(name).unit
                self._sinks.emit_columns(part)
                self._breathe()
        with self._surviving("detection failed"):
            self._detect(columns)
        if time.monotonic() - self._scored_at >= SCORE_SECONDS:
            self._refresh_scores()

    def _take_observation(self, observation: Observation) -> None:
        with self._surviving("a measured value could not be passed on"):
            self._sinks.emit(observation)
        with self._surviving("detection failed"):
            self._turn(partial(self._detection.take, observation))
            self._last_step = max(self._last_step, observation.step)

    def _take_checkpoints(self, item: _Checkpoints) -> None:
        with self._surviving("a transition's checkpoints could not be entered"):
            with self.lock:
                changed = self._detection.enter_checkpoints(item.transition, item.paths)
            if changed is not None:
                self._sinks.keep(changed)  # no news for a sink

    def _detect(self, columns: Mapping[str, Column]) -> None:
        last_step = max(column.steps[-1] for column in columns.values())
        if not self._detects:
            self._thinner.num_thinned += sum(len(column.steps) for column in columns.values())
        else:
            self._adjust()
            kept: dict[str, Column] = {}
            for part in some_at_a_time(columns):
                kept |= self._thinner.thin(part)
                self._breathe()
            for turn in split(kept, TURN):
                self._turn(partial(self._detection.take_columns, turn, self._breathe))
        self._last_step = max(self._last_step, last_step)
        self._health.thinned_points = self._thinned_before + self._thinner.num_thinned

    def _turn(self, detect: Callable[[], list[Transition]]) -> None:
        """Detect, and tell what was found."""
        begin = time.thread_time()
        with self.lock:
            changed = detect()
        for transition in changed:
            self._tell(transition)
            self._sinks.notify(transition)
        seconds = time.thread_time() - begin
        self._pace.spend(seconds)

    def _breathe(self) -> None:
        """Let training have the interpreter, unless it waits for this thread."""
        if self._beside and not self._num_hurrying:
            now = time.perf_counter()
            if now >= self._breathes_at:
                time.sleep(BREATH_SECONDS)
                self._breathes_at = time.perf_counter() + BREATH_SECONDS

    def _adjust(self) -> None:
        """Look more coarsely where detection takes more than its share, finely again later."""
        before, level = self._pace.level, self._pace.judge(self._thinner.num_streams)
        if level == before:
            return
        self._thinner.change(level, self._last_step)
        mark = Column([self._last_step], [float(level)], [None], [time.time()])
        self._sinks.keep_column(THINNING, mark)
        if THINNING not in self._told:
            self._told.add(THINNING)
            log.warning(
                "detection takes more than %.2g %% of a processor here: from step %d on it sees "
                "one point of a stream in several steps, and what is striking; everything is "
                "stored, and points left out are counted in phasewatch_thinned_points_total",
                100 * self._pace.share,
                self._last_step,
            )

    def _refresh_scores(self) -> None:
        self._scored_at = time.monotonic()
        with self.lock:
            self._detection.refresh_scores()
        self._sinks.refresh()

    @contextmanager
    def _surviving(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._failed(what, error)

    def _failed(self, what: str, error: BaseException) -> None:
        self._health.measurement_failures["monitor"] += 1
        if what in self._told:
            return
        self._told.add(what)
        log.warning(
            "%s: %s: %s; training goes on, further failures are counted in "
            "phasewatch_measurement_failures_total",
            what,
            type(error).__name__,
            error,
            exc_info=error if log.isEnabledFor(logging.DEBUG) else None,
        )


def _work(items: queue.SimpleQueue[tuple[Road, _Item] | None]) -> None:
    """What the thread does. It knows the road only while there is something to do."""
    while True:
        item = items.get()
        if item is None:
            return
        road, thing = item
        road._take(thing)
        road.cpu_seconds = time.thread_time()
        del item, road, thing


_roads: weakref.WeakSet[Road] = weakref.WeakSet()


def _drain_all() -> None:
    for road in [*_roads]:
        road.drain(EXIT_SECONDS)


def _leave_all() -> None:
    for road in [*_roads]:
        road._after_fork()


# Registered after the store's own, and so called before it.
atexit.register(_drain_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_all)
