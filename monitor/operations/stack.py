"""Prometheus and Alertmanager as two processes on this machine, with the shipped configuration."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from phasewatch.monitor.core.errors import PhasewatchError
from phasewatch.monitor.core.shipped import DEPLOY

HOST = "127.0.0.1"
START_SECONDS = 60.0
STOP_SECONDS = 30.0

PROMETHEUS = ("prometheus",)
ALERTMANAGER = ("alertmanager", "prometheus-alertmanager")
"""What the program is called: upstream, and in Debian."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Where everything lies and listens.

    Attributes:
        folder: Folder of the configuration, data and logs of both servers.
        prometheus_port: Port of Prometheus on loopback.
        alertmanager_port: Port of Alertmanager on loopback.
        interval_seconds: How often runs are scraped and rules evaluated.
    """

    folder: Path
    prometheus_port: int = 9090
    alertmanager_port: int = 9093
    interval_seconds: int = 5

    @property
    def prometheus_url(self) -> str:
        """Address of Prometheus."""
        return f"http://{HOST}:{self.prometheus_port}"

    @property
    def alertmanager_url(self) -> str:
        """Address of Alertmanager."""
        return f"http://{HOST}:{self.alertmanager_port}"

    @property
    def targets(self) -> Path:
        """Folder in which runs register: their `exporter.targets_dir`."""
        return self.folder / "targets"

    @property
    def alertmanager_config(self) -> Path:
        """Where to say who is told; written once, then the user's."""
        return self.folder / "alertmanager.yml"

    def configure(self) -> None:
        """Write the configuration of both servers.

        Raises:
            PhasewatchError: The folder cannot be written.
        """
        prometheus = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text("utf-8"))
        interval = f"{self.interval_seconds}s"
        prometheus["global"] |= {"scrape_interval": interval, "evaluation_interval": interval}
        (manager,) = prometheus["alerting"]["alertmanagers"]
        manager["static_configs"] = [{"targets": [f"{HOST}:{self.alertmanager_port}"]}]
        prometheus["scrape_configs"][0]["file_sd_configs"][0]["refresh_interval"] = interval
        try:
            self.targets.mkdir(parents=True, exist_ok=True)
            (self.folder / "prometheus.yml").write_text(
                "# Written by `phasewatch stack up`, anew at each start.\n"
                + yaml.safe_dump(prometheus, sort_keys=False),
                encoding="utf-8",
            )
            shutil.copyfile(DEPLOY / "prometheus" / "rules.yml", self.folder / "rules.yml")
            if not self.alertmanager_config.exists():
                shipped = DEPLOY / "alertmanager" / "alertmanager.yml"
                shutil.copyfile(shipped, self.alertmanager_config)
        except OSError as error:
            raise PhasewatchError(
                f"folder {str(self.folder)!r} cannot be written: {error.strerror}; give --folder "
                "one that can be"
            ) from error

    @contextmanager
    def running(self) -> Iterator[Sequence[Server]]:
        """Both servers, ready; stopped at the end.

        Raises:
            PhasewatchError: A program is missing, a port is taken, or a server does not start.
        """
        prometheus, alertmanager = find_program(PROMETHEUS), find_program(ALERTMANAGER)
        check_free(self.prometheus_port, "--prometheus-port")
        check_free(self.alertmanager_port, "--alertmanager-port")
        self.configure()
        servers: list[Server] = []
        try:
            servers.append(
                Server(
                    "Alertmanager",
                    self.alertmanager_url,
                    self.folder / "alertmanager.log",
                    [
                        alertmanager,
                        f"--config.file={self.alertmanager_config}",
                        f"--storage.path={self.folder / 'alertmanager-data'}",
                        f"--web.listen-address={HOST}:{self.alertmanager_port}",
                        "--cluster.listen-address=",  # it talks to no other
                    ],
                )
            )
            servers.append(
                Server(
                    "Prometheus",
                    self.prometheus_url,
                    self.folder / "prometheus.log",
                    [
                        prometheus,
                        f"--config.file={self.folder / 'prometheus.yml'}",
                        f"--storage.tsdb.path={self.folder / 'prometheus-data'}",
                        f"--web.listen-address={HOST}:{self.prometheus_port}",
                    ],
                )
            )
            for server in servers:
                server.wait_until_ready()
            yield servers
        finally:
            for server in reversed(servers):
                server.stop()


class Server:
    """One server process.

    Args:
        name: What it is called in messages.
        url: Where it answers.
        log: File that takes what it prints.
        command: Its command line.
    """

    def __init__(self, name: str, url: str, log: Path, command: Sequence[str]) -> None:
        self.name = name
        self.url = url
        self._log = log
        with log.open("wb") as file:
            # A session of its own: Ctrl-C in the terminal is for us, and we stop it in order.
            self._process = subprocess.Popen(  # noqa: S603 - a program found by name, no shell
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def check(self) -> None:
        """See that it still runs.

        Raises:
            PhasewatchError: It has ended: says how, and its last words.
        """
        code = self._process.poll()
        if code is not None:
            lines = self._log.read_text("utf-8", "replace").strip().splitlines()
            raise PhasewatchError(
                f"{self.name} has ended with code {code}: {lines[-1] if lines else 'no word'}; "
                f"its log is {self._log}"
            )

    def wait_until_ready(self) -> None:
        """Wait until it answers.

        Raises:
            PhasewatchError: It has ended, or does not answer in time.
        """
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            self.check()
            try:
                with opener.open(f"{self.url}/-/ready", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        raise PhasewatchError(
            f"{self.name} does not answer at {self.url} after {START_SECONDS:g} s; "
            f"its log is {self._log}"
        )

    def stop(self) -> None:
        """End it in good order, or else at once."""
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def find_program(names: Sequence[str]) -> str:
    """Path of the first of these programs that is installed.

    Raises:
        PhasewatchError: None is.
    """
    for name in names:
        if found := shutil.which(name):
            return found
    raise PhasewatchError(
        f"{' or '.join(names)} is not installed or not in PATH; install it "
        "(Debian: apt install prometheus prometheus-alertmanager; macOS: brew install prometheus "
        "alertmanager; others: prometheus.io/download)"
    )


def check_free(port: int, option: str) -> None:
    """See that nobody listens on a port.

    Raises:
        PhasewatchError: Somebody does.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise PhasewatchError(
                f"port {port} cannot be had: {error.strerror}; stop what listens there, or give "
                f"{option} another"
            ) from error
