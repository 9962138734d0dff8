"""What is served of one run: the latest of each stream, and the health of the watch."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Any, cast

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.core import Metric as Family
from prometheus_client.samples import Exemplar

from phasewatch.monitor.core import metrics as m
from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.estimates import Estimate, EstimateStatus, Observation
from phasewatch.monitor.core.health import Durations, Health
from phasewatch.monitor.core.meaning import Meanings
from phasewatch.monitor.core.redaction import get_logger
from phasewatch.monitor.core.transitions import Transition, TransitionKind
from phasewatch.monitor.core.version import phasewatch_version
from phasewatch.monitor.prometheus.exposition import BOUNDS, NUM_BUCKET_SERIES, Reading, Text

logger = get_logger(__name__)


class RunCollector:
    """A collector for `prometheus_client`. Training replaces entries of dictionaries, no more.

    Args:
        run: Name of the run.
        health: The watch's counters.
        experiment: Name of the experiment, empty if it has none.
        meanings: What the streams mean; None goes by their names.
        run_id: Identity of the run.
        attempt: Which fit of the run.

    Attributes:
        runbook_url: The page that alerts are to lead to; empty if there is none.
    """

    def __init__(
        self,
        run: str,
        health: Health,
        experiment: str = "",
        meanings: Meanings | None = None,
        *,
        run_id: str = "",
        attempt: int | None = None,
    ) -> None:
        self._meanings = meanings or Meanings()
        self.run = m.label_value(run)
        self.labels = m.RunLabels(self.run, run_id)
        self.runbook_url = ""
        self._health = health
        self._latest: dict[str, Observation] = {}
        self._made: dict[str, tuple[Observation, list[Reading]]] = {}
        self._num_refused = 0
        self._build = (phasewatch_version(), platform.python_version())
        number = "" if attempt is None else str(attempt)
        self._process = (number, experiment, platform.node(), str(os.getpid()))
        self._text = Text(self.labels)
        self._told: set[str] = set()
        if self.run != run:
            logger.warning("run %.80r is served with the label run=%r", run, self.run)

    def keep(self, observation: Observation) -> None:
        """Keep the latest observation of each stream, as far as the budget goes."""
        name = observation.name
        if name not in self._latest:
            if len(self._latest) >= m.MAX_SERIES:
                self._num_refused += 1
                self._tell_once(
                    "budget",
                    f"more than {m.MAX_SERIES} streams: the values of the others, such as "
                    f"{m.label_value(name)!r}, are stored and not served; they are counted in "
                    f"{m.EXPORTER_REFUSED.name}",
                )
                return
            if m.label_value(name) != name:
                self._tell_once(
                    "label", f"stream {name[:80]!r} is served as {m.label_value(name)!r}"
                )
        self._latest[name] = observation

    def collect(self) -> Iterator[Family]:
        """The families, in the order of the table, for prometheus_client."""
        for metric, readings in self._by_metric():
            if metric.type is m.MetricType.INFO:
                yield _info(metric, self.labels, readings)
            else:
                yield _family(metric, self.labels, readings)

    def text(self, *, openmetrics: bool) -> bytes:
        """The same as a page, in OpenMetrics or in the classic format."""
        return self._text.page(self._by_metric(), openmetrics=openmetrics).encode("utf-8")

    def _by_metric(self) -> list[tuple[m.Metric, list[Reading]]]:
        """What the table's metrics say, within the budget."""
        found: dict[str, list[Reading]] = {
            m.BUILD.name: [Reading(m.BUILD, self._build, 1)],
            m.RUN.name: [Reading(m.RUN, self._process, 1)],
        }
        if self.runbook_url:
            found[m.RUNBOOK.name] = [Reading(m.RUNBOOK, (self.runbook_url,), 1)]
        num_series = num_omitted = 0
        for reading in self._readings():
            size = NUM_BUCKET_SERIES if isinstance(reading.value, Durations) else 1
            if num_series + size > m.MAX_SERIES:
                num_omitted += size
                continue
            num_series += size
            if (readings := found.get(reading.metric.name)) is None:
                readings = found[reading.metric.name] = []
            readings.append(reading)
        if num_omitted:
            self._tell_once(
                "budget",
                f"{num_omitted} series beyond the budget of {m.MAX_SERIES} are not served; "
                f"{m.EXPORTER_OMITTED.name} counts them",
            )
        found[m.EXPORTER_OMITTED.name] = [Reading(m.EXPORTER_OMITTED, (), num_omitted)]
        return [(metric, found[metric.name]) for metric in m.METRICS if metric.name in found]

    def _tell_once(self, what: str, message: str) -> None:
        if what not in self._told:
            self._told.add(what)
            logger.warning("%s", message)

    def _readings(self) -> Iterator[Reading]:
        # Training goes on meanwhile; copying a dictionary is one step of the interpreter.
        latest = self._latest.copy()
        yield from self._of_run()
        made = self._made
        for name, observation in latest.items():
            # Most streams have not changed since the scrape before.
            known = made.get(name)
            if known is None or known[0] is not observation:
                known = made[name] = observation, [*of_observation(observation, self._meanings)]
            yield from known[1]
        yield from self._of_observables(latest)

    def _of_run(self) -> Iterator[Reading]:
        health = self._health
        for state in RunState:
            yield Reading(m.RUN_STATE, (state.value,), health.state is state)
        yield Reading(m.RUN_STEP, (), health.step)
        if health.epoch is not None:
            yield Reading(m.RUN_EPOCH, (), health.epoch)
        yield Reading(m.LAST_STEP_TIMESTAMP, (), health.last_step_timestamp)
        yield Reading(m.STEPS_PER_SECOND, (), health.steps_per_second)
        yield Reading(m.OVERHEAD, (), health.overhead_ratio)
        yield Reading(m.OVERHEAD_BUDGET, (), health.overhead_budget)
        yield Reading(m.MONITOR_SECONDS, (), health.monitor_seconds_total)
        yield Reading(m.BESIDE_SECONDS, (), health.beside_seconds_total)
        yield Reading(m.THINNED, (), health.thinned_points)
        yield Reading(m.DENSE_WINDOWS, (), health.dense_windows)
        yield Reading(m.CHECKPOINTS, (), health.checkpoints_written)
        yield Reading(m.CHECKPOINT_BYTES, (), health.checkpoint_bytes)
        yield from _of_transitions(
            health.leads.copy(),
            health.transitions.copy(),
            health.corrected.copy(),
            health.last_transition,
        )
        for status in EstimateStatus:
            yield Reading(m.ESTIMATES, (status.value,), health.estimates.get(status, 0))
        yield Reading(m.REPAIRS, (), health.repairs)
        yield Reading(m.ALERT_QUEUE, (), health.alert_queue)
        yield Reading(m.ALERT_SENT, (), health.alert_sent)
        yield Reading(m.ALERT_FAILURES, (), health.alert_failures)
        yield Reading(m.STORE_QUEUE, (), health.store_queue_depth)
        yield Reading(m.STORE_DROPPED, (), health.store_dropped)
        yield Reading(m.STORE_FAILURES, (), health.store_failed)
        yield Reading(m.EXPORTER_REFUSED, (), self._num_refused)

    def _of_observables(self, latest: Iterable[str]) -> Iterator[Reading]:
        health = self._health
        failures, durations = health.measurement_failures.copy(), health.durations.copy()
        for name in {**health.measurements.copy(), **failures}:
            yield Reading(m.MEASUREMENTS, (name,), health.measurements.get(name, 0))
            yield Reading(m.MEASUREMENT_FAILURES, (name,), failures.get(name, 0))
            yield Reading(m.UNFINISHED, (name,), health.unfinished.get(name, 0))
            seconds = durations.get(name, Durations())
            yield Reading(m.MEASUREMENT_SECONDS, (name,), seconds, _example(seconds))
        for what, count in health.skipped.copy().items():
            yield Reading(m.SKIPS, (what,), count)
        for name, score in health.detector_scores.copy().items():
            yield Reading(m.DETECTOR_SCORE, (name,), score)
        for sink, count in health.sink_failures.copy().items():
            yield Reading(m.SINK_FAILURES, (sink,), count)
        nonfinite = health.nonfinite.copy()
        for name in {**dict.fromkeys(latest, 0), **nonfinite}:
            yield Reading(m.NONFINITE, (name,), nonfinite.get(name, 0))


