"""A transition in the making: which alarms belong to it, and when it is over."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from pydantic import TypeAdapter

from phasewatch.detectors.types import Alarm, AlarmKind
from phasewatch.monitor.core.meaning import Role
from phasewatch.monitor.core.transitions import Transition, TransitionKind, TransitionStatus
from phasewatch.monitor.transitions.classification import displacement, progress
from phasewatch.monitor.transitions.life import Event

SLACK = 0.25
"""Alarms within this share of an episode's length outside it still belong to it."""

PERSISTENCE = 0.5
"""A change must hold for this share of its own detection delay (and at least two points)."""

HELD, RETURNED = 0.75, 0.25
"""Share of the change at detection: above the first it held, below the second it went back."""

FORETOLD = " (precursor)"
"""Ends the name of a stream in the evidence where its alarm was a precursor."""

HORIZON = 0.25
"""What was foretold must begin within this share of the steps so far, or it is withdrawn."""

QUIET = 0.1
"""An instability is over once it was quiet for this share of the steps so far, for as long as it
lasted, and for as long as it took to come back after the one before: whichever is longest. With it,
spikes at any steady distance are one or two episodes, however many they are."""

BEYOND = 0.1
"""A fall that ends lower than before the spike by so much (dex, or relative) is no way back from
it. It is what the detectors of losses call an effect."""

UNDONE = 0.5
"""A change that undoes this share of an earlier one is another change."""


