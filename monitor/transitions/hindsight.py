"""Hindsight: the full history confirms, corrects or withdraws what was said while a run went on.

A transition is looked up in the history of each stream in its evidence. What the streamed alarm
needed in full, its confirmation needs in half: an abrupt change of half the size and half the
steepness, the same way, that overlaps it. Where none of its streams shows one it is withdrawn,
unless values of them are gone from there.
What no transition covers, and the history of a leading stream shows in full, is added as found.

Both verdicts are kept: a transition keeps its id and its streamed steps, and `Hindsight` holds the
rest. Instabilities, circuits that form and their cleanup (gradual by their nature), transitions
that still go on, and streams of few points are not judged.

Streams with transitions come first, and none is begun after the deadline. Reading and searching a
million points takes some seconds and 100 MB for as long.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from phasewatch.detectors.registry import default_name
from phasewatch.detectors.statistics.noise import scale
from phasewatch.detectors.types import Alarm, AlarmKind, Direction
from phasewatch.monitor.core.meaning import Meanings, Role, StreamMeaning
from phasewatch.monitor.core.transitions import (
    Hindsight,
    HindsightVerdict,
    Transition,
    TransitionKind,
    TransitionStatus,
)
from phasewatch.monitor.store.store import Hole, Store
from phasewatch.monitor.transitions.classification import classify, severity
from phasewatch.monitor.transitions.episodes import joint_onset
from phasewatch.monitor.transitions.streams import Stream, kind_of, name_of, parameters_of
from phasewatch.monitor.transitions.tracker import NAMESPACE

SECONDS = 10.0
"""What looking back at the end of a fit may take before it begins no further stream."""

MIN_POINTS = 30
"""Streams of fewer points are too short to overrule what was said of them."""

GATES = {"loss": 0.1, "measured": 0.15, "scalar": 0.15}
"""Smallest change by kind of stream: in dex for losses, else as a share of the range."""

ABRUPT = 3.0
"""Smallest steepness of what is added, against what is around it."""

LENIENCY = 0.5
"""Share of gate and steepness that is enough to confirm."""

NOT_JUDGED = frozenset(
    {TransitionKind.INSTABILITY, TransitionKind.CIRCUIT_FORMATION, TransitionKind.CLEANUP}
)

NEAR = 0.25
"""Changes within this share of a transition's length outside it still belong to it."""

ONSET_RIGHT, END_RIGHT = 0.25, 0.1
"""An onset, or an end, that is off by less than this share of the change was right. A curve bends
at its onset, which no rule places sharply."""

LOGGED = default_name("scalar")
"""The detector of logged streams, whose local rule looks again in hindsight."""

STANDS_OUT, LOOK, MIDDLE = 4.0, 15, 5
"""A jump of a point or two that nobody told of counts only if it is so many times the scatter of so
many points on both sides, between the medians of the nearest: no step of a noisy slope."""

Arrays = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]
History = Callable[[str], Arrays]
"""From a stream's name to its steps, values and standard errors, NaN where exact."""


class _Found(NamedTuple):
    """A change in the history of one stream."""

    name: str
    onset: int
    end: int
    direction: Direction
    score: float
    still_open: bool
    cadence: float


