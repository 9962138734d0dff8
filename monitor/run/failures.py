"""What a failure of the monitor does: it is caught, counted, told once, and followed by a pause."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager

from phasewatch.monitor.core.health import Health

log = logging.getLogger("phasewatch")

MAX_BACKOFF = 10
"""After k failures in a row 2^k steps pass before the next try, k up to this."""

MONITOR = "monitor"
"""Under this name failures outside of any observable are counted."""


class Failures:
    """Keeps failures of the monitor away from the training, for any kind of loop.

    Args:
        health: Where they are counted.

    Attributes:
        resumes_at: First step at which anything is tried again.
    """

    def __init__(self, health: Health) -> None:
        self._health = health
        self._in_row = 0
        self._told: set[str] = set()
        self.resumes_at: float = -math.inf

    @contextmanager
    def surviving(self, step: int, *, backs_off: bool = False) -> Iterator[None]:
        """Catch what is raised inside, but for interrupts.

        Args:
            step: Optimizer steps completed.
            backs_off: Whether growing gaps follow; a success ends them.
        """
        try:
            yield
        except Exception as error:
            self.record(step, error)
        else:
            if backs_off:
                self._in_row = 0

    def record(self, step: int, error: Exception) -> None:
        """Count a failure, say the first of its kind, and leave a gap before the next try."""
        self._in_row += 1
        self._health.measurement_failures[MONITOR] += 1
        self.resumes_at = step + 2 ** min(self._in_row, MAX_BACKOFF)
        self.tell_once(
            f"failure {type(error).__name__}",
            f"the monitor failed at step {step} ({type(error).__name__}: {error}); training goes "
            "on, further failures are counted in phasewatch_measurement_failures_total",
        )
        log.debug("the failure in full", exc_info=error)

    def tell_once(self, key: str, message: str) -> None:
        """Log a warning, the first time."""
        if key not in self._told:
            self._told.add(key)
            log.warning("%s", message)
