"""Opening what a run writes into: its store, its sinks, its alerts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from phasewatch.monitor.alerts.launcher import AlertProcess, check_targets
from phasewatch.monitor.config.alerts import Target
from phasewatch.monitor.config.monitor import MonitorConfig
from phasewatch.monitor.core.contracts import Sink
from phasewatch.monitor.core.errors import ConfigError, StoreError
from phasewatch.monitor.core.health import Health
from phasewatch.monitor.core.meaning import Meanings
from phasewatch.monitor.grafana.annotations import GrafanaAnnotations
from phasewatch.monitor.prometheus.push import PushgatewaySink
from phasewatch.monitor.prometheus.sink import PrometheusSink
from phasewatch.monitor.store.store import Store

log = logging.getLogger("phasewatch")

MEMORY_STORE = "sqlite://"


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

    Args:
        config: The configuration.
        root: Folder under which a relative path lies.
        health: Where it is counted that the store is left out.
        begin: Begins the run in a store.

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
    config: MonitorConfig,
    run_name: str,
    health: Health,
    meanings: Meanings,
    *,
    run_id: str,
    attempt: int,
) -> list[Sink]:
    """Start the Prometheus endpoint, and pushing if that is wanted.

    The default endpoint is left out where it cannot be had.

    Args:
        config: The configuration.
        run_name: Name of the run.
        health: Where failures are counted.
        meanings: What the streams mean.
        run_id: Identity of the run.
        attempt: Which fit of the run.

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
                meanings,
                run_id=run_id,
                attempt=attempt,
            )
        )
    if config.exporter.enabled:
        sinks += _open_endpoint(config, run_name, health, meanings, run_id, attempt)
    return sinks


def _open_endpoint(
    config: MonitorConfig,
    run_name: str,
    health: Health,
    meanings: Meanings,
    run_id: str,
    attempt: int,
) -> list[Sink]:
    exporter, experiment = config.exporter, config.experiment
    try:
        return [
            PrometheusSink(
                run_name, exporter, health, experiment, meanings, run_id=run_id, attempt=attempt
            )
        ]
    except OSError as error:
        if "exporter" in config.model_fields_set:
            raise ConfigError(f"exporter: {error}") from error
        _degrade(health, "exporter", f"no metrics are served: {error}")
        return []


def open_annotations(
    config: MonitorConfig, run_name: str, health: Health, meanings: Meanings, *, run_id: str
) -> list[Sink]:
    """The sink that writes transitions into the Grafana of the configuration, if there is one.

    Args:
        config: The configuration.
        run_name: Name of the run.
        health: Where failures are counted.
        meanings: What the streams mean.
        run_id: Identity of the run.

    Raises:
        ConfigError: Its address cannot be one, or there is no token.
    """
    if config.grafana is None:
        return []
    sink = GrafanaAnnotations(
        config.grafana.url,
        run_name,
        run_id=run_id,
        config={
            "false_alarms_per_run": config.false_alarms_per_run,
            "streams": meanings.settings(),
        },
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

    Args:
        config: The configuration.
        targets: Whom to tell.
        store: The history that keeps the messages.
        run_id: Identity of the run.
        health: Where messages are counted.

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
