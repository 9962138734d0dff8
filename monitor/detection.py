"""From numbers to transitions: every stream's detector, the fusing of alarms, and the account."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from phasewatch.detectors.base import Detector
from phasewatch.detectors.types import Alarm
from phasewatch.monitor.config import MonitorConfig
from phasewatch.monitor.health import Health
from phasewatch.monitor.scalars import Chunk, Column
from phasewatch.monitor.streams import Override, Role, Stream, Streams
from phasewatch.monitor.transitions import Point, TransitionTracker, is_validation
from phasewatch.monitor.types import EstimateStatus, Observation, Transition, TransitionStatus

log = logging.getLogger("phasewatch")

GROUP_PREFIX = "weight_norm/"
GROUP_HISTORY = 1024
"""Norms kept of each parameter group, to say where in the model a transition happened."""


class Detection:
    """Detectors and transitions of one run.

    Args:
        config: The run's configuration.
        given: Detectors, or their names, by stream name.
        run_id: Identity of the run.
        health: Where transitions, scores and non-finite values are counted.
        override: Which detector a stream gets in place of the one it would have.

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
    ) -> None:
        self._health = health
        self._streams = Streams(config.detectors, given, override)
        self._tracker = TransitionTracker(run_id, attempt=0)
        self._group_norms: dict[str, deque[tuple[int, float]]] = {}
        self._announced: set[str] = set()
        self._seen: dict[str, int] = {}

    @property
    def transitions(self) -> list[Transition]:
        """Transitions found so far, in the order of their onset."""
        return sorted(self._tracker.found.values(), key=lambda t: t.onset_step)

    @property
    def streams(self) -> Streams:
        """The streams seen so far, each with its detector."""
        return self._streams

    def revise(self, reviewed: Iterable[Transition]) -> None:
        """Take over what hindsight says of transitions."""
        for transition in reviewed:
            self._tracker.annotate(transition)

    def start(self, run_id: str, attempt: int) -> None:
        """Begin an attempt."""
        self._tracker.run, self._tracker.attempt = run_id, attempt

    def is_new(self, observation: Observation) -> bool:
        """Whether its stream has not got to this step yet."""
        return observation.step > self._seen.get(observation.name, -1)

    def take_chunk(self, chunk: Chunk) -> list[Transition]:
        """Detect on scalars or on a measured value, as they come."""
        return self.take(chunk) if isinstance(chunk, Observation) else self.take_columns(chunk)

    def take_columns(self, columns: Mapping[str, Column]) -> list[Transition]:
        """Detect on many exact scalars of many streams.

        How a run is cut into calls depends on the clock; what is found does not: points are fused
        in the order of step, time and name.

        Returns:
            Every state that a transition newly took, in the order of steps.
        """
        points: list[Point] = []
        for name, column in columns.items():
            self._seen[name] = column.steps[-1]
            stream = self._streams.get(name)
            if stream.detector is None:
                self._count_nonfinite(name, column)
                continue
            try:
                points += self._take_column(stream, stream.detector, column)
            except Exception as error:
                self._put_away(stream, error)
        points.sort(key=lambda point: (point.step, point.timestamp, point.name))
        validated = min(
            ((c.steps[0], c.timestamps[0]) for n, c in columns.items() if is_validation(n)),
            default=(math.inf, math.inf),
        )
        changed = []
        for point in points:
            self._tracker.has_validation |= (point.step, point.timestamp) >= validated
            changed += self._fuse(point)
        self._tracker.has_validation |= math.isfinite(validated[0])
        return changed

    def _put_away(self, stream: Stream, error: Exception) -> None:
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
        for index, value in enumerate(column.values):
            alarm = update(column.steps[index], value)
            if alarm is not None or followed:
                followed = True
                points.append(self._point(stream, column, index, alarm))
            if value - value != 0.0:  # NaN or infinite, in one comparison
                self._health.nonfinite[stream.name] += 1
        return points

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
        if name.startswith(GROUP_PREFIX):
            norms = self._group_norms.setdefault(
                name.removeprefix(GROUP_PREFIX), deque(maxlen=GROUP_HISTORY)
            )
            norms.append((step, value))
        stream = self._streams.get(name, observation.stderr, measured=True)
        try:
            alarm = stream.update(step, value, observation.stderr)
        except Exception as error:
            self._put_away(stream, error)
            return []
        if alarm is None and name not in self._tracker.following:
            return []
        return self._fuse(
            Point(
                name=name,
                step=step,
                value=value,
                epoch=observation.epoch,
                timestamp=observation.timestamp,
                active=stream.active,
                role=stream.role,
                alarm=alarm,
            )
        )

    def _fuse(self, point: Point) -> list[Transition]:
        changed = []
        for transition in self._tracker.update(point):
            if transition.status is TransitionStatus.CONFIRMED and not transition.where:
                transition = self._locate(transition)
                self._tracker.annotate(transition)
            if (
                transition.status is TransitionStatus.CONFIRMED
                and transition.id not in self._announced
            ):
                self._announce(transition)
            changed.append(transition)
        return changed

    def _announce(self, transition: Transition) -> None:
        self._announced.add(transition.id)
        lead = next(iter(transition.evidence))
        self._health.transitions[transition.kind, lead] += 1
        self._health.last_transition = transition
        log.info(
            "transition: %s at step %d (detected at %d), %s %.4g → %.4g, seen by %s",
            transition.kind,
            transition.onset_step,
            transition.detected_step,
            lead,
            transition.before[lead],
            transition.after[lead],
            ", ".join(transition.evidence),
        )

    def _locate(self, transition: Transition) -> Transition:
        """Rank parameter groups by the relative change of their norm since the onset."""
        changes = []
        for group, norms in self._group_norms.items():
            before = [value for step, value in norms if step <= transition.onset_step]
            start, end = (before or [norms[0][1]])[-1], norms[-1][1]
            scale = max(abs(start), abs(end))
            changes.append((group, abs(end - start) / scale if scale else 0.0))
        changes.sort(key=lambda item: -item[1])
        return replace(transition, where=tuple(changes))

    def refresh_scores(self) -> None:
        """Write every detector's score, and what can open a transition, into the health record."""
        for stream in self._streams:
            if stream.detector is not None and stream.role is Role.LEAD:
                self._health.leads.setdefault(stream.name)
            if math.isfinite(score := stream.score):
                self._health.detector_scores[stream.name] = score

    def state_dict(self) -> dict[str, Any]:
        """Detectors and transitions, as plain containers."""
        return {
            "streams": self._streams.state_dict(),
            "transitions": self._tracker.state_dict(),
            "seen": dict(self._seen),
            "group_norms": {name: list(norms) for name, norms in self._group_norms.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._streams.load_state_dict(state["streams"])
        self._tracker.load_state_dict(state["transitions"])
        self._group_norms = {
            name: deque(((int(step), float(norm)) for step, norm in norms), maxlen=GROUP_HISTORY)
            for name, norms in state["group_norms"].items()
        }
        self._seen = {name: int(step) for name, step in state["seen"].items()}
        self._announced = {
            t.id for t in self.transitions if t.status is not TransitionStatus.SUSPECTED
        }