@dataclass(frozen=True, slots=True)
class _Curve:
    """The usable history of one stream."""

    name: str
    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    stderrs: NDArray[np.float64] | None
    meaning: StreamMeaning

    @classmethod
    def of(cls, name: str, arrays: Arrays, meaning: StreamMeaning) -> _Curve:
        """Finite points whose steps increase; with errors, those that have one."""
        steps, values, stderrs = arrays
        measured = bool(np.isfinite(stderrs).any())
        usable = np.isfinite(values)
        if measured:
            usable &= np.isfinite(stderrs) & (stderrs > 0.0)
        steps, first = np.unique(steps[usable], return_index=True)
        errors = stderrs[usable][first] if measured else None
        return cls(name, steps, values[usable][first], errors, meaning)

    def changes(self, leniency: float) -> list[_Found]:
        """Abrupt changes, at this share of the full evidence."""
        from phasewatch.detectors.offline.changes import find_changes  # imports ruptures

        kind = kind_of(self.meaning, None if self.stderrs is None else 1.0)
        found = find_changes(
            self.steps,
            self.values,
            self.stderrs,
            scale="auto" if self.meaning.is_loss else "linear",
            direction=Direction.DOWN if kind == "loss" else None,
            gate=leniency * GATES[kind],
            abrupt=leniency * ABRUPT,
        )
        return [
            _Found(self.name, c.onset_step, c.end_step, c.direction, c.score, c.open, self.gap)
            for c in found
        ]

    @property
    def gap(self) -> float:
        """Steps between two points, on average."""
        return float(self.steps[-1] - self.steps[0]) / max(self.steps.size - 1, 1)

    def shows(self, alarm: Alarm, span: tuple[int, int]) -> bool:
        """Whether the values just before and just after a span show the change of an alarm.

        Nothing farther away counts, so the answer is the same however long the run goes on. The
        change must be half of what was told, stand out of the scatter nearby, and be faster than
        what went on over as many points before.
        """
        logarithmic = self.meaning.is_loss and bool((self.values > 0.0).all())
        values = np.log10(self.values) if logarithmic else self.values
        first = int(np.searchsorted(self.steps, span[0], side="right"))
        last = int(np.searchsorted(self.steps, span[1]))
        before, after = values[max(first - LOOK, 0) : first], values[last : last + LOOK]
        if min(before.size, after.size) < 2:
            return False
        sign = 1.0 if alarm.direction is Direction.UP else -1.0
        level = float(np.median(before[-MIDDLE:]))
        moved = sign * (float(np.median(after[:MIDDLE])) - level)
        old, new = alarm.value_before, alarm.value_after
        if logarithmic:
            told = abs(math.log10(new / old)) if min(old, new) > 0.0 else math.inf
        else:
            told = abs(new - old)
        scatter = scale(np.concatenate([np.diff(before), np.diff(after)])) / math.sqrt(2.0)
        earlier = values[max(2 * first - last - MIDDLE, 0) : max(2 * first - last, 1)]
        trend = max(sign * (level - float(np.median(earlier))), 0.0)
        return moved >= max(LENIENCY * told, STANDS_OUT * scatter, LENIENCY * ABRUPT * trend)

    def local_changes(self, parameters: Mapping[str, Any]) -> list[_Found]:
        """What the local rule of a detector of logged streams says where no other rule is near.

        Args:
            parameters: Those of the detector.
        """
        from phasewatch.detectors.offline.both_ways import seen_both_ways
        from phasewatch.detectors.online.local_change import LocalChange

        detector = LocalChange(
            certainty=parameters["certainty"],
            min_effect=parameters["min_effect"],
            falls=parameters["falls"],
        )
        steps, values = self.steps.tolist(), self.values.tolist()
        alarms = map(detector.update, steps, values)
        found = [
            _Found(self.name, a.onset_step, a.detected_step, a.direction, a.score, False, self.gap)
            for a in alarms
            if a is not None
        ]
        agreed = [
            _Found(
                self.name, c.onset_step, c.end_step, c.direction, math.exp(c.log_odds), False,
                self.gap,
            )
            for c in seen_both_ways(
                steps, values, is_loss=self.meaning.is_loss, min_effect=parameters["min_effect"]
            )
        ]  # fmt: skip
        return found + _uncovered(agreed, found)

    def stands_out(self, change: _Found) -> bool:
        """Whether a change that is narrow for this stream is more than the scatter around it."""
        if self.stderrs is not None or change.end - change.onset > 2.0 * change.cadence:
            return True
        logarithmic = self.meaning.is_loss and bool((self.values > 0.0).all())
        values = np.log10(self.values) if logarithmic else self.values
        first = int(np.searchsorted(self.steps, change.onset, side="right"))
        last = int(np.searchsorted(self.steps, change.end))
        before, after = values[max(first - LOOK, 0) : first], values[last : last + LOOK]
        scatter = scale(np.concatenate([np.diff(before), np.diff(after)])) / math.sqrt(2.0)
        gate = GATES[kind_of(self.meaning, None)] * (1.0 if logarithmic else float(np.ptp(values)))
        size = abs(np.median(after[:MIDDLE]) - np.median(before[-MIDDLE:]))
        return bool(size >= max(gate, STANDS_OUT * scatter))

    def value_at(self, step: int) -> float:
        """The value at a step, or at the next one observed."""
        index = min(int(np.searchsorted(self.steps, step)), self.steps.size - 1)
        return float(self.values[index])


def stored_history(store: Store, run_id: str) -> History:
    """Histories of a stored run; what was not good is NaN in them."""
    return partial(store.history, run_id)


