"""How soon the live page answers: 200 runs with 10⁶ points in all, a run of 10⁶, 1,000 runs.

    python tests/benchmarks/live_page.py

Each answer is asked for in a process of its own, as a browser would, from a server that has just
started. Besides the wall time stands the processor time the server took, which tells how much of
it was the machine being busy.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from phasewatch.monitor.core.columns import Column
from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.store.store import Store

CHUNK = 5000


def fill(path: Path, runs: dict[str, int]) -> dict[str, str]:
    """A store of finished runs with a training loss of so many points each; their ids by name."""
    noise = np.random.default_rng(0)
    ids = {}
    with Store(path) as store:
        for name, points in runs.items():
            ids[name], attempt = store.begin_run(name=name)
            for first in range(1, points + 1, CHUNK):
                column = Column()
                for step in range(first, min(first + CHUNK, points + 1)):
                    value = float(np.exp(-5 * step / points) + 0.01 * noise.random())
                    column.add(step, value, None, 1.7e9 + 0.1 * step)
                store.wait_for_room(CHUNK)
                store.add_scalars(ids[name], attempt, "train_loss", column)
            store.end_run(ids[name], attempt, RunState.FINISHED)
    return ids


@contextmanager
def page(path: Path) -> Iterator[tuple[str, int]]:
    """A page over the store: its address and process."""
    code = "from phasewatch.monitor.cli.main import main; main()"
    command = [sys.executable, "-c", code, "serve", str(path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[3].rstrip("/"), process.pid
        process.send_signal(signal.SIGINT)


def cpu(pid: int) -> float:
    """Processor seconds a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def megabytes(pid: int) -> float:
    """Memory a process holds."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def ask(what: str, url: str, pid: int) -> object:
    """Ask, print how long it took, and give the answer."""
    used, began = cpu(pid), time.perf_counter()
    with urllib.request.urlopen(url, timeout=120) as answer:
        body = answer.read()
    print(
        f"{what:42s} {time.perf_counter() - began:6.2f} s  {cpu(pid) - used:5.2f} s of processor  "
        f"{len(body) / 1024:6.0f} kB  {megabytes(pid):5.0f} MB held",
        flush=True,
    )
    return json.loads(body)


def main() -> None:
    """Fill, ask, print."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "runs.db"
        ids = fill(path, {f"run {i}": 5000 for i in range(200)} | {"long": 1_000_000})
        key = f"0.{ids['long']}"
        series = f"/api/run/{key}/series?" + urllib.parse.urlencode({"name": "train_loss"})
        with page(path) as (url, pid):
            ask("list of 201 runs", f"{url}/api/runs", pid)
            ask("list of 201 runs, again", f"{url}/api/runs", pid)
            some = urllib.parse.urlencode([("run", f"0.{ids[f'run {i}']}") for i in range(20)])
            ask("sparklines of 20 runs", f"{url}/api/sparks?{some}", pid)
            ask("run of 10⁶ points: head", f"{url}/api/run/{key}", pid)
            ask("its curve, roughly", url + series, pid)
            time.sleep(20)
            ask("its curve, whole", url + series, pid)
            ask("its curve, zoomed", f"{url}{series}&from=5000&to=9000", pid)
            ask("its curve, by wall time", f"{url}{series}&timed=1", pid)
        many = Path(folder) / "many.db"
        fill(many, {f"run {i}": 20 for i in range(1000)})
        with page(many) as (url, pid):
            ask("list of 1,000 runs", f"{url}/api/runs", pid)
            ask("list of 1,000 runs, again", f"{url}/api/runs", pid)


if __name__ == "__main__":
    main()
