"""Alarms as detectors raise them."""

from __future__ import annotations

from phasewatch.detectors.types import Alarm, AlarmKind, Direction


def alarm(onset=100, detected=120, direction=Direction.DOWN, kind=AlarmKind.SHIFT, **values):
    """A fall from 1 to 0.5, seen at 120 to have begun at 100, but for what is given."""
    return Alarm(
        detected_step=detected,
        onset_step=onset,
        direction=direction,
        kind=kind,
        score=1.5,
        run_length=values.get("run_length", 4),
        value_before=values.get("before", 1.0),
        value_after=values.get("after", 0.5),
    )