def review(
    transitions: Iterable[Transition],
    streams: Iterable[Stream],
    history: History,
    *,
    run: str,
    attempt: int,
    holes: Iterable[Hole] = (),
    seconds: float = SECONDS,
) -> list[Transition]:
    """Look at transitions again, with the full history of their streams.

    Args:
        transitions: What was said of the run, as it stands.
        streams: The run's streams.
        history: Where their full history comes from.
        run: Identity of the run.
        attempt: Which fit of the run looks back.
        holes: What that history lacks: nothing is withdrawn for values that are gone.
        seconds: No stream is begun after so long.

    Returns:
        Every transition that was judged, with its verdict, and what was found besides.

    Raises:
        StoreError: The history cannot be read.
    """
    known = list(transitions)
    by_name = {stream.name: stream for stream in streams}
    leads = [s.name for s in by_name.values() if s.detector is not None and s.role is Role.LEADING]
    told = [n for t in known for n in t.evidence if by_name.get(n) is None or n in leads]
    meanings = Meanings(declared={s.name: s.meaning for s in by_name.values()})
    curves: dict[str, _Curve] = {}
    short: dict[str, _Curve] = {}
    deadline = time.monotonic() + seconds
    for name in dict.fromkeys([*told, *leads]):
        if time.monotonic() > deadline:
            break
        curve = _Curve.of(name, history(name), meanings.of(name))
        short[name] = curve
        if curve.steps.size >= MIN_POINTS:
            curves[name] = curve
    lenient = {name: curves[name].changes(LENIENCY) for name in dict.fromkeys(told) & curves.keys()}
    full = {name: curve.changes(1.0) for name, curve in curves.items()}
    supporting = by_name.keys() - leads
    gone = [*holes]
    judged = [
        _judged(t, full if _is_withdrawn(t) else lenient, curves, supporting, gone) for t in known
    ]
    has_validation = any(stream.meaning.held_out for stream in by_name.values())
    spans = [_span(t) for t in (*known, *judged) if t is not None]
    missed = [
        change
        for name in leads
        for change in full.get(name, ())
        if not change.still_open and curves[name].stands_out(change)
    ]
    for name in leads:
        detector = by_name[name].detector
        if name in short and detector is not None and name_of(detector) == LOGGED:
            changes = short[name].local_changes(parameters_of(detector))
            missed += _uncovered(changes, missed)
    found = [
        _found(group, short, run, attempt, ordinal, meanings, has_validation=has_validation)
        for ordinal, group in enumerate(
            _groups(missed, spans),
            start=1 + sum(t.hindsight is not None and t.hindsight.streamed is None for t in known),
        )
    ]
    return [t for t in judged if t is not None] + found


def _streamed(transition: Transition) -> TransitionStatus | None:
    """Status before any hindsight."""
    return transition.hindsight.streamed if transition.hindsight else transition.status


def _is_withdrawn(transition: Transition) -> bool:
    return _streamed(transition) in (TransitionStatus.WITHDRAWN, None)


def _span(transition: Transition) -> tuple[int, int]:
    """From the earlier onset to the later end of both verdicts."""
    onsets, ends = [transition.onset_step], [transition.detected_step, transition.end_step or 0]
    if (seen := transition.hindsight) is not None:
        if seen.streamed is None and seen.onset_step is not None:
            return seen.onset_step, seen.end_step or seen.onset_step
        onsets += [] if seen.onset_step is None else [seen.onset_step]
        ends.append(seen.end_step or 0)
    return min(onsets), max(ends)


def _overlaps(one: tuple[int, int], other: tuple[int, int]) -> bool:
    slack = NEAR * max(one[1] - one[0], 1)
    return other[0] <= one[1] + slack and one[0] - slack <= other[1]


def _reach(hole: Hole) -> tuple[int, int]:
    """The steps of which values may be gone."""
    return hole.first_step + 1, hole.last_step


def _judged(
    transition: Transition,
    changes: dict[str, list[_Found]],
    curves: dict[str, _Curve],
    supporting: set[str],
    holes: Sequence[Hole],
) -> Transition | None:
    """The transition with its verdict; None where nothing can be said."""
    looked_at = [
        (changes[name], alarm)
        for name, alarm in transition.evidence.items()
        if name in changes and alarm.kind is AlarmKind.SHIFT
    ]
    streamed = _streamed(transition)
    going_on = transition.end_step is None and streamed is not TransitionStatus.WITHDRAWN
    if transition.kind in NOT_JUDGED or not looked_at:
        return None
    span = _span(replace(transition, hindsight=None) if streamed else transition)
    seen = [
        change
        for found, alarm in looked_at
        if (change := _counterpart(found, alarm.direction, span)) is not None
    ]
    standing = [
        alarm
        for name, alarm in transition.evidence.items()
        if name in changes and alarm.kind is AlarmKind.SHIFT
        and (alarm.probability is not None or curves[name].shows(alarm, span))
    ]  # fmt: skip
    if not seen and standing and streamed is not TransitionStatus.WITHDRAWN:
        return _stands(transition, streamed, standing)
    if not seen:
        if going_on or len(looked_at) < sum(name not in supporting for name in transition.evidence):
            return None
        if any(h.stream in transition.evidence and _overlaps(span, _reach(h)) for h in holes):
            return None
        verdict = Hindsight(
            verdict=HindsightVerdict.WITHDRAWN,
            streamed=streamed,
            reason="neither the full history nor the values around it show an abrupt change",
        )
        return replace(transition, status=TransitionStatus.WITHDRAWN, hindsight=verdict)
    onset, end = _joint_span(seen)
    still_open = any(c.still_open and c.end == end for c in seen)
    width = max(end - onset, 1)
    kind = HindsightVerdict.CONFIRMED
    if abs(transition.onset_step - onset) > ONSET_RIGHT * width:
        kind = HindsightVerdict.CORRECTED
    else:
        onset = transition.onset_step
    if transition.end_step is None or abs(transition.end_step - end) > END_RIGHT * width:
        kind = HindsightVerdict.CORRECTED
    else:
        end, still_open = transition.end_step, False
    status = streamed
    if status is None or status is TransitionStatus.WITHDRAWN:
        kind, status = HindsightVerdict.FOUND, TransitionStatus.ENDED
    return replace(
        transition,
        status=status,
        hindsight=Hindsight(
            verdict=kind,
            streamed=streamed,
            onset_step=onset,
            end_step=None if still_open else end,
            score=max(c.score for c in seen),
        ),
    )


