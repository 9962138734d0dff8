"""Abrupt changes of a logged stream: the detector of what a run logs, whatever its name.

Two rules read the stream side by side, and neither can silence the other:

- `slope_shift` knows falls of values of at least 0 by their slope, at any time scale, and their
  rises by half a decade;
- `local_change` compares the latest values with those just before them, both ways, on the scale
  that fits the values. Falls of losses it tells only where it is all but certain: on the recorded
  losses the two as equals find less of them than that one alone.

What both see is told once, by the one that sees it first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from phasewatch.detectors.base import BaseDetector, require
from phasewatch.detectors.online.local_change import LocalChange
from phasewatch.detectors.online.slope_shift import SlopeShift
from phasewatch.detectors.statistics.windows import Level, TwinLines
from phasewatch.detectors.types import Alarm, AlarmKind, Direction

USUAL = 0.1
"""False alarms in a run that the local rule's certainty was chosen for."""

FIRST, STRICT = 1000, 1.4
"""From so many points on, `slope_shift` is as strict as was ever simulated; from the first on where
fewer false alarms than usual are allowed."""

FALLS = 2.5
"""Further log-odds for a fall of positive values: most of losses `slope_shift` tells better."""

SAME = 1.25
"""A fall is the one that was told if it began at most so many of its own lengths before that."""


class _Falls(SlopeShift):
    """The same, stricter in long streams."""

    @property
    def falling(self) -> bool:
        """Whether it is inside a fall, which it always tells of."""
        return self._falling is not None

    def _surprise(self, level: Level, window: TwinLines, excess: float, past: float) -> float:
        stricter = max(STRICT / self._strictness, 1.0) if self._count > FIRST else 1.0
        return super()._surprise(level, window, excess, past) / stricter


class AbruptChange(BaseDetector):
    """Detects abrupt changes of any stream of numbers, both ways.

    It needs no name, unit or range. An alarm says which rule spoke.

    Args:
        certainty: Log-odds from which on `local_change` alarms, up to 1000 points.
        falls: Further log-odds that it needs for a fall of values above 0, so that most are left to
            `slope_shift`.
        gate: Smallest fall that `slope_shift` tells of, in dex.
        false_alarms: How many a run may have; a tenth of them asks for tenfold odds.
        min_effect: Smallest change that counts, in the stream's own unit.

    Raises:
        ValueError: A parameter is out of its range.

    Example:
        >>> detector = AbruptChange()
        >>> curve = [1.2, 1.21, 1.19] * 20 + [2.0, 2.01, 1.99] * 20
        >>> alarms = [detector.update(step, value) for step, value in enumerate(curve)]
        >>> [(alarm.onset_step, alarm.direction.value) for alarm in alarms if alarm]
        [(60, 'up')]
    """

    name = "abrupt_change"

    def __init__(
        self,
        *,
        certainty: float = 2.5,
        falls: float = FALLS,
        gate: float = 0.1,
        false_alarms: float = USUAL,
        min_effect: float = 0.0,
    ) -> None:
        require(false_alarms > 0.0, "false_alarms", false_alarms, "above 0")
        self._local = LocalChange(
            certainty=certainty,
            strictness=math.log(USUAL / false_alarms),
            min_effect=min_effect,
            falls=falls,
        )
        self._slopes = _Falls(gate=gate, strictness=STRICT if false_alarms < USUAL else 1.0)
        self._min_effect = min_effect
        super().__init__(
            {
                "certainty": certainty,
                "falls": falls,
                "gate": gate,
                "false_alarms": false_alarms,
                "min_effect": min_effect,
            }
        )

    @property
    def min_points(self) -> int:
        """Fewest points with which it can alarm."""
        return min(self._local.min_points, self._slopes.min_points)

    @property
    def statistic(self) -> float:
        """The larger of the two rules' statistics."""
        return max(self._local.statistic, self._slopes.statistic if self._positive else 0.0)

    @property
    def _in_episode(self) -> bool:
        return self._local.active or (self._positive and self._sliding)

    @property
    def _sliding(self) -> bool:
        """Whether `slope_shift` is inside a fall, or inside a rise that it was the one to tell of.

        A rise that ends high is long an instability to it, and would hide what comes next.
        """
        return self._slopes.falling or (self._rise_told and self._slopes.active)

    def _reset(self) -> None:
        self._local.reset()
        self._slopes.reset()
        self._positive = True
        self._rise_told = False
        self._told = dict.fromkeys(Direction, -math.inf)

    def _observe(self, step: int, value: float, stderr: float | None) -> Alarm | None:
        self._positive = self._positive and value >= 0.0
        sliding = self._positive and self._sliding
        fall = self._slopes.update(step, value, stderr) if self._positive else None
        near = self._local.update(step, value, stderr)
        self._rise_told = self._rise_told and self._slopes.active
        if fall is not None:
            self._local.forget(fall.run_length)
        falling = sliding and near is not None and near.direction is Direction.DOWN
        if near is not None and not falling and not self._is_told(near):
            self._told[near.direction] = self._num_points
            return near
        if fall is None or self._is_told(fall):
            return None
        if abs(fall.value_after - fall.value_before) < self._min_effect:
            return None
        self._told[fall.direction] = self._num_points
        self._rise_told = fall.kind is AlarmKind.INSTABILITY
        return replace(
            fall,
            effect=fall.value_after - fall.value_before,
            rule="slope of a fall" if fall.kind is AlarmKind.SHIFT else "rise by half a decade",
        )

    def _is_told(self, alarm: Alarm) -> bool:
        """Whether the other rule has told of this change already."""
        told = self._told[alarm.direction]
        return told >= self._num_points - SAME * alarm.run_length

    def finish(self) -> Alarm | None:
        """The stream is over: an alarm for what was pending, if it is likely enough."""
        return None if self.active else self._local.finish()

    def _state(self) -> dict[str, Any]:
        told = {direction.value: at for direction, at in self._told.items() if at >= 0}
        return {
            "local": self._local.state_dict(),
            "slopes": self._slopes.state_dict(),
            "told": told,
            "positive": self._positive,
            "rise_told": self._rise_told,
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        self._local.load_state_dict(state["local"])
        self._slopes.load_state_dict(state["slopes"])
        self._positive = bool(state["positive"])
        self._rise_told = bool(state.get("rise_told", False))
        self._told.update((Direction(key), at) for key, at in state["told"].items())
