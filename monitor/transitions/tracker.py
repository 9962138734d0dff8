"""From alarms to transitions: alarms of several observables close in step are one transition.

Life of a transition: suspected (the first alarm) → confirmed (the change held for the persistence
window, or a second observable agrees) → ended (every detector is out of its episode); or withdrawn
(the value went back). An instability is confirmed at once, takes every further alarm until it has
been quiet for long enough, and the way back from it is no transition.
"""

from __future__ import annotations

import math
import uuid
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import TypeAdapter

from phasewatch.detectors.types import Alarm, AlarmKind
from phasewatch.monitor.core.meaning import Meanings, Role, source_of
from phasewatch.monitor.core.transitions import Transition, TransitionKind, TransitionStatus
from phasewatch.monitor.transitions.classification import Move, classify, move_of, severity
from phasewatch.monitor.transitions.episodes import (
    ALARM,
    FORETOLD,
    SLACK,
    Episode,
    Point,
    is_precursor,
    is_unstable,
    onset_of,
)
from phasewatch.monitor.transitions.life import Event, advance

NAMESPACE = uuid.UUID("6f1d8a3e-7c55-4d0b-9a55-2f6f7c1f9b11")
"""Namespace of transition ids."""

MAX_PENDING = 32
MAX_EPISODES = 8

