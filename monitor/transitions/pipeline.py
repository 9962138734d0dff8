"""From numbers to transitions: every stream's detector, the fusing of alarms, and the account."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, get_args

from phasewatch import detectors
from phasewatch.detectors.base import Detector
from phasewatch.detectors.online.local_change import SUDDEN
from phasewatch.detectors.types import Alarm, AlarmKind
from phasewatch.monitor.config.monitor import MonitorConfig
from phasewatch.monitor.core.columns import Chunk, Column
from phasewatch.monitor.core.estimates import EstimateStatus, Observation
from phasewatch.monitor.core.health import Health
from phasewatch.monitor.core.meaning import DetectorKind, Meanings, Role, StreamMeaning
from phasewatch.monitor.core.ownership import is_ours
from phasewatch.monitor.core.stray import let_through
from phasewatch.monitor.core.transitions import Transition, TransitionKind, TransitionStatus
from phasewatch.monitor.transitions.episodes import Point
from phasewatch.monitor.transitions.streams import Override, Stream, Streams, create_detector
from phasewatch.monitor.transitions.tracker import TransitionTracker

log = logging.getLogger("phasewatch")

Locate = Callable[[int, int], tuple[tuple[str, float], ...]]
"""From two steps to the parameter groups that moved most between them."""


class Detection:
    """Detectors and transitions of one run.

    Args:
        config: The run's configuration.
        given: Detectors, or their names, by stream name.
        run_id: Identity of the run.
        health: Where transitions, scores and non-finite values are counted.
        override: Which detector a stream gets in place of the one it would have.
        locate: Tells which parameter groups moved most between two steps; None leaves that open.
        declared: What the run's observables declare of their streams.

    Attributes:
        meanings: What the streams mean.

    Raises:
        ConfigError: A detector's name or parameters are wrong.
    """

    def __init__(
        self,
        config: MonitorConfig,
        given: Mapping[str, Detector | str] | None,
        run_id: str,
        health: Health,
        override: Override | None = None,
        *,
        locate: Locate | None = None,
        declared: Mapping[str, StreamMeaning] | None = None,
    ) -> None:
        self.meanings = Meanings(config.stream_settings, declared)
        self._health = health
        self._find = locate
        self._streams = Streams(
            config.detectors, given, override, config.false_alarms_per_run, self.meanings
        )
        self._tracker = TransitionTracker(run_id, attempt=0, meanings=self.meanings)
        self._ahead = {
            name: detector
            for name, settings in config.precursors.items()
            if (detector := create_detector(settings)) is not None
        }
        self._announced: dict[str, TransitionKind] = {}
        self._told: dict[str, Transition] = {}
        self._seen: dict[str, int] = {}
        self._last: dict[str, Point] = {}

    @property
    def transitions(self) -> list[Transition]:
        """Transitions found so far, in the order of their onset."""
        return sorted(self._tracker.found.values(), key=lambda t: t.onset_step)

    @property
    def streams(self) -> Streams:
        """The streams seen so far, each with its detector."""
        return self._streams

    @property
    def is_ours(self) -> bool:
        """Whether no detector runs code of the user's, which may touch whatever it likes."""
        return self._streams.is_ours and all(map(is_ours, self._ahead.values()))

    def prepare(self) -> None:
        """Import the default detectors: a fork while another thread does would lock its child."""
        for kind in get_args(DetectorKind):
            detectors.create(detectors.default_name(kind))

    def revise(self, reviewed: Iterable[Transition]) -> None:
        """Take over what hindsight says of transitions."""
        for transition in reviewed:
            self._tracker.annotate(transition)

    def enter_checkpoints(self, transition: str, paths: tuple[str, ...]) -> Transition | None:
        """Say which checkpoints are kept around a transition; None where it is not known."""
        known = self._tracker.found.get(transition)
        if known is None:
            return None
        changed = replace(known, checkpoints=paths)
        self._tracker.annotate(changed)
        return changed

    def expect(self, first_step: int, last_step: float) -> None:
        """Say where the run begins and should end; its false alarms are spread over that.

        Only at the start of a run: a resumed one keeps what it had, or its replay would differ.
        """
        self._streams.horizon = (first_step, last_step) if math.isfinite(last_step) else None

    def start(self, run_id: str, attempt: int) -> None:
        """Begin an attempt."""
        self._tracker.run, self._tracker.attempt = run_id, attempt

    def is_new(self, observation: Observation) -> bool:
        """Whether its stream has not got to this step yet."""
        return observation.step > self._seen.get(observation.name, -1)

    def take_chunk(self, chunk: Chunk) -> list[Transition]:
        """Detect on scalars or on a measured value, as they come."""
        return self.take(chunk) if isinstance(chunk, Observation) else self.take_columns(chunk)

    def take_columns(
        self, columns: Mapping[str, Column], breathe: Callable[[], None] = lambda: None
    ) -> list[Transition]:
        """Detect on many exact scalars of many streams.

        How a run is cut into calls depends on the clock; what is found does not: points are fused
        in the order of step, time and name.

        Args:
            columns: The scalars.
            breathe: Called between streams, so that a thread may let others go on.

        Returns:
            Every state that a transition newly took, in the order of steps.
        """
        points: list[Point] = []
        for name, column in columns.items():
            breathe()
            self._seen[name] = column.steps[-1]
            stream = self._streams.get(name)
            if stream.detector is None:
                self._count_nonfinite(name, column)
                continue
            try:
                points += self._take_column(stream, stream.detector, column)
            except BaseException as error:
                let_through(error)
                self._put_away(stream, error)
        points.sort(key=lambda point: (point.step, point.timestamp, point.name))
        validated = min(
            (
                (c.steps[0], c.timestamps[0])
                for name, c in columns.items()
                if self.meanings.of(name).held_out
            ),
            default=(math.inf, math.inf),
        )
        changed = []
        for point in points:
            self._tracker.has_validation |= (point.step, point.timestamp) >= validated
            changed += self._fuse(point)
        self._tracker.has_validation |= math.isfinite(validated[0])
        return changed

    def _put_away(self, stream: Stream, error: BaseException) -> None:
        """A detector that raises detects no more; its stream is still stored."""
        stream.detector = None
        self._health.measurement_failures[f"detector of {stream.name}"] += 1
        log.warning(
            "the detector of %s raised %s: %s; the stream is stored, but no longer watched",
            stream.name,
            type(error).__name__,
            error,
        )

    def _count_nonfinite(self, name: str, column: Column) -> None:
        if wrong := sum(not math.isfinite(value) for value in column.values):
            self._health.nonfinite[name] += wrong

    def _take_column(self, stream: Stream, detector: Detector, column: Column) -> list[Point]:
        """Feed one stream; returns the points that fusing must see."""
        points = []
        followed = self._tracker.concerns(stream.name)
        update = detector.update
        ahead = self._ahead.get(stream.name)
        for index, value in enumerate(column.values):
            alarm = update(column.steps[index], value)
            if ahead is not None and (sign := ahead.update(column.steps[index], value)):
                followed = True
                points.append(self._point(stream, column, index, as_precursor(sign)))
            if alarm is not None or followed:
                followed = True
                points.append(self._point(stream, column, index, self._read(stream.name, alarm)))
            if value - value != 0.0:  # NaN or infinite, in one comparison
                self._health.nonfinite[stream.name] += 1
        self._last[stream.name] = self._point(stream, column, -1, None)
        return points

    def _read(self, name: str, alarm: Alarm | None) -> Alarm | None:
        """What an alarm means for this stream: a sudden turn to the worse is an instability.

        Held-out data turn to the worse where a run memorises, too, and that is none.
        """
        if alarm is None or alarm.probability is None or alarm.run_length > SUDDEN:
            return alarm
        meaning = self.meanings.of(name)
        if meaning.held_out:
            return alarm
        better = meaning.better
        if better is None or alarm.direction is better:
            return alarm
        return replace(alarm, kind=AlarmKind.INSTABILITY)

    def _point(self, stream: Stream, column: Column, index: int, alarm: Alarm | None) -> Point:
        return Point(
            name=stream.name,
            step=column.steps[index],
            value=column.values[index],
            epoch=column.epochs[index],
            timestamp=column.timestamps[index],
            active=stream.active,
            role=stream.role,
            alarm=alarm,
        )

    def take(self, observation: Observation) -> list[Transition]:
        """Detect on one measured value.

        A value that is finite and not OK never reaches a detector; a non-finite one is counted.

        Returns:
            Every state that a transition newly took.
        """
        name, step, value = observation.name, observation.step, observation.value
        self._seen[name] = step
        if not math.isfinite(value):
            self._health.nonfinite[name] += 1
            return []
        if observation.status is not EstimateStatus.OK:
            return []
        stream = self._streams.get(name, observation.stderr, measured=True)
        try:
            alarm = stream.update(step, value, observation.stderr)
            ahead = self._ahead.get(name)
            sign = ahead.update(step, value, observation.stderr) if ahead is not None else None
        except BaseException as error:
            let_through(error)
            self._put_away(stream, error)
            return []
        point = Point(
            name=name,
            step=step,
            value=value,
            epoch=observation.epoch,
            timestamp=observation.timestamp,
            active=stream.active,
            role=stream.role,
            alarm=alarm,
        )
        changed = []
        if sign is not None:
            changed += self._fuse(replace(point, alarm=as_precursor(sign)))
        if alarm is not None or name in self._tracker.following:
            changed += self._fuse(point)
        return changed

    def _fuse(self, point: Point) -> list[Transition]:
        changed = []
        for transition in self._tracker.update(point):
            transition = self._locate(transition, point.step)
            # One point may confirm a transition and end it: that is news all the same.
            sure = transition.status in (TransitionStatus.CONFIRMED, TransitionStatus.ENDED)
            if sure:
                self._announce(transition)
            self._told[transition.id] = transition
            changed.append(transition)
        return changed

    def finish(self) -> list[Transition]:
        """The run is over.

        Returns:
            The states that this gave them, in order.
        """
        ended = self._finish_streams()
        ended += [self._locate(t, t.detected_step) for t in self._tracker.finish()]
        for transition in ended:
            if transition.status is TransitionStatus.CONFIRMED:
                self._announce(transition)
            self._told[transition.id] = transition
        return ended

    def _finish_streams(self) -> list[Transition]:
        """What detectors were still waiting to see more of is told now or never."""
        changed = []
        for stream in self._streams:
            finish = getattr(stream.detector, "finish", None)
            if finish is None or (last := self._last.get(stream.name)) is None:
                continue
            if (alarm := self._read(stream.name, finish())) is not None:
                changed += self._fuse(replace(last, alarm=alarm, active=True))
        return changed

    def grown(self) -> list[Transition]:
        """Transitions that have changed since they were told: larger, or seen by more alarms."""
        return [t for t in self.transitions if self._told.get(t.id) != t]

    def _announce(self, transition: Transition) -> None:
        """Count a transition and say it; again where its kind has changed since."""
        told = self._announced.get(transition.id)
        if transition.kind is told:
            return
        lead = next(iter(transition.evidence))
        if told is not None:
            self._health.corrected[told] += 1
        self._announced[transition.id] = transition.kind
        self._health.transitions[transition.kind, lead] += 1
        self._health.last_transition = transition
        log.info(
            "transition: %s%s at step %d (detected at %d), %s %.4g → %.4g, seen by %s",
            transition.kind,
            f" (told before as {told})" if told is not None else "",
            transition.onset_step,
            transition.detected_step,
            lead,
            transition.before[lead],
            transition.after[lead],
            ", ".join(transition.evidence),
        )

    def _locate(self, transition: Transition, step: int) -> Transition:
        """Where in the model it happened: as far as is known when confirmed, in full at its end."""
        ended = transition.status is TransitionStatus.ENDED
        if self._find is None or not (ended or transition.status is TransitionStatus.CONFIRMED):
            return transition
        if transition.where and not ended:
            return transition
        end = transition.end_step if ended else None
        where = self._find(transition.onset_step, step if end is None else end)
        if not where:
            return transition
        transition = replace(transition, where=where)
        self._tracker.annotate(transition)
        return transition

    def refresh_scores(self) -> None:
        """Write every detector's score, and what can open a transition, into the health record."""
        for stream in self._streams:
            if stream.detector is not None and stream.role is Role.LEADING:
                self._health.leads.setdefault(stream.name)
            if math.isfinite(score := stream.score):
                self._health.detector_scores[stream.name] = score

    def state_dict(self) -> dict[str, Any]:
        """Detectors and transitions, as plain containers."""
        return {
            "streams": self._streams.state_dict(),
            "horizon": self._streams.horizon and list(self._streams.horizon),
            "transitions": self._tracker.state_dict(),
            "ahead": {name: detector.state_dict() for name, detector in self._ahead.items()},
            "seen": dict(self._seen),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._streams.load_state_dict(state["streams"])
        self._streams.horizon = state["horizon"] and tuple(state["horizon"])
        self._tracker.load_state_dict(state["transitions"])
        for name, saved in state["ahead"].items():
            if name in self._ahead:
                self._ahead[name].load_state_dict(saved)
        self._seen = {name: int(step) for name, step in state["seen"].items()}
        self._announced = {
            t.id: t.kind for t in self.transitions if t.status is not TransitionStatus.SUSPECTED
        }


def as_precursor(alarm: Alarm) -> Alarm:
    """The alarm of a detector that only foretells."""
    return replace(alarm, kind=AlarmKind.PRECURSOR)
