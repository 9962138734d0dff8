"""Serves the latest values to Prometheus.

A custom collector on a registry of its own reads the latest observation of each stream and the
watch's health when it is scraped; training only replaces a dictionary's entry.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
import weakref

from phasewatch.monitor.config.exports import ExporterConfig
from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.health import Health
from phasewatch.monitor.core.meaning import Meanings
from phasewatch.monitor.core.metrics import label_value
from phasewatch.monitor.core.redaction import get_logger
from phasewatch.monitor.core.transitions import Transition
from phasewatch.monitor.prometheus.collector import RunCollector
from phasewatch.monitor.prometheus.server import RUNBOOK_PATH, Scrapes, serve
from phasewatch.monitor.prometheus.target_files import TargetFile, address

logger = get_logger(__name__)


class PrometheusSink:
    """An endpoint of one run.

    Args:
        run: Name of the run, the label `run` of every series.
        config: Address, ports, target file.
        health: The watch's counters, read at each scrape.
        experiment: Name of the experiment, empty if it has none.
        meanings: What the streams mean; None goes by their names.
        run_id: Identity of the run, the label `run_id`.
        attempt: Which fit of the run.

    Raises:
        OSError: The address cannot be bound, or the target file cannot be written: names it, the
            reason and the setting.
    """

    latest_only = True
    """Only the latest value of a stream matters here."""

    def __init__(
        self,
        run: str,
        config: ExporterConfig,
        health: Health,
        experiment: str = "",
        meanings: Meanings | None = None,
        *,
        run_id: str = "",
        attempt: int | None = None,
    ) -> None:
        self._config = config
        self._health = health
        self.collector = RunCollector(
            run, health, experiment, meanings, run_id=run_id, attempt=attempt
        )
        self._scrapes = Scrapes(lambda: health.state is not RunState.RUNNING)
        self._server, self._thread = serve(config, self.collector, self._scrapes)
        self.port = int(self._server.server_port)
        self.collector.runbook_url = config.runbook_url or (
            f"{config.scheme}://{address(config.host, self.port)}{RUNBOOK_PATH}"
        )
        self._target: TargetFile | None = None
        self._closed = False
        _serving.add(self)
        if config.targets_dir is not None:
            self._target = self._register(config, experiment)
        logger.info("metrics of run %s are at %s", self.collector.run, self.url)

    @property
    def url(self) -> str:
        """Where the metrics are."""
        return f"{self._config.scheme}://{address(self._config.host, self.port)}/metrics"

    def emit(self, observation: Observation) -> None:
        """Keep the observation as the latest of its stream."""
        self.collector.keep(observation)

    def notify(self, transition: Transition) -> None:
        """Do nothing: transitions are read from the watch's health."""

    def flush(self) -> None:
        """Do nothing: Prometheus comes and fetches."""

    def close(self) -> None:
        """Stay for the last scrape, withdraw the target file, stop serving.

        A run that has not ended leaves its target file: Prometheus then sees it down.
        """
        if self._closed:
            return
        self._closed = True
        ended = self._health.state is not RunState.RUNNING
        try:
            if ended:
                self._linger()
        finally:
            try:
                if ended and self._target is not None:
                    self._target.remove()
            finally:
                self._server.shutdown()
                self._server.server_close()
                self._thread.join()

    def _linger(self) -> None:
        if self._config.linger_seconds is not None:
            time.sleep(self._config.linger_seconds)
        elif patience := self._scrapes.patience_seconds:
            logger.info("waiting up to %.0f s for Prometheus to see the end", patience)
            self._scrapes.end_seen.wait(patience)

    def _register(self, config: ExporterConfig, experiment: str) -> TargetFile:
        assert config.targets_dir is not None  # noqa: S101 - the caller has looked
        labels = {
            "run": self.collector.run,
            "run_id": self.collector.labels.run_id,
            "experiment": label_value(experiment),
            "host": label_value(platform.node()),
        }
        if config.scheme != "http":
            labels["__scheme__"] = config.scheme
        try:
            return TargetFile(config.targets_dir, address(config.host, self.port), labels)
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


_serving: weakref.WeakSet[PrometheusSink] = weakref.WeakSet()


def _leave_all() -> None:
    for sink in [*_serving]:
        sink._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_all)
