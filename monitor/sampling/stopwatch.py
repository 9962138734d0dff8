"""The time a measurement takes, where it is spread over the training: only its own counts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from phasewatch.monitor.core.work import Steps, T


class Stopwatch:
    """Seconds that a measurement was at work, pauses left out.

    Args:
        deadline_seconds: How many it should take at most.
        over: Whether it is to end at once, with what it has.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        deadline_seconds: float = math.inf,
        over: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.deadline_seconds = deadline_seconds
        self.over = over
        self._clock = clock
        self._before = 0.0
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds at work so far."""
        running = 0.0 if self._since is None else self._clock() - self._since
        return self._before + running

    @property
    def is_over(self) -> bool:
        """Whether it took all that it may, or is to end."""
        return self.seconds > self.deadline_seconds or self.over()

    def share_is_over(self, share: float) -> Callable[[], bool]:
        """Tells whether so large a share of what is left now is used up, or all is over."""
        until = self.seconds + share * max(self.deadline_seconds - self.seconds, 0.0)
        return lambda: self.seconds > until or self.is_over

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time inside."""
        self._since = self._clock()
        try:
            yield
        finally:
            self._before, self._since = self.seconds, None


def paced(
    steps: Steps[T],
    pause: Callable[[], bool],
    session: Callable[[], AbstractContextManager[None]],
) -> Steps[T]:
    """Take steps within a session, which is left at each pause.

    Args:
        steps: The measurement.
        pause: Asked after each step; then the session ends and the measurement waits.
        session: What must be in force while steps are taken.

    Returns:
        The same measurement, which yields only where it is asked to pause.
    """
    while True:
        with session():
            while True:
                try:
                    next(steps)
                except StopIteration as done:
                    result: T = done.value
                    return result
                if pause():
                    break
        yield
