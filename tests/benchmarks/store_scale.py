"""How long listing, showing and reading take in a store of many runs and rows.

python tests/benchmarks/store_scale.py [--runs 1000] [--rows 10000000]
"""

from __future__ import annotations

import argparse
import sqlite3
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from phasewatch.monitor.store import Store

STREAMS = 10


def fill(path: Path, runs: int, rows: int) -> str:
    """Runs of equal length but one, which has a tenth of all rows; its id."""
    with Store(path) as store:
        for number in range(runs):
            store.begin_run(name=f"run {number}", run_id=f"{number:032x}", config={"lr": 0.1})
    raw = sqlite3.connect(path, isolation_level=None)
    raw.execute("PRAGMA synchronous=OFF")
    raw.execute("BEGIN")
    insert = (
        "WITH RECURSIVE n(step) AS (SELECT 1 UNION ALL SELECT step + 1 FROM n WHERE step < ?) "
        "INSERT INTO phasewatch_observations "
        "(stream_id, attempt, step, value, timestamp, duration_seconds, status) "
        "SELECT ?, 1, step, 1.0 / step, 1e9 + step, 0.0, 'ok' FROM n"
    )
    each = rows * 9 // 10 // max(1, runs - 1) // STREAMS
    for number in range(runs):
        for stream in range(STREAMS):
            key = raw.execute(
                "INSERT INTO phasewatch_streams (run_id, name, unit) VALUES (?, ?, '1')",
                (f"{number:032x}", f"stream {stream}"),
            ).lastrowid
            raw.execute(insert, (rows // 10 // STREAMS if number == 0 else each, key))
    raw.execute("COMMIT")
    raw.close()
    return f"{0:032x}"


def timed(what: str, call: Callable[[], Any]) -> None:
    """Print the best of three."""
    best = min(_seconds(call) for _ in range(3))
    print(f"{what:40s} {best:8.3f} s")


def _seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def main() -> None:
    """Fill a store and time it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=10_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "runs.db"
        big = fill(path, options.runs, options.rows)
        small = f"{options.runs - 1:032x}"
        print(f"{options.runs} runs, {options.rows} rows, {path.stat().st_size / 2**20:.0f} MiB")
        with Store(path, create=False) as store:
            timed("list the runs", store.runs)
            timed("show a usual run", lambda: store.streams(small))
            timed("show the run with a tenth of all rows", lambda: store.streams(big))
            timed("history of a stream of a usual run", lambda: store.history(small, "stream 0"))
            timed("history of a stream of the big one", lambda: store.history(big, "stream 0"))


if __name__ == "__main__":
    main()
