"""Whether a loss has fallen for the first time: before that, weights are an initialisation."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from statistics import median

FEW = 8
"""Values that are looked at together, at the start and now."""

FALL = 0.1
"""Share of its first size by which a loss must have fallen."""


class FirstFall:
    """Compares the median of the latest values with that of the first.

    Example:
        >>> fall = FirstFall()
        >>> fall.seen_in([2.3] * 20), fall.seen_in([2.0] * 20)
        (False, True)
    """

    def __init__(self) -> None:
        self._first: list[float] = []
        self._latest: deque[float] = deque(maxlen=FEW)

    def seen_in(self, values: Sequence[float]) -> bool:
        """Take further values, in order; whether the loss has fallen by now."""
        finite = [value for value in values if math.isfinite(value)]
        self._first += finite[: FEW - len(self._first)]
        self._latest.extend(finite)
        if len(self._first) < FEW:
            return False
        start = median(self._first)
        return median(self._latest) < start - FALL * abs(start)
