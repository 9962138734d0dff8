"""Serves the latest values to Prometheus.

A custom collector on a registry of its own reads the latest observation of each stream and the
watch's health when it is scraped; training only replaces a dictionary's entry.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import platform
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.core import Metric as Family

from phasewatch.monitor import metrics as m
from phasewatch.monitor.config import ExporterConfig
from phasewatch.monitor.health import Health
from phasewatch.monitor.sinks.file_sd import TargetFile, address
from phasewatch.monitor.types import (
    Estimate,
    EstimateStatus,
    Observation,
    RunState,
    Transition,
    TransitionKind,
)

logger = logging.getLogger(__name__)

Reading = tuple[m.Metric, tuple[str, ...], float]
"""A metric, the values of its labels after `run`, and its value."""


class PrometheusSink:
    """An endpoint of one run.

    Args:
        run: Name of the run, the label `run` of every series.
        config: Address, ports, target file.
        health: The watch's counters, read at each scrape.

    Raises:
        OSError: The address cannot be bound, or the target file cannot be written: names it, the
            reason and the setting.
    """

    latest_only = True
    """Only the latest value of a stream matters here."""

    def __init__(self, run: str, config: ExporterConfig, health: Health) -> None:
        self._config = config
        self._health = health
        self.registry = CollectorRegistry()
        self._collector = RunCollector(run, health)
        self.registry.register(self._collector)
        self._server, self._thread = _serve(config, self.registry)
        self.port = int(self._server.server_port)
        self._target: TargetFile | None = None
        self._closed = False
        _serving.add(self)
        if config.targets_dir is not None:
            self._target = self._register(config, m.label_value(run))
        logger.info("metrics of run %s are at %s", run, self.url)

    @property
    def url(self) -> str:
        """Where the metrics are."""
        return f"http://{address(self._config.host, self.port)}/metrics"

    def emit(self, observation: Observation) -> None:
        """Keep the observation as the latest of its stream."""
        self._collector.keep(observation)

    def notify(self, transition: Transition) -> None:
        """Do nothing: transitions are read from the watch's health."""

    def flush(self) -> None:
        """Do nothing: Prometheus comes and fetches."""

    def close(self) -> None:
        """Stay for the last scrape, withdraw the target file, stop serving."""
        if self._closed:
            return
        self._closed = True
        ended = self._health.state is not RunState.RUNNING
        if ended and self._config.linger_seconds:
            time.sleep(self._config.linger_seconds)
        try:
            if ended and self._target is not None:
                self._target.remove()
        finally:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def _register(self, config: ExporterConfig, run: str) -> TargetFile:
        assert config.targets_dir is not None  # noqa: S101 - the caller has looked
        try:
            return TargetFile(config.targets_dir, run, address(config.host, self.port))
        except OSError as error:
            self.close()
            raise OSError(
                f"exporter.targets_dir {str(config.targets_dir)!r} cannot be written: "
                f"{error.strerror}; name a folder that can be"
            ) from error

    def _after_fork(self) -> None:
        # A worker that outlives a killed trainer would keep the port taken and answer nobody.
        with contextlib.suppress(OSError):
            self._server.socket.close()
        self._closed = True


