"""Real servers for tests: the shipped stack at a quicker pace, and whoever is told."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import yaml

from phasewatch.monitor.operations.stack import Stack
from support.needs import need_binary, need_one_of
from support.scraping import free_port
from support.stand_in import StandInServer

QUICKER = {
    "for: 1m": "for: 3s",
    "for: 5m": "for: 3s",
    "[2m]": "[10s]",
    "offset 2m": "offset 10s",
    "[5m])\n              - ": "[10s])\n              - ",
    "offset 5m": "offset 10s",
    "300, 1800": "4, 30",
}
"""Durations of the rules, for tests that wait for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuickStack(Stack):
    """The shipped configuration with shorter waits, and a receiver.

    Attributes:
        webhook: URL of the receiver.
        static: Address of a static target, if wanted.
    """

    webhook: str = ""
    static: str = ""

    def configure(self) -> None:
        """Write the shipped configuration, then change the durations in it."""
        Stack.configure(self)
        rules = self.folder / "rules.yml"
        text = rules.read_text(encoding="utf-8")
        for slow, quick in QUICKER.items():
            assert slow in text, f"the rules no longer say {slow!r}"
            text = text.replace(slow, quick)
        rules.write_text(text, encoding="utf-8")
        config = yaml.safe_load(self.alertmanager_config.read_text(encoding="utf-8"))
        route = config["route"]
        route["receiver"] = "webhook"
        for part in (route, *route["routes"]):
            part |= {"group_wait": "1s", "group_interval": "2s"}
        (webhook,) = [r for r in config["receivers"] if r["name"] == "webhook"]
        webhook["webhook_configs"] = [{"url": self.webhook, "send_resolved": True}]
        self.alertmanager_config.write_text(yaml.safe_dump(config), encoding="utf-8")
        if self.static:
            prometheus = self.folder / "prometheus.yml"
            content = yaml.safe_load(prometheus.read_text(encoding="utf-8"))
            content["scrape_configs"].append(
                {
                    "job_name": "phasewatch-static",
                    "honor_labels": True,
                    "static_configs": [{"targets": [self.static]}],
                }
            )
            prometheus.write_text(yaml.safe_dump(content), encoding="utf-8")

    def ask(self, path: str, **parameters: str) -> Any:
        """An answer of Prometheus' API; None while it does not answer."""
        url = f"{self.prometheus_url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as response:
                return json.load(response)["data"]
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return None

    def query(self, expression: str) -> list[Any]:
        """Samples of an expression, now."""
        answer = self.ask("query", query=expression)
        return answer["result"] if answer else []

    def history(self, expression: str) -> list[Any]:
        """Series that an expression gave at any second of the last ten minutes."""
        now = time.time()
        times = {"start": str(now - 600), "end": str(now), "step": "1"}
        answer = self.ask("query_range", query=expression, **times)
        return answer["result"] if answer else []

    def state_of(self, run: str) -> str | None:
        """State in which Prometheus sees a run."""
        samples = self.query(f"phasewatch_run_state{{run={json.dumps(run)}}} == 1")
        return samples[0]["metric"]["state"] if samples else None


def need_servers() -> None:
    """Skip, or fail in CI, where the programs are not installed."""
    need_binary("prometheus")
    need_one_of("alertmanager", "prometheus-alertmanager")


@contextmanager
def quick_stack(folder: Path, inbox: Inbox, **settings: Any) -> Iterator[QuickStack]:
    """A running stack that tells `inbox`."""
    stack = QuickStack(
        folder=folder,
        prometheus_port=free_port(),
        alertmanager_port=free_port(),
        interval_seconds=1,
        webhook=inbox.url,
        **settings,
    )
    with stack.running():
        yield stack


@dataclass(slots=True)
class Inbox:
    """A webhook that keeps what it is told.

    Attributes:
        url: Its address.
        messages: What came, with the time of its coming.
    """

    url: str = ""
    messages: list[tuple[float, dict[str, Any]]] = field(default_factory=list)

    def alerts(self, status: str = "firing", **labels: str) -> list[dict[str, Any]]:
        """Alerts in messages of that status, in the order of their coming; each told counts."""
        return [
            alert | {"received": when}
            for when, message in [*self.messages]
            for alert in message["alerts"]
            if alert["status"] == status and labels.items() <= alert["labels"].items()
        ]

    @property
    def names(self) -> set[str]:
        """Names of all alerts that came."""
        return {alert["labels"]["alertname"] for alert in self.alerts()}


@contextmanager
def open_inbox() -> Iterator[Inbox]:
    """A webhook on a free port."""
    inbox = Inbox()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            inbox.messages.append((time.time(), json.loads(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = StandInServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    inbox.url = f"http://127.0.0.1:{server.server_port}/"
    yield inbox
    server.shutdown()
    server.server_close()
    thread.join()


def digest(name: str) -> str:
    """A name for a file, for any name of a run."""
    return hashlib.sha256(name.encode()).hexdigest()[:12]


class LiveRun:
    """A watched run in a process of its own; see `support.live_run` for what it can be told."""

    def __init__(
        self, name: str, folder: Path, settings: dict[str, Any] | None = None, **exporter: Any
    ) -> None:
        config = {
            "run_name": name,
            "observables": [],
            "store": str(folder / "phasewatch.db"),
            "exporter": {"port": free_port(), "linger_seconds": 3, **exporter},
            **(settings or {}),
        }
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "support.live_run", json.dumps(config)),
                str(folder / f"{digest(name)}.ckpt"),
            ],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.url = self.hear("ready")

    @property
    def address(self) -> str:
        """host:port of its metrics."""
        return urllib.parse.urlsplit(self.url).netloc

    def tell(self, command: str) -> None:
        """Give it a command."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()

    def hear(self, word: str) -> str:
        """What it says next, which must begin with `word`."""
        assert self.process.stdout is not None
        said, _, rest = self.process.stdout.readline().strip().partition(" ")
        assert said == word, f"it said {said!r}, not {word!r}"
        return rest

    def kill(self) -> None:
        """kill -9, and clear up."""
        self.process.kill()
        self.wait()

    def wait(self) -> int:
        """Its exit status."""
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        return self.process.wait(60)
