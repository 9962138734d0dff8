"""A detector of one's own: one class, one entry point."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from phasewatch.detectors import Alarm, AlarmKind, BaseDetector, Direction


class Crossing(BaseDetector):
    """Alarms when the stream leaves its first value by `ratio`, and again once it has come back."""

    name = "crossing"

    def __init__(self, ratio: float = 0.3) -> None:
        self._ratio = ratio
        super().__init__({"ratio": ratio})

    @property
    def statistic(self) -> float:
        if self._first is None:
            return 0.0
        return abs(self._last_value - self._first) / (self._ratio * abs(self._first) or 1.0)

    @property
    def _in_episode(self) -> bool:
        return self._away

    def _reset(self) -> None:
        self._first: float | None = None
        self._away = False

    def _observe(self, step: int, value: float, stderr: float | None) -> Alarm | None:
        if self._first is None:
            self._first = value
        was_away, self._away = self._away, self.statistic >= 1.0
        if was_away or not self._away:
            return None
        return Alarm(
            detected_step=step,
            onset_step=step,
            direction=Direction.UP if value > self._first else Direction.DOWN,
            kind=AlarmKind.SHIFT,
            score=self.statistic,
            run_length=1,
            value_before=self._first,
            value_after=value,
        )

    def _state(self) -> dict[str, Any]:
        return {"first": self._first, "away": self._away}

    def _load(self, state: Mapping[str, Any]) -> None:
        self._first, self._away = state["first"], state["away"]
