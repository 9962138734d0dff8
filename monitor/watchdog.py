"""Names what hangs: training stands still in a measurement or a sink, and nobody would know why."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
import traceback
from collections.abc import Iterator

log = logging.getLogger("phasewatch")

HANG_SECONDS = 20.0
"""After so long in one call it is told what training waits for; again after each doubling."""

LOOK_SECONDS = 1.0


class Watchdog:
    """Looks from a thread of its own at what the training thread is busy with."""

    def __init__(self) -> None:
        self._busy: tuple[str, float, int] | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.told: list[str] = []

    @contextlib.contextmanager
    def over(self, what: str) -> Iterator[None]:
        """Say that this thread is busy with something; calls may be nested."""
        before = self._busy
        self._busy = (what, time.monotonic(), threading.get_ident())
        if self._thread is None:
            self._start()
        try:
            yield
        finally:
            self._busy = before

    def close(self) -> None:
        """Look no more."""
        self._stop.set()
        self._thread = None

    def _start(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._look, args=(self._stop,), name="phasewatch-watchdog", daemon=True
        )
        self._thread.start()

    def _look(self, stop: threading.Event) -> None:
        seen: tuple[str, float, int] | None = None
        patience = HANG_SECONDS
        while not stop.wait(min(LOOK_SECONDS, HANG_SECONDS / 4)):
            busy = self._busy
            if busy is None:
                continue
            if busy is not seen:
                seen, patience = busy, HANG_SECONDS
            what, since, thread = busy
            if (seconds := time.monotonic() - since) >= patience:
                patience *= 2
                self.told.append(what)
                log.warning(
                    "training has waited %.0f s for %s, and still does; it stands at %s",
                    seconds,
                    what,
                    _place(thread),
                )


def _place(thread: int) -> str:
    """Where a thread stands: its innermost line."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return "an unknown place"
    last = traceback.extract_stack(frame)[-1]
    return f"{last.filename}:{last.lineno}, in {last.name}"
