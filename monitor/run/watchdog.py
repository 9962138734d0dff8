"""Names what training waits for, and ends the user's own code where it hangs and that is safe.

Python cannot end a thread, but what a signal's handler raises ends whatever the main thread waits
for. The handler itself looks where it has come: only in code that is not ours, called directly by
whoever measures or sends, does it raise. Training, and everything of ours that has to be put back
in order (weights that are lent, generators, modes), is thus never hit.
"""

from __future__ import annotations

import logging
import math
import signal
import sys
import threading
import time
import traceback
from types import FrameType, TracebackType
from typing import Any

from phasewatch.monitor.core.errors import RefusedError

log = logging.getLogger("phasewatch")

HANG_SECONDS = 20.0
"""After so long in one call it is told what training waits for; again after each doubling."""

LOOK_SECONDS = 1.0

PATIENCE_WITH_WORK = 10.0
"""One that works, and does not stand still, has so many times as long, all in all."""

STILL = 0.01
"""Who uses less than this share of a processor stands still."""

SIGNAL: int = getattr(signal, "SIGURG", 0)
"""The system ignores it where nobody listens, so that one that comes too late does nothing; 0 where
there is none."""

PACKAGE = __name__.partition(".")[0]


class HungError(RefusedError):
    """A call of the user's code did not come back, and was ended."""


class _OverdueError(BaseException):
    """Ends a call from within; becomes a `HungError` where the call was made."""


class Watchdog:
    """Looks from a thread of its own at what others are busy with.

    Attributes:
        patience_seconds: How long a call of the user's code may stand still before it is ended,
            where that is safe.
        told: What was named so far.
    """

    def __init__(self) -> None:
        self.patience_seconds = math.inf
        self.told: list[str] = []
        self._busy: dict[int, _Call] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._listens = False

    def over(self, what: str) -> _Call:
        """Say, in a `with`, what this thread is busy with; calls may be nested.

        Raises:
            HungError: On leaving it: the call was ended, for it did not come back.
        """
        return _Call(self, what)

    def close(self) -> None:
        """Look no more."""
        self._stop.set()
        self._thread = None
        if self._listens and _is_main():
            _listeners.leave()
            self._listens = False

    def _enter(self, call: _Call) -> _Call | None:
        before = self._busy.get(call.thread)
        self._busy[call.thread] = call
        if self._thread is None:
            self._start()
        if not self._listens and _is_main():
            self._listens = True
            _listeners.join()
        return before

    def _leave(self, call: _Call, before: _Call | None) -> None:
        if before is None:
            self._busy.pop(call.thread, None)
        else:
            self._busy[call.thread] = before

    def _start(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._look, args=(self._stop,), name="phasewatch-watchdog", daemon=True
        )
        self._thread.start()

    def _look(self, stop: threading.Event) -> None:
        pause = min(LOOK_SECONDS, HANG_SECONDS / 4, self.patience_seconds / 4)
        while not stop.wait(pause):
            for call in [*self._busy.values()]:
                call.look()
                if call.seconds >= call.told_after:
                    call.told_after *= 2
                    log.warning(
                        "the monitor has waited %.0f s for %s, and still does; it stands at %s",
                        call.seconds,
                        call.what,
                        _place(call.thread),
                    )
                    self.told.append(call.what)
                if call.is_overdue(self.patience_seconds):
                    _listeners.end(call)


class _Call:
    """One call that training waits for: a context manager around it."""

    def __init__(self, dog: Watchdog, what: str) -> None:
        self.what = what
        self.thread = threading.get_ident()
        self.told_after = HANG_SECONDS
        self.ends = False
        self._dog = dog
        self._caller = ""
        self._before: _Call | None = None
        self._since = self._looked = self._worked = 0.0
        self._used: float | None = None

    def __enter__(self) -> None:
        self._caller = sys._getframe(1).f_code.co_filename
        self._since = self._looked = self._worked = time.monotonic()
        self._before = self._dog._enter(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.ends = False
        self._dog._leave(self, self._before)
        if isinstance(error, _OverdueError):
            raise HungError(
                f"{self.what} did not come back in {self.seconds:.0f} s and was ended; if it needs "
                "longer, raise patience_seconds"
            ) from None

    @property
    def seconds(self) -> float:
        """How long it has taken so far."""
        return time.monotonic() - self._since

    def look(self) -> None:
        """See whether the main thread, if this is its call, has worked since the last look."""
        if self.thread != threading.main_thread().ident:
            return  # another cannot be ended, and may be gone
        used, now = _processor_seconds(self.thread), time.monotonic()
        if self._used is None or used - self._used > STILL * (now - self._looked):
            self._worked = now
        self._used, self._looked = used, now

    def is_overdue(self, patience: float) -> bool:
        """Whether it has stood still for too long, or has worked for much too long."""
        if self.thread != threading.main_thread().ident:
            return False
        still = self._looked - self._worked
        return still >= patience or self.seconds >= PATIENCE_WITH_WORK * patience

    def is_at(self, frame: FrameType | None) -> bool:
        """Whether a frame is the user's code, and nothing of ours is between it and the call."""
        if frame is None or _is_ours(frame):
            return False
        while frame is not None and not _is_ours(frame):
            frame = frame.f_back
        return frame is not None and frame.f_code.co_filename == self._caller


class _Listeners:
    """The handler of the signal, there while anybody watches, and the call that it is to end."""

    def __init__(self) -> None:
        self._num = 0
        self._call: _Call | None = None

    def join(self) -> None:
        """Listen. Called by the main thread; where the user listens himself, nothing is done."""
        self._num += 1
        if SIGNAL and signal.getsignal(SIGNAL) is signal.SIG_DFL:
            signal.signal(SIGNAL, self._handle)

    def leave(self) -> None:
        """The last one puts the signal back. Called by the main thread."""
        self._num -= 1
        if self._num == 0 and self._is_there():
            signal.signal(SIGNAL, signal.SIG_DFL)

    def end(self, call: _Call) -> None:
        """Let a call of the main thread end, if it is at a place where that is safe."""
        if not self._is_there() or _in_a_group():
            return
        if call.is_at(sys._current_frames().get(call.thread)):
            call.ends, self._call = True, call
            signal.pthread_kill(call.thread, SIGNAL)

    def _is_there(self) -> bool:
        return bool(SIGNAL) and signal.getsignal(SIGNAL) == self._handle

    def _handle(self, _: int, frame: FrameType | None) -> Any:
        # Where it is now counts, not where it was when the signal was sent.
        if (call := self._call) is not None and call.ends and call.is_at(frame):
            raise _OverdueError


_listeners = _Listeners()


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()


def _is_ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] == PACKAGE


def _in_a_group() -> bool:
    """Whether other processes train along: to leave what they wait for would part them."""
    dist: Any = sys.modules.get("torch.distributed")
    if dist is None or not dist.is_available() or not dist.is_initialized():
        return False
    return bool(dist.get_world_size() > 1)


def _processor_seconds(thread: int) -> float:
    """What a thread has used; more each time where the system does not say."""
    clock = getattr(time, "pthread_getcpuclockid", None)
    return time.clock_gettime(clock(thread)) if clock is not None else time.monotonic()


def _place(thread: int) -> str:
    """Where a thread stands: its innermost line."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return "an unknown place"
    last = traceback.extract_stack(frame)[-1]
    return f"{last.filename}:{last.lineno}, in {last.name}"
