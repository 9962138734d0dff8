"""How the monitor itself is doing: plain counters that the watch writes and exporters read."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.estimates import EstimateStatus
from phasewatch.monitor.core.metrics import MEASUREMENT_BUCKETS
from phasewatch.monitor.core.transitions import Transition, TransitionKind


def _born_at_zero_statuses() -> dict[EstimateStatus, int]:
    return dict.fromkeys(EstimateStatus, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Durations:
    """How long measurements took, as a histogram. Never changed, only replaced by a later one.

    Attributes:
        counts: Measurements in each of `MEASUREMENT_BUCKETS`, and in the one above them.
        sum_seconds: All their time.
        latest_seconds: Time of the latest.
        latest_step: Step of the latest.
        latest_timestamp: When the latest ended, in Unix seconds; 0 before the first.
    """

    counts: tuple[int, ...] = (0,) * (len(MEASUREMENT_BUCKETS) + 1)
    sum_seconds: float = 0.0
    latest_seconds: float = 0.0
    latest_step: int = 0
    latest_timestamp: float = 0.0

    @property
    def latest_bucket(self) -> int:
        """Index in `counts` of the latest."""
        return bisect_left(MEASUREMENT_BUCKETS, self.latest_seconds)

    def after(self, seconds: float, step: int, timestamp: float) -> Durations:
        """These and one more.

        Args:
            seconds: Duration of the measurement.
            step: Step at which it was made.
            timestamp: Unix time in seconds.
        """
        index = bisect_left(MEASUREMENT_BUCKETS, seconds)
        return Durations(
            counts=tuple(n + (i == index) for i, n in enumerate(self.counts)),
            sum_seconds=self.sum_seconds + seconds,
            latest_seconds=seconds,
            latest_step=step,
            latest_timestamp=timestamp,
        )


@dataclass(slots=True, kw_only=True)
class Health:
    """Counters of this process, each written by one thread; readers may lag by one update.

    Attributes:
        state: State of the run.
        step: Latest optimizer step heard of.
        epoch: Latest epoch heard of.
        last_step_timestamp: Unix seconds at which it was heard of.
        steps_per_second: Over the last drain.
        overhead_ratio: Time spent monitoring over wall time, since the first measurements.
        overhead_budget: Share of wall time allowed; 1 is no budget.
        monitor_seconds_total: All time spent monitoring, first measurements included.
        beside_seconds_total: Processor time of the monitor's own threads.
        thinned_points: Points that were stored, and that detection did not look at.
        dense_windows: Windows in which was measured more densely, around suspected transitions.
        checkpoints_written: Checkpoints written for what comes before or after a suspicion.
        checkpoint_bytes: What those that are kept take on disk.
        measurements: Successful measurements by observable.
        durations: How long they took, by observable.
        measurement_failures: Failed measurements by observable.
        unfinished: Measurements that were left before their end, by observable.
        skipped: Observables that cannot be measured here, and how often that came up.
        skip_reasons: Why, by observable.
        estimates: LLC estimates by status.
        nonfinite: Non-finite values by stream.
        detector_scores: Statistic over threshold by stream.
        leads: Streams that can open a transition, in the order in which they appeared.
        transitions: Transitions by the kind they were told as and lead observable, the one that
            saw it first.
        corrected: Those of them that turned out to be of another kind, and were told again.
        last_transition: The latest one, in its latest state.
        sink_failures: Exceptions raised by sinks, by sink.
        repairs: Parts of the live module that a measurement had changed and that were put back.
        alert_queue: Messages about transitions that wait to be sent.
        alert_sent: Messages delivered.
        alert_failures: Tries to deliver one that failed.
        store_queue_depth: Rows waiting to be written.
        store_dropped: Rows lost because the queue was full.
        store_failed: Failed writes to the store.
        alert_queue: Messages about transitions that wait to be sent.
        alert_sent: Messages delivered.
        alert_failures: Tries to deliver one that failed.
    """

    state: RunState = RunState.RUNNING
    step: int = 0
    epoch: int | None = None
    last_step_timestamp: float = 0.0
    steps_per_second: float = 0.0
    overhead_ratio: float = 0.0
    overhead_budget: float = 1.0
    monitor_seconds_total: float = 0.0
    beside_seconds_total: float = 0.0
    thinned_points: int = 0
    dense_windows: int = 0
    checkpoints_written: int = 0
    checkpoint_bytes: int = 0
    measurements: Counter[str] = field(default_factory=Counter)
    durations: dict[str, Durations] = field(default_factory=dict)
    measurement_failures: Counter[str] = field(default_factory=Counter)
    unfinished: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    skip_reasons: dict[str, str] = field(default_factory=dict)
    estimates: dict[EstimateStatus, int] = field(default_factory=_born_at_zero_statuses)
    nonfinite: Counter[str] = field(default_factory=Counter)
    detector_scores: dict[str, float] = field(default_factory=dict)
    leads: dict[str, None] = field(default_factory=dict)
    transitions: Counter[tuple[TransitionKind, str]] = field(default_factory=Counter)
    corrected: Counter[TransitionKind] = field(default_factory=Counter)
    last_transition: Transition | None = None
    sink_failures: Counter[str] = field(default_factory=Counter)
    repairs: int = 0
    alert_queue: int = 0
    alert_sent: int = 0
    alert_failures: int = 0
    store_queue_depth: int = 0
    store_dropped: int = 0
    store_failed: int = 0

    def born(self, observables: Iterable[str], sinks: Iterable[str]) -> None:
        """Give every counter its first value: one that appears above zero is not seen to rise."""
        for name in observables:
            for counter in (
                self.measurements,
                self.measurement_failures,
                self.unfinished,
                self.skipped,
            ):
                counter[name] += 0
            self.durations.setdefault(name, Durations())
        for name in sinks:
            self.sink_failures[name] += 0

    def measured(self, observable: str, seconds: float, step: int) -> None:
        """Count one successful measurement.

        Args:
            observable: Name of the observable.
            seconds: How long it took.
            step: Step at which it was made.
        """
        self.measurements[observable] += 1
        before = self.durations.get(observable, Durations())
        self.durations[observable] = before.after(seconds, step, time.time())
