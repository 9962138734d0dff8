"""What the detectors on detrended residuals share: when evidence becomes an alarm, and its end.

A recursion (CUSUM, Page–Hinkley, FOCuS, BOCPD) turns residuals into a statistic, the side the
stream moved to and the points since the change. Its evidence becomes an alarm when

- the statistic passes the threshold, and the change is at least 3 points old;
- effect: all of the last three values have left the line through the points before the change by
  `gate` (in dex; or 3 % of the range so far, if that is more), and have moved that way by half as
  much. A spike is gone by then, and a curve that flattens has not fallen.

A rise on the log scale by `RISE` (0.5 dex) or more is an instability: a loss that shoots up has not
learnt anything. Evidence that moves nothing within `PATIENCE` points is dropped. The episode ends
when the residuals have been calm for `CALM_POINTS` points and the speed is below `RELEASE` of its
peak, and after `LONGEST` points in any case; the recursion then starts afresh.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Mapping
from typing import Any, Protocol

from phasewatch.detectors.base import BaseDetector, require
from phasewatch.detectors.statistics.detrend import Detrend
from phasewatch.detectors.statistics.scales import StreamScale
from phasewatch.detectors.types import Alarm, AlarmKind, Direction

MIN_RUN = 3
"""Points a change must have lasted."""

HISTORY = 128
"""Values kept to place the onset and to measure the change."""

GATE_SHARE = 0.03
"""Smallest change as a share of the range so far."""

RISE = 0.5
"""Smallest rise of a loss that is an instability, in dex."""

PATIENCE = 40
"""Points in which evidence must show an effect."""

CALM = 3.0
"""Residuals below it are calm."""

CALM_POINTS = 20
"""Calm points in a row that end an episode, if the change has slowed down."""

LONGEST = 250
"""Points after which an episode ends whatever the stream does."""

RELEASE = 0.35
"""Share of the peak speed below which a change is over."""


class Recursion(Protocol):
    """A sequential test on numbers that have mean 0 and scale 1 while nothing changes."""

    @property
    def statistic(self) -> float:
        """How strong the evidence for a change is."""

    @property
    def sign(self) -> int:
        """1 if the stream moved up, −1 if down."""

    @property
    def run_length(self) -> int:
        """Points since the change, the latest included."""

    def update(self, z: float) -> None:
        """Take the next number."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""


class ResidualDetector(BaseDetector):
    """Detects changes in detrended residuals; a subclass gives the recursion and its threshold.

    Args:
        parameters: All arguments of the subclass, by name; those below must be among them.
            gate: Smallest change, in dex; on the linear scale in shares of the largest size so far.
            trend: Points of the local line.
            scale: "log", "linear" or "auto"; see `StreamScale`.
            floor: Losses below it count as equal, in the loss's unit.

    Raises:
        ValueError: A parameter is out of its range.
    """

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        self._gate: float = parameters["gate"]
        require(self._gate > 0.0, "gate", self._gate, "above 0")
        self._trend: int = parameters["trend"]
        self._scale = StreamScale(parameters["scale"], parameters["floor"])
        super().__init__(parameters)

    @abstractmethod
    def _recursion(self) -> Recursion:
        """A fresh recursion."""

    @property
    def statistic(self) -> float:
        """How strong the evidence is; it alarms only if there is an effect as well."""
        return self._test.statistic

    @property
    def _in_episode(self) -> bool:
        return self._peak is not None

    def _reset(self) -> None:
        self._scale.reset()
        self._restart()

    def _restart(self) -> None:
        """Forget the points, not the scale."""
        self._detrend = Detrend(self._trend)
        self._points: deque[tuple[int, float, float, float]] = deque(maxlen=HISTORY)
        self._end()

    def _end(self) -> None:
        """Leave an episode, or drop what came to nothing: the recursion starts afresh."""
        self._test = self._recursion()
        self._peak: float | None = None
        self._calm = self._waited = 0

    def _observe(self, step: int, value: float, stderr: float | None) -> Alarm | None:  # noqa: ARG002
        if self._scale.must_change(value):
            self._restart()
        y = self._scale.take(value)
        z = self._detrend.update(step, y, self._scale.unit)
        self._points.append((step, y, self._detrend.forecast, self._detrend.slope))
        if z is None:
            return None
        if self._peak is not None:
            self._follow(z, self._peak)
            return None
        self._test.update(z)
        if self._test.statistic < self.threshold:
            self._waited = 0
            return None
        return self._weigh(step)

    def _weigh(self, step: int) -> Alarm | None:
        """The evidence is there: an alarm if there is an effect too."""
        alarm = self._alarm(step) if self._test.run_length >= MIN_RUN else None
        self._waited += 1
        if alarm is not None:
            self._peak, self._calm, self._waited = abs(self._detrend.slope), 0, 0
        elif self._waited >= PATIENCE:
            self._end()
        return alarm

    def _alarm(self, step: int) -> Alarm | None:
        sign = self._test.sign
        back = min(self._test.run_length, len(self._points))
        onset, _, level, slope = self._points[-back]
        carried_on = level + slope * (step - onset)
        latest = sorted(self._points[-i][1] for i in range(1, MIN_RUN + 1))
        least = latest[0] if sign > 0 else latest[-1]
        gate = max(self._gate * self._scale.unit, GATE_SHARE * self._scale.range)
        if not min(sign * (least - carried_on), sign * 2.0 * (least - level)) >= gate:
            return None
        now = latest[MIN_RUN // 2]
        wild = sign > 0 and not self._scale.linear and now - level >= RISE
        return Alarm(
            detected_step=step,
            onset_step=onset,
            direction=Direction.UP if sign > 0 else Direction.DOWN,
            kind=AlarmKind.INSTABILITY if wild else AlarmKind.SHIFT,
            score=self._test.statistic / self.threshold,
            run_length=back,
            value_before=self._scale.back(level),
            value_after=self._scale.back(now),
        )

    def _follow(self, z: float, peak: float) -> None:
        """End the episode once the residuals are calm and the change has slowed down."""
        speed = abs(self._detrend.slope)
        self._peak = max(speed, peak)
        self._calm = self._calm + 1 if abs(z) < CALM else 0
        self._waited += 1
        over = self._calm >= CALM_POINTS and speed < RELEASE * self._peak
        if over or self._waited >= LONGEST:
            self._end()

    def _state(self) -> dict[str, Any]:
        return {
            "scale": self._scale.state_dict(),
            "detrend": self._detrend.state_dict(),
            "points": [list(point) for point in self._points],
            "test": self._test.state_dict(),
            "episode": [self._peak, self._calm, self._waited],
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        self._scale.load_state_dict(state["scale"])
        self._detrend.load_state_dict(state["detrend"])
        self._points.extend(tuple(point) for point in state["points"])
        self._test.load_state_dict(state["test"])
        self._peak, self._calm, self._waited = state["episode"]
