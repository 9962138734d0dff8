"""One level of a stream: its latest values, and forecasts that say when a look is worth its time.

`local_change` keeps a stream at levels. At each, Holt's forecasts of the values and of their
logarithms run along; where one is surprised, or a value lies outside of all those just before it,
the level asks for looks at the values that follow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from phasewatch.detectors.statistics.local_features import NEW, Past
from phasewatch.detectors.statistics.packed import pack, unpack

KEEP_POINTS, KEEP, SLACK = 128, 64, 32
"""Single points and values of coarser levels that are kept, and how many more before a cut."""

WEIGHT, TREND_WEIGHT, ERROR_MEMORY = 0.3, 0.05, 20.0
"""Holt's exponential smoothing: weights of level and trend, memory of the mean error."""

SURPRISE, RUN = 3.2, 4.0
"""Errors of a forecast, and decaying sums of them, from which on a look is worth its time."""

RUN_DECAY = 0.7
"""A sum of errors keeps this share of itself from value to value."""

AGES = sum(1 << age for age in (0, 1, 2, 3, 5, 8, 13))
"""Values after a surprise at which it is looked at, as bits."""

LEAP = 0.5
"""A value outside of the range of those just before it, by this share of it, is worth one too."""

MARGIN, NEARBY = 0.25, 12
"""A look needs a mean of new values outside the range of so many before, by this share of it."""

HELD = 16
"""Latest errors that are held back from what is usual: a change does not hide itself."""

LATEST, LATEST_RUNS = 14, 3
"""Latest errors, and sums of them, that a look calls those of now."""

FORGET = 0.997
"""What was usual forgets by this factor a value."""


class Forecast:
    """Holt's running forecast of a level, and how much each value surprised it."""

    __slots__ = (
        "count", "error", "latest", "recent", "run", "trend", "usual_run", "usual_surprise",
    )  # fmt: skip

    def __init__(self) -> None:
        self.recent: list[tuple[float, float]] = []
        self.count = 0
        self.latest = self.trend = self.error = self.run = 0.0
        self.usual_surprise = self.usual_run = 0.0

    def push(self, value: float) -> bool:
        """Take a value; says whether it surprises."""
        self.count += 1
        if self.count < 3:
            self.trend = 0.0 if self.count == 1 else value - self.latest
            self.error = abs(self.trend)
            self.latest = value
            return False
        # Every point of a run passes here, at both forecasts of each level: no further calls.
        off = value - self.latest - self.trend
        size = off if off >= 0.0 else -off
        error = self.error
        if error > 0.0:
            surprise = size / error
            self.error = error + ((size if surprise < 3.0 else 3.0 * error) - error) / ERROR_MEMORY
        else:
            surprise = 0.0 if size <= 1e-9 * abs(value) else 30.0
            self.error = error + size / ERROR_MEMORY
        pull = surprise if surprise < 4.0 else 4.0
        run = self.run = RUN_DECAY * self.run + (pull if off >= 0.0 else -pull)
        if run < 0.0:
            run = -run
        self.latest += self.trend + WEIGHT * off
        self.trend += TREND_WEIGHT * off
        recent = self.recent
        recent.append((surprise, run))
        if len(recent) > HELD:
            then, run_then = recent.pop(0)
            usual = FORGET * self.usual_surprise
            self.usual_surprise = then if then > usual else usual
            usual = FORGET * self.usual_run
            self.usual_run = run_then if run_then > usual else usual
        return run > RUN or surprise > SURPRISE

    def past(self) -> Past:
        """How the values surprised, now and before."""
        return Past(
            max((surprise for surprise, _ in self.recent[-LATEST:]), default=0.0),
            max((run for _, run in self.recent[-LATEST_RUNS:]), default=0.0),
            self.usual_surprise,
            self.usual_run,
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes."""
        return {
            "recent": pack([number for pair in self.recent for number in pair]),
            "count": self.count,
            "forecast": [self.latest, self.trend, self.error, self.run],
            "usual": [self.usual_surprise, self.usual_run],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        recent = unpack(state["recent"])
        self.recent = list(zip(recent[::2], recent[1::2], strict=True))
        self.count = state["count"]
        self.latest, self.trend, self.error, self.run = state["forecast"]
        self.usual_surprise, self.usual_run = state["usual"]


class WatchedLevel:
    """One level: its latest values, and the forecasts that say whether a look is due."""

    __slots__ = ("count", "due", "fold", "keep", "linear", "log", "steps", "values")

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self.values: list[float] = []
        self.steps: list[int] = []
        self.fold: list[float] = []
        self.count = self.due = 0
        self.linear, self.log = Forecast(), Forecast()

    def push(self, step: int, value: float) -> bool:
        """Take a value; says whether a look is due."""
        self.values.append(value)
        self.steps.append(step)
        if len(self.values) >= self.keep + SLACK:
            del self.values[:SLACK], self.steps[:SLACK]
        self.count += 1
        surprises = self.linear.push(value)
        if value > 0.0:
            surprises = self.log.push(math.log10(value)) or surprises
        if surprises or (self.count > 3 and self._leaps(value)):
            self.due |= AGES
        due = self.due & 1
        self.due >>= 1
        return bool(due)

    def _leaps(self, value: float) -> bool:
        """Whether the latest value lies far outside of those just before it.

        The errors of a forecast are long large after a turbulent start; the range nearby is not.
        """
        near = self.values[-1 - NEARBY : -1]
        low, high = min(near), max(near)
        beyond = LEAP * (high - low)
        return value > high + beyond or value < low - beyond

    def past(self, in_log: bool) -> Past:
        """How the values, or their logarithms, surprised a forecast, now and before."""
        return (self.log if in_log else self.linear).past()

    def stands_out(self, usable: int) -> bool:
        """Whether a mean of the latest values lies clearly outside of what was just before."""
        values = self.values
        for m in NEW:
            if 3 * m > usable:
                return False
            old = values[-m - min(NEARBY, usable - m) : -m]
            low, high = min(old), max(old)
            mean = values[-1] if m == 1 else sum(values[-m:]) / m
            beyond = MARGIN * (high - low)
            if mean > high + beyond or mean < low - beyond:
                return True
        return False

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes."""
        return {
            "values": pack(self.values[-self.keep :]),
            "steps": pack(self.steps[-self.keep :]),
            "fold": list(self.fold),
            "counts": [self.count, self.due],
            "linear": self.linear.state_dict(),
            "log": self.log.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.values = unpack(state["values"])
        self.steps = [int(step) for step in unpack(state["steps"])]
        self.fold = [float(value) for value in state["fold"]]
        self.count, self.due = state["counts"]
        self.linear.load_state_dict(state["linear"])
        self.log.load_state_dict(state["log"])
