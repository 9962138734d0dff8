"""A stored run as OpenMetrics with times, for a Prometheus that has not scraped it.

`promtool tsdb create-blocks-from openmetrics` makes blocks of it. A value is repeated while the run
shows signs of life, as a scrape would have seen it: Prometheus forgets a series after five minutes.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TextIO

from phasewatch.monitor.core import metrics as m
from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.meaning import Meanings
from phasewatch.monitor.core.transitions import Transition, TransitionStatus
from phasewatch.monitor.prometheus.collector import of_observation
from phasewatch.monitor.prometheus.exposition import head, number, preamble
from phasewatch.monitor.store.store import RunInfo, Store

REPEAT_SECONDS = 60.0
"""A series has a sample at least so often while the run shows signs of life."""


@dataclass(slots=True)
class Series:
    """Samples of one series: milliseconds since 1970, always later ones, and values."""

    times: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))

    def add(self, time_ms: int, value: float, thin_ms: int) -> bool:
        """Add a sample, in place of the last one in the same interval; False if it is too late.

        Args:
            time_ms: Unix time in milliseconds.
            value: The value.
            thin_ms: Length of the intervals of which only the last sample is kept, in milliseconds.
        """
        if self.times and time_ms < self.times[-1]:
            return False
        if self.times and time_ms // thin_ms == self.times[-1] // thin_ms:
            self.times[-1], self.values[-1] = time_ms, value
        else:
            self.times.append(time_ms)
            self.values.append(value)
        return True

    def held(self, beats: Iterable[int]) -> Series:
        """These samples, and the last one again at each beat that lies well after it."""
        times = [*self.times]
        for beat in beats:
            index = bisect_right(self.times, beat) - 1
            if index >= 0 and beat - self.times[index] >= 500 * REPEAT_SECONDS:
                times.append(beat)
        times.sort()
        at = (bisect_right(self.times, time) - 1 for time in times)
        return Series(array("q", times), array("d", (self.values[i] for i in at)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What was written.

    Attributes:
        num_series: Series.
        num_samples: Samples of them all.
        num_left_out: Observations without a time, or earlier than one before them.
    """

    num_series: int
    num_samples: int
    num_left_out: int


Key = tuple[str, tuple[str, ...]]
"""Name of a metric, and values of its labels after those of the run."""


class History:
    """The series of one stored run.

    Args:
        store: Where it is stored.
        run: The run.
        interval_seconds: Of the values of a series within so long only the last is kept; 0 keeps
            all that lie a millisecond apart.

    Raises:
        StoreError: The store cannot be read.
    """

    def __init__(self, store: Store, run: RunInfo, *, interval_seconds: float) -> None:
        self._thin_ms = max(1, round(1000 * interval_seconds))
        self._series: dict[Key, Series] = {}
        self._run = run
        self._meanings = Meanings.stored(run.config)
        self.num_left_out = 0
        self._load(store)

    def _load(self, store: Store) -> None:
        # Only what has a standard error has details; the others are read as they come.
        measured = {
            info.name for info in store.streams(self._run.id) if info.last.stderr is not None
        }
        steps: dict[int, int] = {}
        for observation in store.in_order(self._run.id):
            if not observation.timestamp > 0:
                self.num_left_out += 1
                continue
            time_ms = round(1000 * observation.timestamp)
            bucket = time_ms // self._thin_ms
            steps[bucket] = max(steps.get(bucket, 0), observation.step)
            if observation.name not in measured:
                self._add_observation(observation, time_ms)
        for name in sorted(measured):
            for observation in store.observations(self._run.id, name):
                if observation.timestamp > 0:
                    self._add_observation(observation, round(1000 * observation.timestamp))
        for bucket, step in sorted(steps.items()):
            self._add(m.RUN_STEP, (), bucket * self._thin_ms, step)
        self._add_transitions(store.transitions(self._run.id))
        self._add_states()

    def _add(self, metric: m.Metric, labels: tuple[str, ...], time_ms: int, value: float) -> bool:
        series = self._series.setdefault((metric.name, labels), Series())
        return series.add(time_ms, float(value), self._thin_ms)

    def _add_observation(self, observation: Observation, time_ms: int) -> None:
        added = [
            self._add(reading.metric, reading.labels, time_ms, reading.value)
            for reading in of_observation(observation, self._meanings)
            if isinstance(reading.value, (int, float))
        ]
        self.num_left_out += not all(added)

    def _add_transitions(self, transitions: Iterable[Transition]) -> None:
        standing = (TransitionStatus.CONFIRMED, TransitionStatus.ENDED)
        counts: Counter[tuple[str, ...]] = Counter()
        start = round(1000 * self._run.started_at)
        for item in sorted(transitions, key=lambda item: item.detected_at):
            if item.status not in standing:
                continue
            labels = (item.kind.value, next(iter(item.evidence)))
            if not counts[labels]:
                self._add(m.TRANSITIONS, labels, start, 0)
            counts[labels] += 1
            time_ms = round(1000 * item.detected_at)
            for metric, own, value in (
                (m.TRANSITIONS, labels, counts[labels]),
                (m.LAST_TRANSITION_STEP, (), item.detected_step),
                (m.LAST_TRANSITION_ONSET_STEP, (), item.onset_step),
                (m.LAST_TRANSITION_TIMESTAMP, (), item.detected_at),
                (m.LAST_TRANSITION_SEVERITY, (), item.severity),
            ):
                self._add(metric, own, time_ms, value)

    def _add_states(self) -> None:
        run = self._run
        for state in RunState:
            running = state is RunState.RUNNING
            self._add(m.RUN_STATE, (state.value,), round(1000 * run.started_at), running)
            if run.state is not RunState.RUNNING:
                end = round(1000 * (run.ended_at or run.last_seen))
                self._add(m.RUN_STATE, (state.value,), end, state is run.state)

    def write(self, out: TextIO) -> Written:
        """Write the whole text.

        Args:
            out: Where to.

        Raises:
            OSError: It cannot be written.
        """
        run = m.RunLabels(m.label_value(self._run.name), self._run.id)
        beats = [*self._beats()]
        by_metric: dict[str, list[Key]] = {}
        for key in self._series:
            by_metric.setdefault(key[0], []).append(key)
        num_samples = 0
        for metric in m.METRICS:
            keys = by_metric.get(metric.name)
            if keys is None:
                continue
            out.write(preamble(metric, openmetrics=True))
            for key in sorted(keys, key=lambda key: key[1]):
                start = head(metric.name, run.of(metric, key[1]))
                series = self._series[key].held(beats)
                num_samples += len(series.times)
                for time_ms, value in zip(series.times, series.values, strict=True):
                    seconds = f"{time_ms // 1000}.{time_ms % 1000:03d}"
                    out.write(f"{start}{number(value)} {seconds}\n")
        out.write("# EOF\n")
        return Written(
            num_series=len(self._series), num_samples=num_samples, num_left_out=self.num_left_out
        )

    def _beats(self) -> Iterator[int]:
        """Times at which the run showed signs of life, a repeat apart, and the last of them."""
        times = self._series.get((m.RUN_STEP.name, ()), Series()).times
        last = -math.inf
        for time_ms in times:
            if time_ms - last >= 1000 * REPEAT_SECONDS:
                last = time_ms
                yield time_ms
        if times and times[-1] != last:
            yield times[-1]
