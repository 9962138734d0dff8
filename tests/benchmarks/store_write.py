"""What writing the history costs a training loop.

Figures: time the producer gives for each observation, processor time of the writer thread for each
thousand rows, and how much slower a loop of small matrix products runs while five streams are
stored at 500 steps a second, as they come (one by one) and as the watch drains them (by columns).
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from phasewatch.monitor.core.columns import Column
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.store.store import Store

STREAMS = [f"stream_{index}" for index in range(5)]
STEPS_PER_SECOND = 500
SECONDS = 1.0
PAIRS = 10


def one_by_one(store: Store, run: str, steps: range) -> None:
    """Queue each observation by itself."""
    for step in steps:
        for name in STREAMS:
            store.add_observation(
                run, 1, Observation(name=name, step=step, value=0.5, timestamp=1e9)
            )


def by_columns(store: Store, run: str, steps: range) -> None:
    """Queue one column a stream, as a drain does."""
    count = len(steps)
    for name in STREAMS:
        column = Column([*steps], [0.5] * count, [0] * count, [1e9] * count)
        store.add_scalars(run, 1, name, column)


Feed = Callable[[Store, str, range], None]


def producer_microseconds(feed: Feed) -> float:
    """Median time the caller gives for one observation, in µs."""
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "runs.db") as store:
        run, _ = store.begin_run(name="bench")
        times = []
        for block in range(50):
            start = time.perf_counter()
            feed(store, run, range(block * 250, block * 250 + 250))
            times.append((time.perf_counter() - start) / (250 * len(STREAMS)))
            time.sleep(0.02)
        return statistics.median(times) * 1e6


def writer_milliseconds(feed: Feed) -> float:
    """Processor time of the writer thread for a thousand rows, in ms."""
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "runs.db") as store:
        run, _ = store.begin_run(name="bench")
        feed(store, run, range(100))  # streams and statements are made
        store.flush()
        begin = store.writer_cpu_seconds
        for block in range(1, 41):
            feed(store, run, range(block * 250, block * 250 + 250))
            if block % 4 == 0:
                store.flush()
        store.flush()
        time.sleep(0.05)  # the writer notes its time after it has reported
        rows = 40 * 250 * len(STREAMS)
        return (store.writer_cpu_seconds - begin) / rows * 1e6


def loop_slowdown(feed: Feed) -> float:
    """Median slowdown of a 2 ms step with the store over one without, alternating, as a share."""
    matrix = np.random.default_rng(0).normal(size=(96, 96))
    inner = _calibrate(matrix)
    every = 128
    ratios = []
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "runs.db") as store:
        run, _ = store.begin_run(name="bench")
        begin = 0
        for _ in range(PAIRS):
            walls = []
            for stored in (False, True):
                steps = range(begin, begin + int(STEPS_PER_SECOND * SECONDS))
                start = time.perf_counter()
                for step in steps:
                    for _ in range(inner):
                        matrix @ matrix
                    if stored and (step + 1) % every == 0:
                        feed(store, run, range(step + 1 - every, step + 1))
                walls.append(time.perf_counter() - start)
                store.flush()
                begin = steps.stop
            ratios.append(walls[1] / walls[0] - 1)
    return statistics.median(ratios)


def _calibrate(matrix: np.ndarray) -> int:
    start = time.perf_counter()
    for _ in range(200):
        matrix @ matrix
    return max(1, round(0.002 / ((time.perf_counter() - start) / 200)))


def main() -> None:
    """Measure and print."""
    table = Table(title="store: cost of writing (five streams)")
    for column in ("feed", "producer µs/observation", "writer CPU ms/1000 rows", "2 ms step"):
        table.add_column(column, justify="right")
    for feed in (one_by_one, by_columns):
        table.add_row(
            feed.__name__,
            f"{producer_microseconds(feed):.2f}",
            f"{writer_milliseconds(feed):.2f}",
            f"{loop_slowdown(feed):+.2%}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
