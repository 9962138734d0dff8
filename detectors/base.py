"""The Detector contract, and what every detector does alike.

A detector reads one stream, a point at a time, in constant memory, and says `Alarm` once per
episode. Bad input never poisons it: a non-finite value, or a step that does not increase, is
skipped and counted; a run of non-finite values is itself an instability and alarmed as one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

from phasewatch.detectors.types import Alarm, AlarmKind, Direction

NONFINITE_RUN = 3
"""This many non-finite values in a row are an instability."""

GAPS = 2
"""A run of non-finite values must be longer than so many times the longest gap before: what a
logger writes between two evaluations is missing, not wrong."""

FINITE_RUN = 20
"""This many finite ones in a row end it: a stream that flickers is one instability, not many."""


class StateError(ValueError):
    """A saved state does not belong to this detector."""


@runtime_checkable
class Detector(Protocol):
    """What the monitor asks of a detector. `BaseDetector` gives most of it."""

    @property
    def active(self) -> bool:
        """Whether the stream is still inside the episode of the last alarm."""

    @property
    def statistic(self) -> float:
        """How strong the evidence for a change is now, in the unit of `threshold`."""

    @property
    def threshold(self) -> float:
        """The value of `statistic` from which on the detector may alarm."""

    @property
    def num_skipped(self) -> int:
        """Points that were not used: non-finite values and steps that did not increase."""

    def update(self, step: int, value: float, stderr: float | None = None) -> Alarm | None:
        """Take the next point; say an alarm once per episode.

        Args:
            step: Optimizer steps completed; increases from call to call.
            value: The value of the stream.
            stderr: Its standard error; None if it is exact or unknown.
        """

    def reset(self) -> None:
        """Forget everything: as good as new."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes, as plain containers that JSON can hold."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state, which is left unchanged."""


class BaseDetector(ABC):
    """Input guard, life cycle and state of a detector; subclasses hold the statistics.

    A subclass sets its frozen parameters in `__init__`, calls `super().__init__(parameters)` last
    and implements `_reset`, `_observe`, `_state`, `_load`, `_in_episode` and `statistic`.

    Attributes:
        name: Registered name.
        symmetric: Whether the negated stream gives the same alarms in the other direction.
    """

    name: ClassVar[str]
    symmetric: ClassVar[bool] = False

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        self._parameters = dict(parameters)
        self.reset()

    @property
    def parameters(self) -> dict[str, Any]:
        """The arguments this detector was made with; a copy."""
        return dict(self._parameters)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in self._parameters.items())
        return f"{type(self).__name__}({arguments})"

    @property
    def active(self) -> bool:
        """Whether the stream is still inside the episode of the last alarm."""
        return self._broken or self._in_episode

    @property
    def threshold(self) -> float:
        """The value of `statistic` from which on the detector may alarm."""
        return 1.0

    @property
    @abstractmethod
    def statistic(self) -> float:
        """How strong the evidence for a change is now; at least `threshold` at an alarm."""

    @property
    def num_skipped(self) -> int:
        """Points that were not used: non-finite values and steps that did not increase."""
        return self._num_skipped

    @property
    def min_points(self) -> int:
        """Fewest points with which it can alarm."""
        return 1

    @property
    def ready(self) -> bool:
        """Whether it has seen enough points to alarm; until then its silence says nothing."""
        return self._num_points >= self.min_points

    def reset(self) -> None:
        """Forget everything: as good as new."""
        self._num_points = self._num_skipped = 0
        self._last_step: int | None = None
        self._last_value = 0.0
        self._nonfinite = 0
        self._nonfinite_onset = 0
        self._finite = 0
        self._broken = False
        self._longest_gap = self._longest_finite = self._finite_now = 0
        self._infinite = False
        self._reset()

    def update(self, step: int, value: float, stderr: float | None = None) -> Alarm | None:
        """Take the next point.

        Args:
            step: Optimizer steps completed; must increase from call to call.
            value: The stream's value. Non-finite values are skipped and counted.
            stderr: Standard error of `value`, or None if it is exact or unknown.

        Returns:
            An alarm at the first point at which the detector is sure of a change; None otherwise,
            also for the rest of the same episode.
        """
        if self._last_step is not None and step <= self._last_step:
            self._num_skipped += 1
            return None
        self._last_step = step
        if not math.isfinite(value):
            self._infinite = math.isinf(value)
            return self._skip(step)
        if self._nonfinite:
            self._longest_gap = max(self._longest_gap, self._nonfinite)
            self._nonfinite = 0
        self._num_points += 1
        if self._longest_finite < NONFINITE_RUN:
            self._finite_now += 1
            self._longest_finite = max(self._longest_finite, self._finite_now)
        self._last_value = value
        if self._broken:
            self._finite += 1
            self._broken = self._finite < FINITE_RUN
        return self._observe(step, value, stderr)

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes, as plain containers that JSON can hold."""
        return {
            "detector": self.name,
            "parameters": self.parameters,
            "num_points": self._num_points,
            "num_skipped": self._num_skipped,
            "last_step": self._last_step,
            "last_value": self._last_value,
            "nonfinite": [self._nonfinite, self._nonfinite_onset, self._finite, self._broken],
            "gaps": [self._longest_gap, self._longest_finite, self._finite_now],
            "state": self._state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state, which is left unchanged.

        Raises:
            StateError: The state comes from another detector, or from other parameters.
        """
        for key, mine in (("detector", self.name), ("parameters", _plain(self._parameters))):
            theirs = _plain(state.get(key))
            if theirs != mine:
                raise StateError(
                    f"the saved state is of {key} {theirs!r}, this is {mine!r}: make the detector "
                    "as it was when the state was saved, or start it afresh"
                )
        self.reset()
        self._num_points = int(state["num_points"])
        self._num_skipped = int(state["num_skipped"])
        self._last_step = state["last_step"]
        self._last_value = float(state["last_value"])
        self._nonfinite, self._nonfinite_onset, self._finite, self._broken = state["nonfinite"]
        gaps = state.get("gaps", [0, min(self._num_points, NONFINITE_RUN), 0])
        self._longest_gap, self._longest_finite, self._finite_now = gaps
        self._load(state["state"])

    def clone(self) -> Self:
        """A fresh detector with the same parameters."""
        return type(self)(**self._parameters)

    @property
    def undefined(self) -> bool:
        """Whether there were values, and never a finite one: no change can be seen in them."""
        return self._num_points == 0 and self._num_skipped > 0

    def _skip(self, step: int) -> Alarm | None:
        """Count a non-finite value; a run of them after finite ones is an instability.

        Three in a row, and twice the longest gap before. A stream that was never finite is
        undefined; one whose finite values always stood alone is logged with gaps: unless it
        becomes infinite, nobody can tell a value gone wrong from one that is missing.
        """
        self._num_skipped += 1
        self._finite = self._finite_now = 0
        if self._nonfinite == 0:
            self._nonfinite_onset = step
        self._nonfinite += 1
        sparse = self._longest_finite < NONFINITE_RUN and not self._infinite
        needed = max(NONFINITE_RUN, GAPS * self._longest_gap + 1)
        if self._nonfinite < needed or self._broken or self._num_points == 0 or sparse:
            return None
        self._broken = True
        return Alarm(
            detected_step=step,
            onset_step=self._nonfinite_onset,
            direction=Direction.UP,
            kind=AlarmKind.INSTABILITY,
            score=self._nonfinite / needed,
            run_length=self._nonfinite,
            value_before=self._last_value,
            value_after=self._last_value,
        )

    @property
    @abstractmethod
    def _in_episode(self) -> bool:
        """Whether an episode of finite values is on."""

    @abstractmethod
    def _reset(self) -> None:
        """Forget everything."""

    @abstractmethod
    def _observe(self, step: int, value: float, stderr: float | None) -> Alarm | None:
        """Take a finite value at a step beyond the last."""

    @abstractmethod
    def _state(self) -> dict[str, Any]:
        """The subclass's part of the state."""

    @abstractmethod
    def _load(self, state: Mapping[str, Any]) -> None:
        """Take over the subclass's part of the state."""


def _plain(value: Any) -> Any:
    """The value as JSON would give it back: tuples are lists."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Refuse a parameter.

    Args:
        condition: What must hold.
        name: Name of the parameter.
        value: The value received.
        allowed: What is allowed, in words.

    Raises:
        ValueError: The condition does not hold; the message names parameter, value and range.
    """
    if not condition:
        raise ValueError(f"{name} is {value!r}, but must be {allowed}")
