"""The ledger of a run: what monitoring may take, and what it took."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

GRACE_SECONDS = 1.9
"""Over any window of a run monitoring takes its share of the window, and so much more at most: two
seconds, with what the evaluation that was under way when they were used up went over."""


class Budget:
    """Seconds that monitoring may spend: a bucket that wall time fills.

    Each second of wall time earns `share` seconds; the bucket holds `GRACE_SECONDS` at most, and is
    full at the start. So over any window of t seconds at most share · t + `GRACE_SECONDS` are
    spent, but for what the last evaluation in it went over.

    Args:
        share: Share of wall time, in (0, 1]; 1 is no budget.
        clock: Monotonic seconds.

    Example:
        >>> now = [0.0]
        >>> budget = Budget(0.05, clock=lambda: now[0])
        >>> budget.start()
        >>> with budget.spending():
        ...     now[0] += 3.0
        >>> round(budget.level, 3), budget.seconds
        (-0.95, 3.0)
    """

    def __init__(self, share: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self.share = share
        self.clock = clock
        self.capacity = GRACE_SECONDS
        self._level = self.capacity
        self._level_at = self._started = clock()
        self._spent = 0.0
        self._spent_before = 0.0
        self._free = 0.0
        self._depth = 0
        self._since: float | None = None

    @property
    def limited(self) -> bool:
        """Whether there is a budget at all."""
        return self.share < 1.0

    def start(self) -> None:
        """Begin the ledger of an attempt: everything from here on is in it."""
        self._started = self._level_at = self.clock()
        self._level = self.capacity
        self._spent_before += self._spent
        self._spent = 0.0

    @property
    def level(self) -> float:
        """Seconds that may be spent now; inf without a budget, below zero when overspent."""
        if not self.limited:
            return math.inf
        self._earn()
        running = 0.0 if self._since is None else self.clock() - self._since
        return self._level - running

    def _earn(self) -> None:
        now = self.clock()
        earned = self.share * (now - self._level_at)
        self._level_at = now
        # What is being spent at this moment has left the bucket already, and makes room in it.
        running = 0.0 if self._since is None else now - self._since
        self._level = min(self._level + earned, self.capacity + running)

    def seconds_until(self, level: float) -> float:
        """Wall time after which so much may be spent; inf where the bucket never holds it."""
        missing = level - self.level
        if missing <= 0:
            return 0.0
        return math.inf if level > self.capacity else missing / self.share

    def enlarge(self, seconds: float) -> None:
        """Let the bucket hold what one evaluation takes, where that is more than the grace."""
        self.capacity = max(self.capacity, seconds)

    @property
    def elapsed(self) -> float:
        """Wall time since the start."""
        return self.clock() - self._started

    @property
    def total_seconds(self) -> float:
        """All time spent on monitoring, earlier attempts in this process included."""
        return self._spent_before + self.seconds

    @property
    def seconds(self) -> float:
        """Time spent on monitoring since the start."""
        running = 0.0 if self._since is None else self.clock() - self._since
        return self._spent + running

    @property
    def overhead_ratio(self) -> float:
        """Time spent on monitoring over wall time, both since the start."""
        elapsed = self.elapsed
        return self.seconds / elapsed if elapsed > 0 else 0.0

    def left_until(self, seconds: float) -> float:
        """What may be spent between now and `seconds` from now, all in all."""
        return self.level + self.share * seconds if self.limited else math.inf

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Count the time inside. Re-entrant: nested uses count once."""
        if self._depth:
            yield
            return
        self._earn()
        self._depth = 1
        self._since = self.clock()
        try:
            yield
        finally:
            took = self.clock() - self._since
            self._earn()
            self._since = None
            self._depth = 0
            self._spent += took
            self._level -= max(0.0, took - self._free)
            self._free = 0.0

    def spend_beside(self, seconds: float) -> None:
        """Book what another thread took beside the training."""
        self._spent += seconds
        self._level -= seconds

    @contextmanager
    def held_back(self, seconds: float) -> Iterator[None]:
        """Keep so much for what comes after: inside, it is as if it were spent."""
        self._level -= seconds
        try:
            yield
        finally:
            self._level += seconds

    def lift(self, seconds: float) -> None:
        """Of what is being spent, so much is not taken from the bucket: it was asked for."""
        self._free += seconds
