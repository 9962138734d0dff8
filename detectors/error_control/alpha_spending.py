"""A detector that keeps to a number of false alarms, however long its stream gets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from phasewatch.detectors.base import Detector, StateError
from phasewatch.detectors.error_control.false_alarms import knob, threshold_for
from phasewatch.detectors.registry import create
from phasewatch.detectors.types import Alarm


class Budgeted:
    """A detector whose expected false alarms, over a stream of any length, stay within a number.

    Half of them go to the first `points` points, a quarter to as many again, an eighth to twice as
    many, and so on: a stream that outlasts its horizon is watched more strictly, and the sum never
    passes `false_alarms`. What it has seen is kept when the knob is turned.

    Args:
        name: The detector, one of `KNOBS`.
        false_alarms: Expected false alarms over the whole stream.
        points: Points the stream is expected to have.
        parameters: Further parameters of the detector.

    Raises:
        ValueError: There is no table for that detector, or a number is not above 0.

    Example:
        >>> detector = Budgeted("cusum", 0.01, 1e5)
        >>> detector.threshold > Budgeted("cusum", 0.1, 1e5).threshold
        True
    """

    def __init__(self, name: str, false_alarms: float, points: float, **parameters: Any) -> None:
        self._false_alarms, self._points = false_alarms, max(float(points), 1.0)
        self._further = parameters
        self._knob = knob(name)
        self.name = name
        self.reset()

    def __repr__(self) -> str:
        return f"Budgeted({self._inner!r})"

    @property
    def parameters(self) -> dict[str, Any]:
        """Parameters of the detector as it is now."""
        return dict(self._inner.parameters)  # type: ignore[attr-defined]

    @property
    def symmetric(self) -> bool:
        """Whether the negated stream gives the same alarms in the other direction."""
        return bool(getattr(self._inner, "symmetric", False))

    @property
    def active(self) -> bool:
        """Whether the stream is still inside the episode of the last alarm."""
        return self._inner.active

    @property
    def statistic(self) -> float:
        """How strong the evidence for a change is now."""
        return self._inner.statistic

    @property
    def threshold(self) -> float:
        """The value of `statistic` from which on the detector may alarm."""
        return self._inner.threshold

    @property
    def num_skipped(self) -> int:
        """Points that were not used."""
        return self._inner.num_skipped

    @property
    def min_points(self) -> int:
        """Fewest points with which the detector can alarm."""
        return int(getattr(self._inner, "min_points", 1))

    @property
    def ready(self) -> bool:
        """Whether it has seen enough points to alarm; until then its silence says nothing."""
        return bool(getattr(self._inner, "ready", True))

    def reset(self) -> None:
        """Forget everything: as good as new."""
        self._stretch = 0
        self._left = self._points
        self._inner = self._make()

    def _make(self) -> Detector:
        share = self._false_alarms * 0.5 ** (self._stretch + 1)
        setting = threshold_for(self.name, share, self._points * 2.0 ** max(self._stretch - 1, 0))
        return create(self.name, **{**self._further, self._knob: setting})

    def update(self, step: int, value: float, stderr: float | None = None) -> Alarm | None:
        """Take the next point; say an alarm once per episode.

        Args:
            step: Optimizer steps completed; increases from call to call.
            value: The value of the stream.
            stderr: Its standard error; None if it is exact or unknown.
        """
        if self._left <= 0.0:
            self._tighten()
        skipped = self._inner.num_skipped
        alarm = self._inner.update(step, value, stderr)
        if self._inner.num_skipped == skipped:
            self._left -= 1.0
        return alarm

    def _tighten(self) -> None:
        self._stretch += 1
        self._left += self._points * 2.0 ** (self._stretch - 1)
        seen = self._inner.state_dict()
        self._inner = self._make()
        self._inner.load_state_dict(seen | {"parameters": self.parameters})

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes, as plain containers that JSON can hold."""
        budget = [self._false_alarms, self._points, self._stretch, self._left]
        return self._inner.state_dict() | {"budget": budget}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state, with the budget and the settings that it had.

        Raises:
            StateError: The state comes from another detector.
        """
        if state.get("detector") != self.name or "budget" not in state:
            raise StateError(
                f"the saved state is of detector {state.get('detector')!r}, this is a budgeted "
                f"{self.name!r}: make the detector as it was, or start it afresh"
            )
        seen = {key: value for key, value in state.items() if key != "budget"}
        inner = create(self.name, **seen["parameters"])
        inner.load_state_dict(seen)
        self._false_alarms, self._points, self._stretch, self._left = state["budget"]
        self._inner = inner
