"""Pushes to a Pushgateway, where no Prometheus can reach the run.

A thread of its own pushes; training only replaces a dictionary's entry. What is pushed stays at the
gateway when a process dies: `push_time_seconds` then tells that it is old.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, delete_from_gateway, push_to_gateway
from prometheus_client.exposition import basic_auth_handler, default_handler

from phasewatch.monitor.config.exports import PushgatewayConfig
from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.errors import ConfigError
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.health import Health
from phasewatch.monitor.core.meaning import Meanings
from phasewatch.monitor.core.redaction import get_logger
from phasewatch.monitor.core.transitions import Transition
from phasewatch.monitor.prometheus.collector import RunCollector

logger = get_logger(__name__)


class PushgatewaySink:
    """Pushes one run as a group of its own, and deletes the group when the run has ended.

    Args:
        run: Name of the run, the grouping key.
        config: Address, interval, who we are.
        health: The watch's counters; failed pushes are counted in its `sink_failures`.
        experiment: Name of the experiment, empty if it has none.
        meanings: What the streams mean; None goes by their names.
        run_id: Identity of the run, the other grouping key.
        attempt: Which fit of the run.

    Raises:
        ConfigError: The password cannot be read.
    """

    latest_only = True
    """Only the latest value of a stream matters here."""

    def __init__(
        self,
        run: str,
        config: PushgatewayConfig,
        health: Health,
        experiment: str = "",
        meanings: Meanings | None = None,
        *,
        run_id: str = "",
        attempt: int | None = None,
    ) -> None:
        self._config = config
        self._health = health
        self._collector = RunCollector(
            run, health, experiment, meanings, run_id=run_id, attempt=attempt
        )
        self._registry = CollectorRegistry()
        self._registry.register(self._collector)
        self._handler = _handler(config)
        self._stop = threading.Event()
        self._told = False
        health.sink_failures[type(self).__name__] += 0
        self._thread: threading.Thread | None = None

    def emit(self, observation: Observation) -> None:
        """Keep the observation as the latest of its stream; the first one starts the pushing."""
        self._collector.keep(observation)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="phasewatch-push", daemon=True)
            self._thread.start()

    def notify(self, transition: Transition) -> None:
        """Do nothing: transitions are read from the watch's health."""

    def flush(self) -> None:
        """Do nothing: the next push has it."""

    def close(self) -> None:
        """Push how the run ended, leave it there for the last scrapes, delete the group.

        A run that has not ended leaves its group: it is then told by its age.
        """
        self._stop.set()
        if self._thread is None:
            return
        config = self._config
        # One push may be under way; then come the last one and the deletion.
        self._thread.join(config.linger_seconds + 4 * config.timeout_seconds)

    def _work(self) -> None:
        while not self._stop.is_set():
            self._try(self._push)
            self._stop.wait(self._config.interval_seconds)
        pushed = self._try(self._push)
        if self._health.state is RunState.RUNNING:
            return
        if pushed:
            time.sleep(self._config.linger_seconds)
        self._try(self._delete)

    def _push(self) -> None:
        push_to_gateway(**self._arguments, registry=self._registry)

    def _delete(self) -> None:
        delete_from_gateway(**self._arguments)

    @property
    def _arguments(self) -> dict[str, Any]:
        labels = self._collector.labels
        return {
            "gateway": self._config.url,
            "job": self._config.job,
            "grouping_key": {"run": labels.run}
            | ({"run_id": labels.run_id} if labels.run_id else {}),
            "timeout": self._config.timeout_seconds,
            "handler": self._handler,
        }

    def _try(self, call: Callable[[], None]) -> bool:
        try:
            call()
        except Exception as error:
            self._health.sink_failures[type(self).__name__] += 1
            if not self._told:
                self._told = True
                logger.warning(
                    "pushing to %s failed: %s: %s; it is tried again every %g s, and failures are "
                    "counted in phasewatch_sink_failures_total",
                    self._config.url,
                    type(error).__name__,
                    error,
                    self._config.interval_seconds,
                )
            return False
        return True


def _handler(config: PushgatewayConfig) -> Callable[..., Callable[[], None]]:
    if config.username is None:
        return default_handler
    return partial(basic_auth_handler, username=config.username, password=_password(config))


def _password(config: PushgatewayConfig) -> str:
    if config.password_env is not None:
        try:
            return os.environ[config.password_env]
        except KeyError:
            raise ConfigError(
                f"pushgateway.password_env names {config.password_env!r}, which is not in the "
                "environment: set it, or use password_file"
            ) from None
    assert config.password_file is not None  # noqa: S101 - the configuration is checked
    try:
        return config.password_file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"pushgateway.password_file {str(config.password_file)!r} cannot be read "
            f"({type(error).__name__}); name a text file that holds the password alone"
        ) from None
