"""What a detector says: the `Alarm`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Direction(StrEnum):
    """Which way the stream moved."""

    UP = "up"
    DOWN = "down"


class AlarmKind(StrEnum):
    """What sort of change an alarm stands for.

    `SHIFT` is a change of level or slope that stays. `INSTABILITY` is a spike, a divergence or a
    run of non-finite values: it is reported, and is never a transition to a new kind of solution.
    `PRECURSOR` is no change yet, but a sign that one may come.
    """

    SHIFT = "shift"
    INSTABILITY = "instability"
    PRECURSOR = "precursor"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """One change, as one detector saw it on one stream.

    Attributes:
        detected_step: Step of the point at which the detector was sure.
        onset_step: Estimated step at which the change began; at most `detected_step`.
        direction: Which way the stream moved.
        kind: A shift or an instability.
        score: Statistic divided by its threshold; at least 1 when the alarm is raised.
        run_length: Points between onset and detection, both counted.
        value_before: The stream's value at the onset, in the stream's own unit.
        value_after: The stream's value at detection, in the stream's own unit.
        onset_interval: Steps between which the change began: the last point before it and the
            first in it; None where the detector does not say.
        effect: The change in the stream's own unit; None where the detector does not say.
        effect_sigma: Its size in standard deviations of the noise just before it.
        probability: That what looks like this is a change, on the curves that the detector was
            fitted to.
        rule: Which rule of the detector spoke; empty where it has but one.
    """

    detected_step: int
    onset_step: int
    direction: Direction
    kind: AlarmKind = AlarmKind.SHIFT
    score: float
    run_length: int
    value_before: float
    value_after: float
    onset_interval: tuple[int, int] | None = None
    effect: float | None = None
    effect_sigma: float | None = None
    probability: float | None = None
    rule: str = ""
