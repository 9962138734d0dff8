"""The life of an instability: a stream shot up, and is not itself again until it has come to rest.

It goes on while the stream makes new highs, or new lows on its way down, and for `quiet` points
without either; `PATIENCE` times as long while the stream is still up there, and at least as long as
half the time it has lasted. It ends at once where the stream falls through the level it came from:
what happens there is new.

An instability that begins soon after another is the same one, told once. Soon is 16 times `quiet`
points, and `PATIENCE` times more after each that was told, so that a stream that spikes for ever is
told about a few times only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PATIENCE = 4
MAX_TOLD = 6
"""Alarms after which the time no longer grows."""


class Instability:
    """Whether a stream is inside an instability, and whether that one is news.

    Args:
        quiet: Points without movement that end it.

    Attributes:
        on: Whether it goes on.
    """

    __slots__ = (
        "_base", "_began", "_high", "_low", "_quiet", "_same_until", "_still", "_told",
        "on",
    )  # fmt: skip

    def __init__(self, quiet: int) -> None:
        self._quiet = quiet
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.on = False
        self._base = self._high = self._low = 0.0
        self._began = self._still = self._told = self._same_until = 0

    def begin(self, count: int, base: float, high: float) -> bool:
        """Enter one at point `count`; say whether it is news.

        Args:
            count: Points so far.
            base: Level before the rise, on the detector's scale.
            high: Highest point so far.
        """
        news = count >= self._same_until
        if news and self._told < MAX_TOLD:
            self._told += 1
        self.on = True
        self._began, self._base = count, base
        self._high = self._low = high
        self._still = 0
        return news

    def follow(self, count: int, value: float, latest: float, gate: float) -> None:
        """Take the next point.

        Args:
            count: Points so far.
            value: The point, on the detector's scale.
            latest: Level of the last few points.
            gate: How far the stream must fall below its base to be through it; half of it below
                the last low is a new low.
        """
        self._still += 1
        if value > self._high:
            self._high = self._low = value
            self._still = 0
        elif latest < self._low - gate / 2.0:
            self._low = latest
            self._still = 0
        up = latest > (self._base + self._high) / 2.0
        wait = max(self._quiet * (PATIENCE if up else 1), (count - self._began) // 2)
        self.on = self._still < wait and latest >= self._base - gate
        self._same_until = count + self._quiet * PATIENCE ** (self._told + 1)

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes."""
        return {
            "on": self.on,
            "levels": [self._base, self._high, self._low],
            "counts": [self._began, self._still, self._told, self._same_until],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.on = bool(state["on"])
        self._base, self._high, self._low = state["levels"]
        self._began, self._still, self._told, self._same_until = state["counts"]