def _stands(
    transition: Transition, streamed: TransitionStatus | None, alarms: Sequence[Alarm]
) -> Transition:
    """A change that its surroundings show stands, whatever the rest of the history is."""
    verdict = Hindsight(
        verdict=HindsightVerdict.CONFIRMED,
        streamed=streamed,
        onset_step=transition.onset_step,
        end_step=transition.end_step,
        score=max(alarm.score for alarm in alarms),
        reason="the values around it show it",
    )
    return replace(transition, hindsight=verdict)


def _joint_span(changes: Sequence[_Found]) -> tuple[int, int]:
    """From the earliest onset to the latest end, as exactly as the streams tell."""
    onset = joint_onset((c.onset, c.cadence) for c in changes)
    return onset, -joint_onset((-c.end, c.cadence) for c in changes)


def _counterpart(
    changes: Sequence[_Found], direction: Direction, span: tuple[int, int]
) -> _Found | None:
    """The change that goes the same way and shares most steps with the span, if any does."""
    near = (c for c in changes if c.direction is direction and _overlaps(span, (c.onset, c.end)))
    return max(near, key=lambda c: min(c.end, span[1]) - max(c.onset, span[0]), default=None)


def _groups(changes: Sequence[_Found], taken: Sequence[tuple[int, int]]) -> Iterator[list[_Found]]:
    """Changes that no transition covers; those that overlap are one."""
    left = sorted(
        (c for c in changes if not any(_overlaps(span, (c.onset, c.end)) for span in taken)),
        key=lambda c: c.onset,
    )
    while left:
        group = [left.pop(0)]
        for change in list(left):
            last = max(c.end for c in group)
            if change.onset <= last and change.name not in {c.name for c in group}:
                group.append(change)
                left.remove(change)
        yield group


def _uncovered(changes: Sequence[_Found], known: Sequence[_Found]) -> list[_Found]:
    """Changes that do not overlap a known one of the same stream."""
    spans = [(one.name, (one.onset, one.end)) for one in known]
    return [
        change
        for change in changes
        if not any(
            name == change.name and _overlaps(span, (change.onset, change.end))
            for name, span in spans
        )
    ]


def _found(
    group: Sequence[_Found],
    curves: dict[str, _Curve],
    run: str,
    attempt: int,
    ordinal: int,
    meanings: Meanings,
    *,
    has_validation: bool,
) -> Transition:
    """What the stream missed, as a transition first seen in hindsight."""
    evidence, before, after = {}, {}, {}
    for change in group:
        curve = curves[change.name]
        before[change.name] = curve.value_at(change.onset)
        after[change.name] = curve.value_at(change.end)
        evidence[change.name] = Alarm(
            detected_step=int(curve.steps[-1]),
            onset_step=change.onset,
            direction=change.direction,
            score=change.score / ABRUPT,
            run_length=int(np.searchsorted(curve.steps, change.end, side="right"))
            - int(np.searchsorted(curve.steps, change.onset)),
            value_before=before[change.name],
            value_after=after[change.name],
        )
    onset, end = _joint_span(group)
    return Transition(
        id=str(uuid.uuid5(NAMESPACE, f"{run}/hindsight/{ordinal}")),
        run=run,
        attempt=attempt,
        kind=classify(evidence, has_validation=has_validation, meanings=meanings),
        status=TransitionStatus.ENDED,
        onset_step=onset,
        detected_step=max(alarm.detected_step for alarm in evidence.values()),
        end_step=end,
        detected_at=time.time(),
        severity=severity(before, after, meanings),
        evidence=evidence,
        before=before,
        after=after,
        hindsight=Hindsight(
            verdict=HindsightVerdict.FOUND,
            streamed=None,
            onset_step=onset,
            end_step=end,
            score=max(c.score for c in group),
        ),
    )