def of_observation(observation: Observation, meanings: Meanings) -> Iterator[Reading]:
    """What one observation says, under the names of the table."""
    name = observation.name
    if isinstance(observation.detail, Estimate):
        yield from _of_estimate(name, observation.detail)
        return
    if name in m.LOSS_SPLITS:
        yield Reading(m.LOSS, (m.LOSS_SPLITS[name],), observation.value)
        return
    labels = (name, observation.unit)
    if (own := m.BY_NAME.get(meanings.of(name).metric or "")) is not None:
        yield Reading(own, (name,), observation.value)
    else:
        yield Reading(m.OBSERVABLE_VALUE, labels, observation.value)
    if observation.stderr is not None:
        yield Reading(m.OBSERVABLE_STDERR, labels, observation.stderr)
    if observation.stderr is not None or observation.duration_seconds > 0:  # measured, not logged
        yield Reading(m.OBSERVABLE_OK, labels, observation.status is EstimateStatus.OK)


def _of_estimate(name: str, estimate: Estimate) -> Iterator[Reading]:
    yield Reading(m.LAMBDA_HAT, (name,), estimate.lambda_hat)
    yield Reading(m.LAMBDA_STDERR, (name,), estimate.lambda_stderr)
    for status in EstimateStatus:
        yield Reading(m.LLC_STATUS, (name, status.value), estimate.status is status)
    yield Reading(m.LLC_RHAT, (name,), estimate.rhat)
    yield Reading(m.LLC_ESS, (name,), estimate.ess)