_BETTER = (Move.TRAIN_BETTER, Move.VALIDATION_BETTER)
_TRANSITION = TypeAdapter(Transition)


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
        meanings: What the streams mean.
    """

    run: str
    attempt: int
    found: dict[str, Transition] = field(default_factory=dict)
    _episodes: deque[Episode] = field(default_factory=lambda: deque(maxlen=MAX_EPISODES))
    _pending: deque[tuple[str, Alarm]] = field(default_factory=lambda: deque(maxlen=MAX_PENDING))
    _ordinals: dict[str, int] = field(default_factory=dict)
    following: set[str] = field(default_factory=set)
    has_validation: bool = False
    meanings: Meanings = field(default_factory=Meanings)

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
            for episode in list(self._episodes):  # a return may open another
                if episode.open and episode.watches(point.name):
                    changed += self._follow(episode, point)
            self._refresh_following()
        latest = {(t.id, t.status): t for t in changed}  # states in their order, each once
        return list(latest.values())

    def _foretell(self, point: Point, sign: Alarm) -> list[Transition]:
        """Suspect that something is coming, unless something is going on."""
        if any(e.open or e.overlaps(sign) for e in self._episodes):
            return []
        episode = self._open(replace(point, name=point.name + FORETOLD), sign)
        self._refresh_following()
        return [episode.transition]

    def _take_alarm(self, point: Point, alarm: Alarm) -> list[Transition]:
        name = point.name
        if is_precursor(alarm):
            return self._foretell(point, alarm)
        episode = self._home(name, alarm)
        if episode is None:
            if point.role is Role.SUPPORTING and not is_unstable(alarm):
                self._pending.append((name, alarm))
                return []
            episode = self._open(point, alarm)
        elif name not in episode.transition.evidence:
            self._add(episode, name, alarm)
        else:  # the same stream again: one transition gives one alert
            if episode.unstable and not self._is_shaken(name, alarm):
                episode.returning[name] = alarm
            old = episode.transition
            self._update(episode, replace(old, repeats=old.repeats + 1))
            if point.active and episode.open:
                episode.active.add(name)
            return []
        if point.active and episode.open:
            episode.active.add(name)
        self._refresh_following()
        return [episode.transition]

    def _home(self, name: str, alarm: Alarm) -> Episode | None:
        """The episode that an alarm belongs to; None opens one."""
        unstable = [e for e in reversed(self._episodes) if e.unstable]
        shifts = [e for e in self._episodes if not e.unstable]
        if self._is_shaken(name, alarm):
            going_on = (e for e in unstable if e.continues(alarm))
            mistaken = (e for e in shifts if self._is_mistaken(e) and self._takes(e, name, alarm))
            found = next(going_on, None) or next(mistaken, None)
            if found is not None or is_unstable(alarm):
                return found
        back = next((e for e in unstable if e.returns(name, alarm)), None)
        if back is not None:
            return back
        near = [e for e in shifts if self._takes(e, name, alarm)]
        near += [e for e in unstable if self._disturbs(e, name, alarm)]
        return min(
            near, key=lambda e: abs(alarm.onset_step - e.transition.onset_step), default=None
        )

    def _takes(self, episode: Episode, name: str, alarm: Alarm) -> bool:
        return episode.takes(name, alarm, held_out=self._held_out(name))

    def _held_out(self, name: str) -> bool:
        return self.meanings.of(name).held_out

    def _is_shaken(self, name: str, alarm: Alarm) -> bool:
        """Whether an alarm is of an instability, or of training that gets worse."""
        return move_of(name, alarm, self.meanings) in (Move.UNSTABLE, Move.TRAIN_WORSE)

    def _is_mistaken(self, episode: Episode) -> bool:
        """Whether a suspected shift may be the beginning of an instability: nothing improved."""
        transition = episode.transition
        moves = (move_of(name, a, self.meanings) for name, a in transition.evidence.items())
        suspected = transition.status is TransitionStatus.SUSPECTED
        return suspected and not any(move in _BETTER for move in moves)

    def _disturbs(self, episode: Episode, name: str, alarm: Alarm) -> bool:
        """Whether an instability explains a shift of a stream that was not unstable itself.

        An improvement counts as its own, unless it is on the same data and began before the
        instability was over: then the stream came back with the others.
        """
        if name in episode.transition.evidence or not episode.overlaps(alarm):
            return False
        if move_of(name, alarm, self.meanings) not in _BETTER:
            return True
        same_data = any(
            self._held_out(n) is self._held_out(name) for n in episode.transition.evidence
        )
        return same_data and alarm.onset_step <= episode.end

    def _open(self, point: Point, alarm: Alarm) -> Episode:
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
        episode = Episode(transition, point.name, set(), point.step)
        if self._is_shaken(point.name, alarm):
            last = max((e.end for e in self._episodes if e.unstable), default=None)
            episode.quiet_before = 0 if last is None else max(alarm.onset_step - last, 0)
        self._episodes.append(episode)
        self._add(episode, point.name, alarm)
        for name, pending in list(self._pending):
            if name != point.name and self._takes(episode, name, pending):
                self._pending.remove((name, pending))
                self._add(episode, name, pending)
        return episode

    def _add(self, episode: Episode, name: str, alarm: Alarm) -> None:
        """Add evidence; a second observable, or an instability, confirms."""
        old = episode.transition
        if old.evidence and episode.waiting:  # what was foretold begins
            episode.lead = name
            old = replace(old, detected_step=alarm.detected_step)
        evidence = {**old.evidence, name: alarm}
        leading = {n for n in evidence if self.meanings.of(n).role is not Role.SUPPORTING}
        status = old.status
        if len({source_of(one) for one in evidence}) > 1 or is_unstable(alarm):
            status = (status, *advance(status, Event.AGREED))[-1]
        changed = replace(
            old,
            evidence=evidence,
            status=status,
            onset_step=onset_of(evidence, leading),
            before={**old.before, name: alarm.value_before},
            after={**old.after, name: alarm.value_after},
        )
        self._update(episode, changed, classified=True)

    def _update(self, episode: Episode, changed: Transition, *, classified: bool = False) -> None:
        """Take over a changed transition: its size follows, and its kind where that is asked."""
        effect = severity(changed.before, changed.after, self.meanings)
        if classified:
            kind = classify(
                changed.evidence,
                has_validation=self.has_validation,
                meanings=self.meanings,
                before=changed.before,
                after=changed.after,
                formed=self._formed_before(changed),
            )
            changed = replace(changed, kind=kind)
        if episode.unstable:
            effect = max(effect, episode.transition.severity)
        episode.transition = replace(changed, severity=effect)
        self.found[changed.id] = episode.transition

    def _formed_before(self, transition: Transition) -> bool:
        """Whether circuits formed in a transition that began earlier, and stands."""
        return any(
            t.kind is TransitionKind.CIRCUIT_FORMATION
            and t.status is not TransitionStatus.WITHDRAWN
            and t.onset_step < transition.onset_step
            for t in self.found.values()
            if t.id != transition.id
        )

    def _follow(self, episode: Episode, point: Point) -> list[Transition]:
        name, old = point.name, episode.transition
        if episode.waiting:
            if point.step <= episode.until:
                return []
            return self._take_states(episode, Event.RETURNED, point.step)
        changed = old
        if point.active:
            changed = replace(changed, after={**old.after, name: point.value})
            if name == episode.lead or episode.unstable:
                episode.last_active = max(episode.last_active, point.step)
            if episode.unstable:
                episode.active.add(name)
        else:
            episode.active.discard(name)
        if episode.unstable and episode.is_peak(point):
            changed = replace(changed, after={**changed.after, name: point.value})
        self._update(episode, changed)
        told: list[Transition] = []
        if old.status is TransitionStatus.SUSPECTED and name == episode.lead:
            event = episode.judge(point)
            if event is Event.RETURNED and self._is_spike(episode):
                event = self._becomes_spike(episode)
            if event is not None:
                told += self._take_states(episode, event, point.step)
        over = not episode.active and (
            not episode.unstable or point.step > episode.end + (1.0 + SLACK) * episode.hold
        )
        if over and episode.transition.status is TransitionStatus.CONFIRMED:
            told += self._take_states(episode, Event.OVER, point.step)
        return told + self._follow_return(episode, point)

    def _take_states(self, episode: Episode, event: Event, step: int) -> list[Transition]:
        """Lead a transition on, whatever that asks for; returns its states in order."""
        told = []
        for status in advance(episode.transition.status, event):
            changed = replace(episode.transition, status=status)
            if status is TransitionStatus.WITHDRAWN:
                episode.active.clear()
                changed = replace(changed, end_step=step)
            elif status is TransitionStatus.ENDED:
                changed = episode.ended(changed, step)
            self._update(episode, changed, classified=status is TransitionStatus.ENDED)
            told.append(episode.transition)
        return told

    def _is_spike(self, episode: Episode) -> bool:
        """Whether what went back was no improvement: a spike, which is told; else a false alarm."""
        alarm = episode.transition.evidence[episode.lead]
        moved = move_of(episode.lead, alarm, self.meanings)
        return alarm.probability is not None and moved not in _BETTER

    def _becomes_spike(self, episode: Episode) -> Event:
        old = episode.transition
        alarm = replace(old.evidence[episode.lead], kind=AlarmKind.INSTABILITY)
        self._update(
            episode,
            replace(old, evidence={**old.evidence, episode.lead: alarm}),
            classified=True,
        )
        return Event.AGREED

    def _follow_return(self, episode: Episode, point: Point) -> list[Transition]:
        """A way back from an instability that goes on beyond where it began is a shift."""
        alarm = episode.returning.get(point.name)
        if alarm is None or (point.active and not math.isfinite(point.value)):
            return []
        if not point.active:
            del episode.returning[point.name]
            return []
        if not episode.is_beyond(point.name, alarm, point.value):
            return []
        del episode.returning[point.name]
        episode.active.discard(point.name)
        before = episode.transition.before[point.name]
        shift = replace(
            alarm, detected_step=point.step, value_before=before, value_after=point.value
        )
        opened = self._open(point, shift)
        opened.active.add(point.name)
        return [opened.transition]

    def finish(self) -> list[Transition]:
        """The run is over: what every detector has left has ended.

        Returns:
            The states that this gave them, in order.
        """
        ended = []
        for episode in self._episodes:
            if episode.waiting or not episode.open:
                continue
            event = Event.OVER
            if episode.transition.status is TransitionStatus.SUSPECTED:
                # What is pending is told now or never; that it held is not known, but likely.
                event = episode.leaning
                if event is Event.RETURNED and self._is_spike(episode):
                    event = self._becomes_spike(episode)
                ended += self._take_states(episode, event, episode.end)
            if episode.transition.status is TransitionStatus.CONFIRMED and not episode.active:
                ended += self._take_states(episode, Event.OVER, episode.end)
        self._refresh_following()
        return ended

    def _refresh_following(self) -> None:
        self.following = {
            name.removesuffix(FORETOLD)
            for e in self._episodes
            if e.open
            for name in e.transition.evidence
        }

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
                [name, ALARM.dump_python(alarm, mode="json")] for name, alarm in self._pending
            ],
            "episodes": [episode.state_dict() for episode in self._episodes],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        found = [_TRANSITION.validate_python(item) for item in state["found"]]
        self.found = {t.id: t for t in found}
        self.has_validation = bool(state["has_validation"])
        self._ordinals = {name: int(n) for name, n in state["ordinals"].items()}
        self._pending.clear()
        self._pending.extend(
            (name, ALARM.validate_python(alarm)) for name, alarm in state["pending"]
        )
        self._episodes.clear()
        for item in state["episodes"]:
            self._episodes.append(Episode.from_state(item, self.found[item["id"]]))
        self._refresh_following()