class RunCollector:
    """What is served of one run.

    Args:
        run: Name of the run.
        health: The watch's counters.
    """

    def __init__(self, run: str, health: Health) -> None:
        self._run = m.label_value(run)
        self._health = health
        self._latest: dict[str, Observation] = {}
        self._num_refused = 0
        self._build = {"version": _version(), "python": platform.python_version()}
        self._process = {"run": self._run, "host": platform.node(), "pid": str(os.getpid())}

    def keep(self, observation: Observation) -> None:
        """Keep the latest observation of each stream, as far as the budget goes."""
        if observation.name not in self._latest and len(self._latest) >= m.MAX_SERIES:
            self._num_refused += 1
            return
        self._latest[observation.name] = observation

    def collect(self) -> Iterator[Family]:
        """The families, in the order of the table."""
        by_metric: dict[str, list[tuple[tuple[str, ...], float]]] = {}
        num_series = num_omitted = 0
        for metric, labels, value in self._readings():
            if num_series >= m.MAX_SERIES:
                num_omitted += 1
                continue
            num_series += 1
            by_metric.setdefault(metric.name, []).append((labels, value))
        by_metric[m.EXPORTER_OMITTED.name] = [((), float(num_omitted))]
        yield _info(m.BUILD, self._build)
        yield _info(m.RUN, self._process)
        for metric in m.METRICS:
            if metric.name in by_metric:
                yield _family(metric, self._run, by_metric[metric.name])

    def _readings(self) -> Iterator[Reading]:
        # Training goes on meanwhile; copying a dictionary is one step of the interpreter.
        latest = self._latest.copy()
        yield from self._of_run()
        for observation in latest.values():
            yield from _of_observation(observation)
        yield from self._of_observables(latest)

    def _of_run(self) -> Iterator[Reading]:
        health = self._health
        for state in RunState:
            yield m.RUN_STATE, (state.value,), float(health.state is state)
        yield m.RUN_STEP, (), health.step
        if health.epoch is not None:
            yield m.RUN_EPOCH, (), health.epoch
        yield m.LAST_STEP_TIMESTAMP, (), health.last_step_timestamp
        yield m.STEPS_PER_SECOND, (), health.steps_per_second
        yield m.OVERHEAD, (), health.overhead_ratio
        yield m.OVERHEAD_BUDGET, (), health.overhead_budget
        yield m.MONITOR_SECONDS, (), health.monitor_seconds_total
        for kind in TransitionKind:
            yield m.TRANSITIONS, (kind.value,), health.transitions.get(kind, 0)
        if health.last_transition is not None:
            yield m.LAST_TRANSITION_STEP, (), health.last_transition.detected_step
            yield m.LAST_TRANSITION_ONSET_STEP, (), health.last_transition.onset_step
            yield m.LAST_TRANSITION_TIMESTAMP, (), health.last_transition.detected_at
        for status in EstimateStatus:
            yield m.ESTIMATES, (status.value,), health.estimates.get(status, 0)
        yield m.REPAIRS, (), health.repairs
        yield m.STORE_QUEUE, (), health.store_queue_depth
        yield m.STORE_DROPPED, (), health.store_dropped
        yield m.STORE_FAILURES, (), health.store_failed
        yield m.EXPORTER_REFUSED, (), self._num_refused

    def _of_observables(self, latest: Iterable[str]) -> Iterator[Reading]:
        health = self._health
        measured = {**health.measurements.copy(), **health.measurement_failures.copy()}
        seconds = health.measurement_seconds.copy()
        for name in measured:
            yield m.MEASUREMENTS, (name,), health.measurements.get(name, 0)
            yield m.MEASUREMENT_SECONDS, (name,), seconds.get(name, 0.0)
            yield m.MEASUREMENT_FAILURES, (name,), health.measurement_failures.get(name, 0)
        for what, count in health.skipped.copy().items():
            yield m.SKIPS, (what,), count
        for name, score in health.detector_scores.copy().items():
            yield m.DETECTOR_SCORE, (name,), score
        nonfinite = health.nonfinite.copy()
        for name in {**dict.fromkeys(latest, 0), **nonfinite}:
            yield m.NONFINITE, (name,), nonfinite.get(name, 0)
        for sink, count in health.sink_failures.copy().items():
            yield m.SINK_FAILURES, (sink,), count


def _of_observation(observation: Observation) -> Iterator[Reading]:
    name = observation.name
    if isinstance(observation.detail, Estimate):
        yield from _of_estimate(name, observation.detail)
    elif name in m.LOSS_SPLITS:
        yield m.LOSS, (m.LOSS_SPLITS[name],), observation.value
    else:
        labels = (name, observation.unit)
        yield m.OBSERVABLE_VALUE, labels, observation.value
        if observation.stderr is not None:
            yield m.OBSERVABLE_STDERR, labels, observation.stderr


def _of_estimate(name: str, estimate: Estimate) -> Iterator[Reading]:
    yield m.LAMBDA_HAT, (name,), estimate.lambda_hat
    yield m.LAMBDA_STDERR, (name,), estimate.lambda_stderr
    for status in EstimateStatus:
        yield m.LLC_STATUS, (name, status.value), float(estimate.status is status)
    yield m.LLC_RHAT, (name,), estimate.rhat
    yield m.LLC_ESS, (name,), estimate.ess


def _family(metric: m.Metric, run: str, samples: Iterable[tuple[tuple[str, ...], float]]) -> Family:
    kind = CounterMetricFamily if metric.type is m.MetricType.COUNTER else GaugeMetricFamily
    family = kind(metric.name, metric.help, labels=metric.labels, unit=metric.unit)
    for labels, value in samples:
        family.add_metric([run, *map(m.label_value, labels)], value)
    return family


def _info(metric: m.Metric, labels: dict[str, str]) -> Family:
    family = InfoMetricFamily(metric.name.removesuffix("_info"), metric.help)
    family.add_metric([], {name: m.label_value(value) for name, value in labels.items()})
    return family


def _serve(
    config: ExporterConfig, registry: CollectorRegistry
) -> tuple[WSGIServer, threading.Thread]:
    """Listen on the first free port, in the end on any."""
    last = min(config.port + config.num_ports, 65536)
    ports = [*range(config.port, last), 0] if config.port else [0]
    for port in ports:
        try:
            return start_http_server(port, addr=config.host, registry=registry)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or port == 0:
                raise OSError(
                    f"exporter cannot listen on {config.host}:{port}: {error.strerror}; set "
                    "exporter.host and exporter.port to an address of this machine"
                ) from error
            logger.info("port %d is in use, trying another for the metrics", port)
    raise AssertionError("the last port tried is 0, which returns or raises")


def _version() -> str:
    try:
        return version("phasewatch")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "unknown"


_serving: weakref.WeakSet[PrometheusSink] = weakref.WeakSet()


def _leave_all() -> None:
    for sink in [*_serving]:
        sink._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_all)