ALARM = TypeAdapter(Alarm)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One value of one stream, as fusing sees it."""

    name: str
    step: int
    value: float
    epoch: int | None
    timestamp: float
    active: bool
    role: Role = Role.LEADING
    alarm: Alarm | None = None


def cadence(alarm: Alarm) -> float:
    """Steps between the points of the stream around an alarm."""
    return (alarm.detected_step - alarm.onset_step) / max(alarm.run_length - 1, 1)


def earliest(alarm: Alarm) -> float:
    """The step after which the change began: that of the last point before the onset."""
    return alarm.onset_step - cadence(alarm)


def is_precursor(alarm: Alarm) -> bool:
    """Whether the alarm only foretells a change."""
    return alarm.kind is AlarmKind.PRECURSOR


def changes(evidence: Mapping[str, Alarm]) -> list[Alarm]:
    """The alarms without those that only foretold it, if there are others."""
    alarms = list(evidence.values())
    return [alarm for alarm in alarms if not is_precursor(alarm)] or alarms


RESOLUTION = 2
"""A stream dates a change to so many of its points: the gap before it, and what the lines through
few points can tell."""


def joint_onset(onsets: Iterable[tuple[int, float]]) -> int:
    """The earliest of several onsets, as exactly as their streams tell.

    One of a stream of few points comes before that of the densest only where it does so by more
    than its own resolution.

    Args:
        onsets: Onset, and steps between two points, of each stream.
    """
    known = list(onsets)
    finest, _ = min(known, key=lambda one: (one[1], one[0]))
    return min([finest, *(at for at, gap in known if at + RESOLUTION * gap < finest)])


def onset_of(evidence: Mapping[str, Alarm], leading: Collection[str]) -> int:
    """The earliest onset, as exactly as the alarms tell.

    Norms and the like tell it more exactly where they are denser than what leads, but not earlier
    than that can mean: they move for many reasons.

    Args:
        evidence: Alarms by stream.
        leading: Streams among them that say what a transition is.
    """
    onset = _joint(changes(evidence))
    if not (led := {name: evidence[name] for name in evidence if name in leading}):
        return onset
    by_leads = _joint(alarms := changes(led))
    reach = RESOLUTION * max(cadence(alarm) for alarm in alarms)
    return onset if onset >= by_leads - reach else by_leads


def _joint(alarms: Collection[Alarm]) -> int:
    """Their joint onset. What began after the first of them was seen does not date it."""
    seen = min(alarm.detected_step for alarm in alarms)
    return joint_onset((a.onset_step, cadence(a)) for a in alarms if a.onset_step <= seen)


@dataclass(slots=True)
class Episode:
    """A transition in the making.

    Attributes:
        transition: As it stands.
        lead: The stream whose alarm opened it.
        active: Streams whose detectors are in an episode of theirs.
        last_active: Last step at which the lead was; of an instability, any stream.
        held_sum: Sum of the shares of the change that were still there after detection.
        held_count: Points in that sum.
        quiet_before: Steps since the instability before this one; 0 without one.
        returning: Falls of streams on their way back from an instability.
    """

    transition: Transition
    lead: str
    active: set[str]
    last_active: int
    held_sum: float = 0.0
    held_count: int = 0
    quiet_before: int = 0
    returning: dict[str, Alarm] = field(default_factory=dict)

    @property
    def open(self) -> bool:
        """Whether it is neither over nor withdrawn."""
        return self.transition.status in (TransitionStatus.SUSPECTED, TransitionStatus.CONFIRMED)

    @property
    def unstable(self) -> bool:
        """Whether it is an instability."""
        return self.transition.kind is TransitionKind.INSTABILITY

    @property
    def waiting(self) -> bool:
        """Whether it is suspected on precursors alone."""
        return all(map(is_precursor, self.transition.evidence.values()))

    @property
    def until(self) -> int:
        """Last step at which what was foretold may begin.

        As far ahead as the signs reach back, and at least `HORIZON` of the steps so far.
        """
        signs = [a for a in self.transition.evidence.values() if is_precursor(a)]
        ahead = [max(s.detected_step - s.onset_step, HORIZON * s.detected_step) for s in signs]
        return max(s.detected_step + round(far) for s, far in zip(signs, ahead, strict=True))

    def watches(self, name: str) -> bool:
        """Whether a stream is in the evidence, if only by a precursor."""
        return not self.transition.evidence.keys().isdisjoint((name, name + FORETOLD))

    @property
    def start(self) -> float:
        """The step after which the first of its changes began."""
        return min(map(earliest, changes(self.transition.evidence)))

    @property
    def end(self) -> int:
        """The last step at which something was seen to change.

        How long a supporting detector takes to come to rest says little about the model; the lead's
        episode counts.
        """
        detected = [alarm.detected_step for alarm in changes(self.transition.evidence)]
        return max([*detected, self.last_active])

    @property
    def hold(self) -> float:
        """Steps of quiet after which an instability is over."""
        return max(QUIET * self.end, self.end - self.start, self.quiet_before)

    def overlaps(self, alarm: Alarm) -> bool:
        """Whether a change lies close in step: within a quarter of the length or two points.

        A stream of few points says only that it changed between two of them, so the step between
        its points is added on either side.
        """
        lead = self.transition.evidence[self.lead]
        slack = max(SLACK * (self.end - self.start), cadence(alarm), cadence(lead))
        return earliest(alarm) <= self.end + slack and alarm.detected_step >= self.start - slack

    def continues(self, alarm: Alarm) -> bool:
        """Whether an alarm comes before an instability has been quiet for long enough."""
        before_end = earliest(alarm) <= self.end + self.hold
        return before_end and (alarm.detected_step >= self.start or self.overlaps(alarm))

    def takes(self, name: str, alarm: Alarm, *, held_out: bool = False) -> bool:
        """Whether a shift belongs to this transition, which is no instability.

        Args:
            name: Name of the stream.
            alarm: Its alarm.
            held_out: Whether the stream tells of held-out data.
        """
        if self.transition.status is TransitionStatus.WITHDRAWN:
            return False
        if self.waiting:
            return earliest(alarm) <= self.until and alarm.onset_step >= self.start
        first = self.transition.evidence.get(name)
        same = first is not None and first.direction is alarm.direction
        if not self.overlaps(alarm) or self._is_followed_by(held_out, alarm):
            return False
        if self._is_behind(alarm) and not same:
            return False
        if first is None or first.direction is alarm.direction:
            return True
        undone = displacement(alarm.value_before, alarm.value_after)
        return abs(undone) < UNDONE * abs(displacement(first.value_before, first.value_after))

    def _is_behind(self, alarm: Alarm) -> bool:
        """Whether a change began after this transition had ended."""
        return self.transition.end_step is not None and earliest(alarm) > self.transition.end_step

    def _is_followed_by(self, held_out: bool, alarm: Alarm) -> bool:
        """Whether held-out data tell of what comes after the circuits formed: the next phase."""
        formed = self.transition.kind is TransitionKind.CIRCUIT_FORMATION
        return formed and held_out and alarm.onset_step > self.transition.detected_step

    def returns(self, name: str, alarm: Alarm) -> bool:
        """Whether a stream of an instability only comes back from it, or goes on in it."""
        first = self.transition.evidence.get(name)
        if first is None or not self.continues(alarm):
            return False
        return first.direction is alarm.direction or not self.is_beyond(
            name, alarm, alarm.value_after
        )

    def is_beyond(self, name: str, alarm: Alarm, value: float) -> bool:
        """Whether a value lies beyond where the stream stood before it became unstable.

        Args:
            name: Name of the stream.
            alarm: Its alarm.
            value: The value asked about.
        """
        moved = displacement(self.transition.before[name], value)
        went = displacement(alarm.value_before, alarm.value_after)
        return moved * went > 0.0 and abs(moved) >= BEYOND

    def judge(self, point: Point) -> Event | None:
        """Whether the change of the lead stream held or went back; None while that is open."""
        alarm = self.transition.evidence[self.lead]
        if point.step <= alarm.detected_step:
            return None
        share = progress(alarm.value_before, alarm.value_after, point.value)
        if not math.isfinite(share):
            return None
        self.held_sum += share
        self.held_count += 1
        delay = alarm.detected_step - alarm.onset_step
        if self.held_count < 2 or point.step < alarm.detected_step + PERSISTENCE * delay:
            return None
        mean = self.held_sum / self.held_count
        if mean >= HELD:
            return Event.HELD
        return Event.RETURNED if mean < RETURNED else None

    @property
    def leaning(self) -> Event:
        """What the values after a suspected change say so far: that it held, if there are none."""
        held = not self.held_count or self.held_sum >= RETURNED * self.held_count
        return Event.HELD if held else Event.RETURNED

    def is_peak(self, point: Point) -> bool:
        """Whether a value lies farther from where the stream came from than any before it."""
        before = self.transition.before.get(point.name)
        if before is None or not math.isfinite(point.value):
            return False
        away = abs(displacement(before, point.value))
        return away > abs(displacement(before, self.transition.after[point.name]))

    def ended(self, transition: Transition, step: int) -> Transition:
        """The transition, over at `step`; an instability was over when it was last active."""
        end_step = self.end if self.unstable else step
        return replace(transition, status=TransitionStatus.ENDED, end_step=end_step)

    def state_dict(self) -> dict[str, Any]:
        """Everything but the transition, as plain containers."""
        return {
            "id": self.transition.id,
            "lead": self.lead,
            "active": sorted(self.active),
            "last_active": self.last_active,
            "held": [self.held_sum, self.held_count],
            "quiet_before": self.quiet_before,
            "returning": {n: ALARM.dump_python(a, mode="json") for n, a in self.returning.items()},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], transition: Transition) -> Self:
        """The episode of a saved state and its transition."""
        return cls(
            transition,
            str(state["lead"]),
            set(state["active"]),
            int(state["last_active"]),
            float(state["held"][0]),
            int(state["held"][1]),
            int(state["quiet_before"]),
            {name: ALARM.validate_python(alarm) for name, alarm in state["returning"].items()},
        )


def is_unstable(alarm: Alarm) -> bool:
    """Whether the alarm is that of an instability."""
    return alarm.kind is AlarmKind.INSTABILITY
