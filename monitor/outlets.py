"""Where results go: the store first, then every sink. A failing one is counted, never raised."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from phasewatch.monitor.alert_process import AlertProcess, check_targets
from phasewatch.monitor.alerts import Target
from phasewatch.monitor.config import MonitorConfig
from phasewatch.monitor.errors import ConfigError, StoreError
from phasewatch.monitor.health import Health
from phasewatch.monitor.scalars import Column, observations_of
from phasewatch.monitor.sinks.grafana import GrafanaAnnotations
from phasewatch.monitor.sinks.prometheus import PrometheusSink
from phasewatch.monitor.sinks.prometheus_push import PushgatewaySink
from phasewatch.monitor.sinks.queued import QueuedCalls
from phasewatch.monitor.store import Store
from phasewatch.monitor.stray import let_through
from phasewatch.monitor.types import Observation, Sink, Transition
from phasewatch.monitor.watchdog import Watchdog

log = logging.getLogger("phasewatch")

MEMORY_STORE = "sqlite://"


class Outlets:
    """The store and the sinks of one fit.

    Args:
        store: The run history.
        sinks: Further places; each may raise.
        health: Where their failures are counted.
        run_id: Identity of the run.
        attempt: Which fit of the run.
        alerts: Tells people of transitions.
        watchdog: Told which sink training waits for.
    """

    def __init__(
        self,
        store: Store,
        sinks: Sequence[Sink],
        health: Health,
        run_id: str,
        attempt: int,
        alerts: AlertProcess | None = None,
        *,
        watchdog: Watchdog | None = None,
    ) -> None:
        self.store = store
        self._sinks = tuple(sinks)
        self._health = health
        self._run_id = run_id
        self._attempt = attempt
        self._alerts = alerts
        self._told: set[str] = set()
        self._watchdog = watchdog or Watchdog()
        self._calls = {
            id(sink): QueuedCalls(sink, partial(self._failed, type(sink).__name__))
            for sink in self._sinks
        }
        if alerts is not None:
            self._guard("alerts", lambda: alerts.resume(store.outbox))

    @property
    def metrics_url(self) -> str | None:
        """Where the metrics are served, if they are."""
        return next((s.url for s in self._sinks if isinstance(s, PrometheusSink)), None)

    def emit(self, observation: Observation) -> None:
        """Store one observation and pass it on."""
        self.store.add_observation(self._run_id, self._attempt, observation)
        for sink in self._sinks:
            self._call(sink, partial(_emit, observation))

    def emit_columns(self, columns: Mapping[str, Column]) -> None:
        """Store many exact scalars and pass them on; a sink that shows the latest gets only it."""
        for name, column in columns.items():
            self.store.add_scalars(self._run_id, self._attempt, name, column)
            for sink in self._sinks:
                latest_only = getattr(sink, "latest_only", False)
                for observation in observations_of(name, column, latest_only=latest_only):
                    self._call(sink, partial(_emit, observation))

    def notify(self, transition: Transition) -> None:
        """Store a transition that changed, with the messages it calls for, and pass it on."""
        transition = self._own(transition)
        alerts = self._alerts
        recipients = alerts.recipients(transition) if alerts is not None else ()
        self.store.add_transition(transition, recipients, attempt=self._attempt)
        if alerts is not None and recipients:
            self._guard("alerts", lambda: alerts.expect(transition))
        for sink in self._sinks:
            self._call(sink, lambda s: s.notify(transition))

    def keep(self, transition: Transition) -> None:
        """Store a transition that changed in a way that is no news for anybody."""
        self.store.add_transition(self._own(transition), attempt=self._attempt)

    def _own(self, transition: Transition) -> Transition:
        """A branch tells of a transition that began before it as of its own run."""
        return replace(transition, run=self._run_id)

    def flush(self) -> None:
        """Ask every sink to send out what it holds back."""
        for sink in self._sinks:
            self._call(sink, lambda s: s.flush())

    def refresh(self) -> None:
        """Hear how the sending of alerts goes."""
        if self._alerts is not None:
            self._guard("alerts", self._alerts.refresh)

    def close(self) -> None:
        """Send the last alerts, then close every sink. The store outlives them."""
        if self._alerts is not None:
            self._guard("alerts", self._alerts.close)
        for sink in self._sinks:
            self._call(sink, lambda s: s.close())
            with self._watchdog.over(f"sink {type(sink).__name__}, at the end"):
                self._calls[id(sink)].close()
        self._watchdog.close()

    def _call(self, sink: Sink, call: Callable[[Sink], None]) -> None:
        name = type(sink).__name__
        with self._watchdog.over(f"sink {name}"):
            self._guard(name, lambda: self._calls[id(sink)].call(call))

    def _guard(self, name: str, call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:
            let_through(error)
            self._failed(name, error)

    def _failed(self, name: str, error: BaseException) -> None:
        self._health.sink_failures[name] += 1
        if name not in self._told:
            self._told.add(name)
            log.warning(
                "sink %s failed: %s: %s; training goes on, further failures are counted in "
                "phasewatch_sink_failures_total",
                name,
                type(error).__name__,
                error,
            )


def _emit(observation: Observation, sink: Sink) -> None:
    sink.emit(observation)


def store_url(config: MonitorConfig, root: Path | None) -> str:
    """Where the history lies: a URL as it is, a relative path under `root`."""
    if "://" in config.store or root is None:
        return config.store
    return str(root / config.store)


def open_store(
    config: MonitorConfig, root: Path | None, health: Health, begin: Callable[[Store], None]
) -> Store:
    """Open the run history and begin the run in it.

    The default store falls back to memory where it cannot be used, and says so.

    Raises:
        ConfigError: The store that the user named cannot be used.
    """
    try:
        return _begun(store_url(config, root), begin)
    except StoreError as error:
        if "store" in config.model_fields_set:
            raise ConfigError(f"store: {error}") from error
        _degrade(health, "store", f"the run history is kept in memory only: {error}")
        return _begun(MEMORY_STORE, begin)


def _begun(url: str, begin: Callable[[Store], None]) -> Store:
    store = Store(url)
    try:
        begin(store)
    except BaseException:
        store.close()
        raise
    return store


def open_exporter(
    config: MonitorConfig, run_name: str, health: Health, *, run_id: str, attempt: int
) -> list[Sink]:
    """Start the Prometheus endpoint, and pushing if that is wanted.

    The default endpoint is left out where it cannot be had.

    Raises:
        ConfigError: The endpoint that the user configured cannot be opened, or the password of
            the Pushgateway cannot be read.
    """
    sinks: list[Sink] = []
    if config.pushgateway is not None:
        sinks.append(
            PushgatewaySink(
                run_name,
                config.pushgateway,
                health,
                config.experiment,
                run_id=run_id,
                attempt=attempt,
            )
        )
    if config.exporter.enabled:
        sinks += _open_endpoint(config, run_name, health, run_id, attempt)
    return sinks


def _open_endpoint(
    config: MonitorConfig, run_name: str, health: Health, run_id: str, attempt: int
) -> list[Sink]:
    exporter, experiment = config.exporter, config.experiment
    try:
        return [
            PrometheusSink(run_name, exporter, health, experiment, run_id=run_id, attempt=attempt)
        ]
    except OSError as error:
        if "exporter" in config.model_fields_set:
            raise ConfigError(f"exporter: {error}") from error
        _degrade(health, "exporter", f"no metrics are served: {error}")
        return []


def open_annotations(
    config: MonitorConfig, run_name: str, health: Health, *, run_id: str
) -> list[Sink]:
    """The sink that writes transitions into the Grafana of the configuration, if there is one.

    Raises:
        ConfigError: Its address cannot be one, or there is no token.
    """
    if config.grafana is None:
        return []
    sink = GrafanaAnnotations(
        config.grafana.url,
        run_name,
        run_id=run_id,
        token_file=config.grafana.token_file,
        timeout_seconds=config.grafana.timeout_seconds,
    )
    health.born((), [type(sink).__name__])
    return [sink]


def open_alerts(
    config: MonitorConfig,
    targets: Sequence[Target],
    store: Store,
    run_id: str,
    health: Health,
) -> AlertProcess | None:
    """Make ready to tell people of transitions.

    Raises:
        ConfigError: A target cannot be used, or the store named by the user is kept in memory.
    """
    if not targets:
        return None
    if store.is_in_memory:
        reason = "alerts wait in the store until they are sent, and this one is kept in memory"
        if "store" in config.model_fields_set:
            raise ConfigError(f"alerts: {reason}; give store= a file or a database")
        _degrade(health, "alerts", f"no alerts are sent: {reason}")
        return None
    check_targets(targets)
    return AlertProcess(targets, config.alerts, store, run_id, health)


def _degrade(health: Health, what: str, reason: str) -> None:
    health.skipped[what] += 1
    health.skip_reasons[what] = reason
    log.warning("%s", reason)
