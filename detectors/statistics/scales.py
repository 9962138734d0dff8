"""The scale a stream is watched on: log10 for losses, as it is where values may be negative."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

from phasewatch.detectors.base import require

ScaleName = Literal["auto", "log", "linear"]

LARGEST_EXPONENT = 300.0
TINY = 1e-300


class StreamScale:
    """Takes values to the scale they are watched on, and back.

    Args:
        name: "log" takes log10(value + floor), a negative value counts as 0; "linear" takes the
            value; "auto" is "log" until the first negative value and "linear" from there on.
        floor: Losses below it count as equal, in the loss's unit; a loss of exactly 0 is legal.

    Attributes:
        linear: Whether values are taken as they are.
        lowest: Smallest scaled value so far.
        highest: Largest scaled value so far.

    Raises:
        ValueError: No scale of that name, or a floor that is not above 0.
    """

    __slots__ = ("_floor", "_name", "_started", "highest", "linear", "lowest")

    def __init__(self, name: ScaleName, floor: float) -> None:
        require(name in get_args(ScaleName), "scale", name, "'auto', 'log' or 'linear'")
        require(floor > 0.0, "floor", floor, "above 0")
        self._name, self._floor = name, floor
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.linear = self._name == "linear"
        self.restart()

    def restart(self) -> None:
        """Forget the range, not the scale."""
        self.lowest = self.highest = 0.0
        self._started = False

    def must_change(self, value: float) -> bool:
        """Whether "auto" changes to "linear" at this value; what was seen so far is then void."""
        if value >= 0.0 or self.linear or self._name != "auto":
            return False
        self.linear = True
        self.restart()
        return True

    def take(self, value: float) -> float:
        """The value on the scale; the range grows with it."""
        y = value if self.linear else math.log10(max(value, 0.0) + self._floor)
        if not self._started:
            self._started = True
            self.lowest = self.highest = y
        elif y < self.lowest:
            self.lowest = y
        elif y > self.highest:
            self.highest = y
        return y

    def back(self, y: float) -> float:
        """The value, in the stream's own unit, that lies at `y` on the scale."""
        return y if self.linear else max(10.0 ** min(y, LARGEST_EXPONENT) - self._floor, 0.0)

    @property
    def range(self) -> float:
        """Largest minus smallest scaled value so far."""
        return self.highest - self.lowest

    @property
    def unit(self) -> float:
        """What gates are measured in: a dex, or the largest size or range so far."""
        if not self.linear:
            return 1.0
        return max(self.range, abs(self.highest), abs(self.lowest), TINY)

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes."""
        return {
            "linear": self.linear, "range": [self.lowest, self.highest], "started": self._started,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.linear = bool(state["linear"])
        self.lowest, self.highest = state["range"]
        self._started = bool(state["started"])
