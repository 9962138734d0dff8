"""From alarms to transitions: alarms of several observables in one episode are one transition.

Life of a transition: suspected (the first alarm) → confirmed (the change held for the persistence
window, or a second observable agrees) → ended (every detector is out of its episode); or withdrawn
(the value went back).
"""

from __future__ import annotations

import math
import re
import uuid
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import TypeAdapter

from phasewatch.detectors.types import Alarm, AlarmKind, Direction
from phasewatch.monitor.streams import Role
from phasewatch.monitor.types import Transition, TransitionKind, TransitionStatus

NAMESPACE = uuid.UUID("6f1d8a3e-7c55-4d0b-9a55-2f6f7c1f9b11")
"""Namespace of transition ids."""

SLACK = 0.25
"""Alarms within this share of an episode's length outside it still belong to it."""

PERSISTENCE = 0.5
"""A change must hold for this share of its own detection delay (and at least two points)."""

HELD, RETURNED = 0.75, 0.25
"""Share of the change at detection: above the first it held, below the second it went back."""

MAX_PENDING = 32
MAX_EPISODES = 8

_TRANSITION = TypeAdapter(Transition)
_ALARM = TypeAdapter(Alarm)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One value of one stream, as fusing sees it."""

    name: str
    step: int
    value: float
    epoch: int | None
    timestamp: float
    active: bool
    role: Role = Role.LEAD
    alarm: Alarm | None = None


@dataclass(slots=True)
class _Episode:
    """A transition in the making."""

    transition: Transition
    lead: str
    active: set[str]
    last_step: int
    held_sum: float = 0.0
    held_count: int = 0

    @property
    def open(self) -> bool:
        return self.transition.status in (TransitionStatus.SUSPECTED, TransitionStatus.CONFIRMED)

    @property
    def span(self) -> tuple[int, int]:
        detected = [alarm.detected_step for alarm in self.transition.evidence.values()]
        end = self.last_step if self.active else (self.transition.end_step or 0)
        return self.transition.onset_step, max([*detected, end])

    def takes(self, alarm: Alarm) -> bool:
        """Whether an alarm belongs to this episode."""
        instability = self.transition.kind is TransitionKind.INSTABILITY
        if alarm.kind is AlarmKind.INSTABILITY and not instability:
            return False
        start, end = self.span
        slack = SLACK * (end - start)
        return alarm.onset_step <= end + slack and alarm.detected_step >= start - slack


@dataclass(slots=True)
class TransitionTracker:
    """Fuses alarms, follows each transition through its life, and remembers them all.

    Args:
        run: Identity of the run; part of every transition's id.
        attempt: Which fit of the run this is.

    Attributes:
        found: Every transition, by id.
        following: Streams whose every point matters now.
        has_validation: Whether the run has a stream of held-out data.
    """

    run: str
    attempt: int
    found: dict[str, Transition] = field(default_factory=dict)
    _episodes: deque[_Episode] = field(default_factory=lambda: deque(maxlen=MAX_EPISODES))
    _pending: deque[tuple[str, Alarm]] = field(default_factory=lambda: deque(maxlen=MAX_PENDING))
    _ordinals: dict[str, int] = field(default_factory=dict)
    following: set[str] = field(default_factory=set)
    has_validation: bool = False

    def concerns(self, name: str) -> bool:
        """Whether a stream's points matter, or may begin to with the next alarm of another."""
        return name in self.following or any(name == waiting for waiting, _ in self._pending)

    def update(self, point: Point) -> list[Transition]:
        """Take one point of a followed stream, or one with an alarm.

        Returns:
            The transitions that this point made or changed the status of.
        """
        changed: list[Transition] = []
        if point.alarm is not None:
            changed += self._take_alarm(point, point.alarm)
        if point.name in self.following:
            for episode in self._episodes:
                if episode.open and point.name in episode.transition.evidence:
                    changed += self._follow(episode, point)
            self._refresh_following()
        latest = {transition.id: transition for transition in changed}
        return list(latest.values())

    def _take_alarm(self, point: Point, alarm: Alarm) -> list[Transition]:
        episode = next((e for e in reversed(self._episodes) if e.takes(alarm)), None)
        if episode is None:
            if point.role is Role.SUPPORT:
                self._pending.append((point.name, alarm))
                return []
            episode = self._open(point, alarm)
        elif point.name not in episode.transition.evidence:
            self._add(episode, point.name, alarm)
        else:
            return []  # the same stream again: one transition gives one alert
        if point.active and episode.open:
            episode.active.add(point.name)
        self._refresh_following()
        return [episode.transition]

    def _open(self, point: Point, alarm: Alarm) -> _Episode:
        ordinal = self._ordinals[point.name] = self._ordinals.get(point.name, 0) + 1
        transition = Transition(
            id=str(uuid.uuid5(NAMESPACE, f"{self.run}/{point.name}/{ordinal}")),
            run=self.run,
            attempt=self.attempt,
            kind=TransitionKind.UNCLASSIFIED,
            status=TransitionStatus.SUSPECTED,
            onset_step=alarm.onset_step,
            detected_step=alarm.detected_step,
            epoch=point.epoch,
            detected_at=point.timestamp,
            severity=0.0,
            evidence={},
            before={},
            after={},
        )
        episode = _Episode(transition, point.name, set(), point.step)
        self._episodes.append(episode)
        self._add(episode, point.name, alarm)
        for name, pending in list(self._pending):
            if name != point.name and episode.takes(pending):
                self._pending.remove((name, pending))
                self._add(episode, name, pending)
        return episode

    def _add(self, episode: _Episode, name: str, alarm: Alarm) -> None:
        """Add evidence; a second observable, or an instability, confirms."""
        old = episode.transition
        evidence = {**old.evidence, name: alarm}
        status = old.status
        kind = classify(evidence, has_validation=self.has_validation)
        agreed = len(evidence) > 1 or kind is TransitionKind.INSTABILITY
        if status is TransitionStatus.SUSPECTED and agreed:
            status = TransitionStatus.CONFIRMED
        before = {**old.before, name: alarm.value_before}
        after = {**old.after, name: alarm.value_after}
        episode.transition = replace(
            old,
            evidence=evidence,
            status=status,
            kind=kind,
            onset_step=min(old.onset_step, alarm.onset_step),
            before=before,
            after=after,
            severity=severity(before, after),
        )
        self._remember(episode)

    def _follow(self, episode: _Episode, point: Point) -> list[Transition]:
        name = point.name
        old = episode.transition
        episode.last_step = max(episode.last_step, point.step)
        status = old.status
        if point.active or point.alarm is None:
            after = {**old.after, name: point.value} if point.active else old.after
        else:
            after = old.after
        if status is TransitionStatus.SUSPECTED and name == episode.lead:
            status = self._judge(episode, point)
        end_step = old.end_step
        if not point.active:
            episode.active.discard(name)
            if status is TransitionStatus.CONFIRMED and not episode.active:
                status, end_step = TransitionStatus.ENDED, point.step
        if status is TransitionStatus.WITHDRAWN:
            end_step = point.step
            episode.active.clear()
        episode.transition = replace(
            old,
            status=status,
            end_step=end_step,
            after=after,
            severity=severity(old.before, after),
        )
        self._remember(episode)
        return [episode.transition] if status is not old.status else []

    def _judge(self, episode: _Episode, point: Point) -> TransitionStatus:
        """Whether the change of the lead stream held, went back, or is still open."""
        alarm = episode.transition.evidence[episode.lead]
        if point.step <= alarm.detected_step:
            return TransitionStatus.SUSPECTED
        change = displacement(alarm.value_before, alarm.value_after)
        now = displacement(alarm.value_before, point.value)
        share = now / change if change else 0.0
        episode.held_sum += share
        episode.held_count += 1
        delay = alarm.detected_step - alarm.onset_step
        if episode.held_count < 2 or point.step < alarm.detected_step + PERSISTENCE * delay:
            return TransitionStatus.SUSPECTED
        mean = episode.held_sum / episode.held_count
        if mean >= HELD:
            return TransitionStatus.CONFIRMED
        return TransitionStatus.WITHDRAWN if mean < RETURNED else TransitionStatus.SUSPECTED

    def _remember(self, episode: _Episode) -> None:
        self.found[episode.transition.id] = episode.transition

    def _refresh_following(self) -> None:
        self.following = {name for e in self._episodes if e.open for name in e.transition.evidence}

    def annotate(self, transition: Transition) -> None:
        """Replace a known transition by an annotated copy of itself."""
        self.found[transition.id] = transition
        for episode in self._episodes:
            if episode.transition.id == transition.id:
                episode.transition = transition

    def state_dict(self) -> dict[str, Any]:
        """Everything found and everything open, as plain containers."""
        return {
            "found": [_TRANSITION.dump_python(t, mode="json") for t in self.found.values()],
            "has_validation": self.has_validation,
            "ordinals": dict(self._ordinals),
            "pending": [
                [name, _ALARM.dump_python(alarm, mode="json")] for name, alarm in self._pending
            ],
            "episodes": [
                {
                    "id": e.transition.id,
                    "lead": e.lead,
                    "active": sorted(e.active),
                    "last_step": e.last_step,
                    "held_sum": e.held_sum,
                    "held_count": e.held_count,
                }
                for e in self._episodes
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        found = [_TRANSITION.validate_python(item) for item in state["found"]]
        self.found = {t.id: t for t in found}
        self.has_validation = bool(state["has_validation"])
        self._ordinals = {name: int(n) for name, n in state["ordinals"].items()}
        self._pending.clear()
        self._pending.extend(
            (name, _ALARM.validate_python(alarm)) for name, alarm in state["pending"]
        )
        self._episodes.clear()
        for item in state["episodes"]:
            self._episodes.append(
                _Episode(
                    self.found[item["id"]],
                    item["lead"],
                    set(item["active"]),
                    int(item["last_step"]),
                    float(item["held_sum"]),
                    int(item["held_count"]),
                )
            )
        self._refresh_following()


def displacement(before: float, after: float) -> float:
    """Signed change, in dex where both values are positive, else as a difference."""
    if before > 0 and after > 0:
        return math.log10(after / before)
    return after - before


def severity(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """Largest effect over the observables: dex for positive values, else the relative change."""
    effects = [0.0]
    for name, old in before.items():
        new = after[name]
        if old > 0 and new > 0:
            effects.append(abs(math.log10(new / old)))
        elif scale := max(abs(old), abs(new)):
            effects.append(abs(new - old) / scale)
    return max(effect for effect in effects if math.isfinite(effect))


def classify(evidence: Mapping[str, Alarm], *, has_validation: bool = True) -> TransitionKind:
    """Kind of a transition from what moved which way, in order of precedence.

    instability: any alarm of that kind. generalisation: validation improves while no training
    loss does. memorisation: a training loss falls and validation does not improve.
    simplification: λ̂ falls without a loss moving. acquisition: training and validation improve
    together, or λ̂ rises; without any validation stream, also where training improves alone.
    """
    if any(alarm.kind is AlarmKind.INSTABILITY for alarm in evidence.values()):
        return TransitionKind.INSTABILITY
    train = _improves(evidence, validation=False)
    validation = _improves(evidence, validation=True)
    llc = evidence.get("llc")
    if validation and not train:
        return TransitionKind.GENERALISATION
    if train and not validation and has_validation:
        return TransitionKind.MEMORISATION
    if train:
        return TransitionKind.ACQUISITION
    if llc is not None:
        down = llc.direction is Direction.DOWN
        return TransitionKind.SIMPLIFICATION if down else TransitionKind.ACQUISITION
    return TransitionKind.UNCLASSIFIED


def _improves(evidence: Mapping[str, Alarm], *, validation: bool) -> bool:
    """Whether a loss of that split falls, or an accuracy of it rises."""
    better: Iterable[tuple[str, Direction]] = (("loss", Direction.DOWN), ("acc", Direction.UP))
    return any(
        word in name.lower() and alarm.direction is direction
        for name, alarm in evidence.items()
        for word, direction in better
        if is_validation(name) is validation
    )


HELD_OUT_WORDS = frozenset({"val", "valid", "validation", "test", "heldout", "eval"})


def is_validation(name: str) -> bool:
    """Whether a logged name speaks of held-out data."""
    return not HELD_OUT_WORDS.isdisjoint(re.split(r"[^a-z]+", name.lower()))
