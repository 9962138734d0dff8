"""Hearing, while a measurement runs, that the process is asked to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    if hasattr(signal, name)
)
"""By these a scheduler or a person asks a run to stop, or to save itself."""


class Interrupts:
    """Whether the run was asked to stop: then what is being measured is left at once.

    The handlers of the training (Lightning's, a scheduler's plugin, the user's own) run as ever:
    while a measurement runs they are called by one of ours, which takes note. A signal without a
    handler in Python is left alone.

    Args:
        asked: Whether the training itself has heard already.
    """

    def __init__(self, asked: Callable[[], bool] = lambda: False) -> None:
        self._asked = asked
        self._heard = False

    @property
    def requested(self) -> bool:
        """Whether anybody asked."""
        return self._heard or self._asked()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take note of signals inside. Signals reach the main thread only; elsewhere: nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        ours: dict[int, tuple[Any, Any]] = {}
        try:
            for number in SIGNALS:
                theirs = signal.getsignal(number)
                if callable(theirs):
                    mine = self._noting(theirs)
                    ours[number] = (theirs, mine)
                    signal.signal(number, mine)
            yield
        finally:
            for number, (theirs, mine) in ours.items():
                if signal.getsignal(number) is mine:  # else a handler has put another in its place
                    signal.signal(number, theirs)

    def _noting(self, theirs: Callable[[int, FrameType | None], Any]) -> Callable[..., Any]:
        def handler(number: int, frame: FrameType | None) -> Any:
            self._heard = True
            return theirs(number, frame)

        return handler