def _of_transitions(
    leads: Iterable[str],
    counts: dict[tuple[TransitionKind, str], int],
    corrected: Counter[TransitionKind],
    last: Transition | None,
) -> Iterator[Reading]:
    """Counts for each kind and lead, born at 0 with the stream, so that the first is a rise."""
    names = list(dict.fromkeys([*leads, *(lead for _, lead in counts)]))
    own = set(names[: m.MAX_LEADS])
    served = {
        (kind, name if name in own else m.OTHER): 0 for name in names for kind in TransitionKind
    }
    for (kind, lead), count in counts.items():
        served[kind, lead if lead in own else m.OTHER] += count
    at = None
    if last is not None:
        lead = next(iter(last.evidence))
        at = last.kind, lead if lead in own else m.OTHER
    for (kind, lead), count in served.items():
        note = _example_of(last) if last is not None and count and (kind, lead) == at else None
        yield Reading(m.TRANSITIONS, (kind.value, lead), count, note)
    for kind in TransitionKind:
        yield Reading(m.CORRECTED, (kind.value,), corrected[kind])
    if last is not None:
        yield Reading(m.LAST_TRANSITION_STEP, (), last.detected_step)
        yield Reading(m.LAST_TRANSITION_ONSET_STEP, (), last.onset_step)
        yield Reading(m.LAST_TRANSITION_TIMESTAMP, (), last.detected_at)
        yield Reading(m.LAST_TRANSITION_SEVERITY, (), last.severity)


def _example_of(transition: Transition) -> Exemplar:
    # All labels of an exemplar together: 128 letters.
    labels = {
        "transition": m.label_value(transition.id)[:40],
        "onset_step": str(transition.onset_step),
    }
    return Exemplar(labels, 1.0, transition.detected_at)


def _example(durations: Durations) -> Exemplar | None:
    if not durations.latest_timestamp:
        return None
    labels = {"step": str(durations.latest_step)}
    return Exemplar(labels, durations.latest_seconds, durations.latest_timestamp)


def _family(metric: m.Metric, run: m.RunLabels, readings: Iterable[Reading]) -> Family:
    kind: Any = _FAMILIES[metric.type]
    names = [name for name in metric.labels if run.run_id or name != "run_id"]
    family = kind(metric.name, metric.help, labels=names, unit=metric.unit)
    for reading in readings:
        labels = [*run.of(metric, reading.labels).values()]
        if isinstance(reading.value, Durations):
            buckets = _buckets(reading.value, reading.exemplar)
            family.add_metric(labels, buckets, reading.value.sum_seconds)
        elif metric.type is m.MetricType.COUNTER:
            family.add_metric(labels, float(reading.value), exemplar=reading.exemplar)
        else:
            family.add_metric(labels, float(reading.value))
    return cast(Family, family)


def _buckets(
    durations: Durations, exemplar: Exemplar | None
) -> list[tuple[str, float, Exemplar | None]]:
    return [
        (bound, count, exemplar if index == durations.latest_bucket else None)
        for index, (bound, count) in enumerate(
            zip(BOUNDS, accumulate(durations.counts), strict=True)
        )
    ]


_FAMILIES = {
    m.MetricType.COUNTER: CounterMetricFamily,
    m.MetricType.GAUGE: GaugeMetricFamily,
    m.MetricType.HISTOGRAM: HistogramMetricFamily,
}


def _info(metric: m.Metric, run: m.RunLabels, readings: Iterable[Reading]) -> Family:
    family = InfoMetricFamily(metric.name.removesuffix("_info"), metric.help)
    for reading in readings:
        family.add_metric([], run.of(metric, reading.labels))
    return family
