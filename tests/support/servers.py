"""Real servers, as processes of a test."""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.needs import need_binary
from support.records import wait_until
from support.scraping import free_port


@contextmanager
def running_prometheus(config: Path, data: Path, *options: str) -> Iterator[Callable[..., Any]]:
    """A Prometheus; yields a function that answers queries with their samples or exemplars."""
    port = free_port()
    server = subprocess.Popen(
        [
            need_binary("prometheus"),
            f"--config.file={config}",
            f"--storage.tsdb.path={data}",
            f"--web.listen-address=127.0.0.1:{port}",
            *options,
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def ask(path: str) -> Any:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=10) as response:
                return response.read()
        except (urllib.error.URLError, ConnectionError):
            assert server.poll() is None, "Prometheus has ended"
            return None

    def query(expression: str, what: str = "query", **parameters: str) -> Any:
        asked = urllib.parse.urlencode({"query": expression} | parameters)
        answer = ask(f"api/v1/{what}?{asked}")
        if answer is None:
            return []
        data = json.loads(answer)["data"]
        return data["result"] if isinstance(data, dict) else data

    try:
        wait_until(lambda: ask("-/ready"), what="Prometheus", seconds=60)
        yield query
    finally:
        server.terminate()
        server.wait(timeout=30)
