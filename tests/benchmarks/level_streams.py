"""Sparse measured streams: how many false alarms, and what is found how soon.

Streams have the noise of λ̂ measurements of `examples/grokking.py`: relative standard errors are
drawn from those of `tests/golden/llc_streams.json`, neighbours' scatter beyond them is printed
first. Tables: false alarms of `level_shift` by threshold on streams without a change; its power and
median delay in points beside three rules whose thresholds are chosen for the same false alarms on
constant streams: a fixed threshold (three values in a row farther than c standard errors from the
running mean), a textbook CUSUM (values minus the mean of the first ten, over their standard errors,
slack 0.5), and `cusum` of this package.

    python tests/benchmarks/level_streams.py                  # a few minutes
    python tests/benchmarks/level_streams.py --record A.db B.db   # the recorded streams anew
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from phasewatch.detectors import Cusum, LevelShift
from phasewatch.monitor.store.store import Store

Array = np.ndarray
Stream = tuple[list[float], list[float] | None]
"""Values and standard errors."""
Rule = Callable[[Stream, float], int | None]
"""First alarm of a stream at a threshold, as the index of its point."""

RECORDED = Path(__file__).parents[1] / "golden" / "llc_streams.json"
COMMAND = (
    "python examples/grokking.py --seed N --out runN, for N = 0 and 1; "
    "python tests/benchmarks/level_streams.py --record run0/phasewatch.db run1/phasewatch.db"
)
LENGTHS = (20, 60, 200)
FALSE_ALARMS_PER_STREAM = 0.02
THRESHOLDS = (9.0, 12.0, 15.0, 18.0, 21.0, 25.0)
WIDTHS = {60: (1, 3, 10, 30), 20: (1, 3), 200: (1, 40)}
"""Points that changes take, by length of the stream."""
EFFECT = 0.15
WARM_UP = 10


def record(paths: list[Path]) -> None:
    """Write the λ̂ streams of stored runs: of all measurements, those with status ok."""
    streams = []
    for path in paths:
        with Store(path) as store:
            (run,) = store.runs()
            rows = [
                [o.step, float(f"{o.value:.6g}"), float(f"{o.stderr:.4g}")]
                for o in store.observations(run.id, "llc")
                if o.status == "ok"
            ]
        streams.append({"run": run.name, "points": rows})
    document = {"command": COMMAND, "columns": ["step", "value", "stderr"], "streams": streams}
    text = json.dumps(document, indent=1)
    RECORDED.write_text(text + "\n")


def recorded() -> list[Array]:
    """Steps, λ̂ and standard errors of each recorded run, shapes (n, 3)."""
    return [np.array(s["points"]) for s in json.loads(RECORDED.read_text())["streams"]]


def relative_errors() -> Array:
    """Standard errors over values of all recorded points."""
    return np.concatenate([points[:, 2] / points[:, 1] for points in recorded()])


def scatter(points: Array) -> float:
    """Root mean square of what values differ by from their neighbours' mean, over its error."""
    y, v = np.log(points[:, 1]), (points[:, 2] / points[:, 1]) ** 2
    z = (y[1:-1] - (y[:-2] + y[2:]) / 2.0) ** 2 / (v[1:-1] + (v[:-2] + v[2:]) / 4.0)
    return float(np.sqrt(z[CURVED:].mean()))


CURVED = 3
"""Points at the start of the recorded runs, where λ̂ turns round, that say nothing of scatter."""


def measured(levels: Array, rng: np.random.Generator, pool: Array, kind: str = "") -> Stream:
    """A stream around the levels, with errors of the recorded runs."""
    n = len(levels)
    errors = rng.choice(pool, n)
    z = rng.standard_normal(n)
    if kind == "AR(0.5)":
        for i in range(1, n):
            z[i] = 0.5 * z[i - 1] + np.sqrt(0.75) * z[i]
    if kind == "outliers":
        errors = np.where(rng.random(n) < 0.05, 5.0 * errors, errors)
    z *= {"errors 1.5 times too small": 1.5, "errors 2 times too small": 2.0}.get(kind, 1.0)
    values = levels * np.exp(errors * z)
    if kind == "no errors":
        return values.tolist(), None
    return values.tolist(), (errors * values).tolist()


def nulls() -> dict[str, tuple[Callable[[Array], Array], str]]:
    """Courses without a change, over t in [0, 1], and their noise."""
    return {
        "constant": (lambda t: 0.0 * t + 10.0, ""),
        "AR(0.5) scatter": (lambda t: 0.0 * t + 10.0, "AR(0.5)"),
        "errors 1.5 times too small": (lambda t: 0.0 * t + 10.0, "errors 1.5 times too small"),
        "errors 2 times too small": (lambda t: 0.0 * t + 10.0, "errors 2 times too small"),
        "errors not given": (lambda t: 0.0 * t + 10.0, "no errors"),
        "outliers, known": (lambda t: 0.0 * t + 10.0, "outliers"),
        "rises, doubles": (lambda t: 10.0 * 2.0**t, ""),
        "falls to a half": (lambda t: 10.0 * 2.0**-t, ""),
        "straight, 10 to 20": (lambda t: 10.0 + 10.0 * t, ""),
        "curved, 10 to 20": (lambda t: 10.0 + 10.0 * t * t, ""),
        "settles, 10 to 20": (lambda t: 20.0 - 10.0 * np.exp(-4.0 * t), ""),
        "settles, 20 to 10": (lambda t: 10.0 + 10.0 * np.exp(-4.0 * t), ""),
        "grows as √step": (lambda t: 10.0 * np.sqrt(1.0 + (len(t) - 1) * t), ""),
        "grows as log step": (lambda t: 3.0 * np.log(2.0 + (len(t) - 1) * t), ""),
    }


def first_of_level_shift(stream: Stream, threshold: float) -> int | None:
    """Index of the point at which the default detector of measured streams alarms first."""
    detector = LevelShift(threshold=threshold)
    values, errors = stream
    for i, value in enumerate(values):
        if detector.update(i + 1, value, None if errors is None else errors[i]) is not None:
            return i
    return None


def first_of_cusum(stream: Stream, threshold: float) -> int | None:
    """The same of `cusum`, with the effect gate of `level_shift`."""
    detector = Cusum(threshold=threshold, gate=-math.log10(1.0 - EFFECT))
    for i, value in enumerate(stream[0]):
        if detector.update(i + 1, value) is not None:
            return i
    return None


def first_of_fixed(stream: Stream, threshold: float) -> int | None:
    """Three values in a row, on one side, farther than so many errors from the running mean."""
    values, errors = np.array(stream[0]), np.array(stream[1])
    before = np.concatenate([[np.nan], values.cumsum()[:-1] / np.arange(1, len(values))])
    z = (values - before) / errors
    z[:WARM_UP] = 0.0
    hits = np.minimum.reduce([z[2:], z[1:-1], z[:-2]]) > threshold
    hits |= np.maximum.reduce([z[2:], z[1:-1], z[:-2]]) < -threshold
    return int(hits.argmax()) + 2 if hits.any() else None


def first_of_textbook(stream: Stream, threshold: float) -> int | None:
    """Two-sided CUSUM, slack 0.5, on values minus the first ten's mean, over their errors."""
    values, errors = np.array(stream[0]), np.array(stream[1])
    up = down = 0.0
    z = (values - values[:WARM_UP].mean()) / errors
    for i in range(WARM_UP, len(z)):
        up, down = max(up + z[i] - 0.5, 0.0), max(down - z[i] - 0.5, 0.0)
        if max(up, down) >= threshold:
            return i
    return None


RULES: dict[str, tuple[Rule, tuple[float, ...]]] = {
    "level_shift": (first_of_level_shift, tuple(np.arange(8.0, 20.0).tolist())),
    "fixed": (first_of_fixed, tuple(np.arange(0.8, 9.0, 0.1).tolist())),
    "CUSUM": (first_of_textbook, tuple(np.geomspace(4.0, 1000.0, 60).tolist())),
    "cusum": (first_of_cusum, tuple(np.geomspace(1.5, 100.0, 20).tolist())),
}
"""Every rule, and the thresholds to choose from."""


def matched(num_streams: int, length: int, pool: Array) -> dict[str, float]:
    """Least threshold of each rule at which at most so many constant streams alarm."""
    rng = np.random.default_rng(2)
    streams = [measured(np.full(length, 10.0), rng, pool, "outliers") for _ in range(num_streams)]
    chosen = {}
    for name, (rule, thresholds) in RULES.items():
        for threshold in thresholds:
            wrong = sum(rule(stream, threshold) is not None for stream in streams)
            chosen[name] = threshold
            if wrong <= FALSE_ALARMS_PER_STREAM * num_streams:
                break
    return chosen


def null_table(num_streams: int, pool: Array) -> tuple[Table, dict[float, float]]:
    """Shares of streams with a false alarm, and alarms per 1000 points at the worst length.

    There are `num_streams` of the longest of each kind, and as many points of the others.
    """
    table = Table(title="level_shift: share of streams with a false alarm, points: threshold")
    table.add_column("course and noise")
    for length in LENGTHS:
        for threshold in THRESHOLDS:
            table.add_column(f"{length}: {threshold:g}", justify="right")
    totals = {(length, threshold): 0 for length in LENGTHS for threshold in THRESHOLDS}
    for name, (course, kind) in nulls().items():
        cells = []
        for length in LENGTHS:
            rng = np.random.default_rng(11)
            levels = course(np.linspace(0.0, 1.0, length))
            number = num_streams * max(LENGTHS) // length
            streams = [measured(levels, rng, pool, kind) for _ in range(number)]
            for threshold in THRESHOLDS:
                alarms = [count_alarms(stream, threshold) for stream in streams]
                totals[length, threshold] += sum(alarms)
                cells.append(f"{sum(map(bool, alarms)) / number:.3f}")
        table.add_row(name, *cells)
    points = len(nulls()) * num_streams * max(LENGTHS)
    worst = {t: max(1000.0 * totals[n, t] / points for n in LENGTHS) for t in THRESHOLDS}
    return table, worst


def count_alarms(stream: Stream, threshold: float) -> int:
    """All alarms of `level_shift`."""
    detector = LevelShift(threshold=threshold)
    values, errors = stream
    return sum(
        detector.update(i + 1, value, None if errors is None else errors[i]) is not None
        for i, value in enumerate(values)
    )


def sizes(pool: Array) -> dict[str, float]:
    """Changes of log λ̂: in median errors, and relative."""
    sigma = float(np.median(pool))
    by_error = {f"{k:g} σ": k * sigma for k in (0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0)}
    return by_error | {"10 %": math.log(1.1), "×2": math.log(2.0), "×10": math.log(10.0),
                       "×100": math.log(100.0)}  # fmt: skip


def power_table(
    num_streams: int, length: int, width: int, pool: Array, thresholds: dict[str, float]
) -> Table:
    """Share of changes found and their median delay in points, by size."""
    start = length // 2
    table = Table(title=f"{length} points, change from point {start} over {width}: found, delay")
    table.add_column("size")
    names = [*RULES, "level_shift, default"]
    for name in names:
        table.add_column(name, justify="right")
    rise = np.clip((np.arange(length) - start + 1) / width, 0.0, 1.0)
    for label, size in sizes(pool).items():
        rng = np.random.default_rng(3)
        streams = [
            measured(10.0 * np.exp(rng.choice([-1, 1]) * size * rise), rng, pool, "outliers")
            for _ in range(num_streams)
        ]
        row = []
        for name in names:
            rule = RULES[name.split(",")[0]][0]
            threshold = thresholds.get(name, LevelShift().threshold)
            alarms = [rule(stream, threshold) for stream in streams]
            delays = [alarm - start + 1 for alarm in alarms if alarm is not None and alarm >= start]
            delay = f", {np.median(delays):.0f}" if delays else ""
            row.append(f"{len(delays) / num_streams:.2f}{delay}")
        table.add_row(label, *row)
    return table


def rivals_table(num_streams: int, length: int, pool: Array, thresholds: dict[str, float]) -> Table:
    """False alarms of every rule on streams without a change."""
    table = Table(title=f"share of {num_streams} streams of {length} points with a false alarm")
    table.add_column("course and noise")
    names = [*RULES, "level_shift, default"]
    for name in names:
        table.add_column(name, justify="right")
    for label, (course, kind) in nulls().items():
        if kind == "no errors":
            continue  # two of the rules need them
        rng = np.random.default_rng(12)
        levels = course(np.linspace(0.0, 1.0, length))
        streams = [measured(levels, rng, pool, kind) for _ in range(num_streams)]
        row = []
        for name in names:
            rule = RULES[name.split(",")[0]][0]
            threshold = thresholds.get(name, LevelShift().threshold)
            wrong = sum(rule(stream, threshold) is not None for stream in streams)
            row.append(f"{wrong / num_streams:.2f}")
        table.add_row(label, *row)
    return table


def cost_table(pool: Array) -> Table:
    """Processor time a point."""
    table = Table(title="level_shift: µs of processor time a point, 3000 points as streams of 60")
    table.add_column("course and noise")
    table.add_column("µs", justify="right")
    for name, (course, kind) in nulls().items():
        rng = np.random.default_rng(4)
        levels = course(np.linspace(0.0, 1.0, 60))
        streams = [measured(levels, rng, pool, kind) for _ in range(50)]
        begun = time.process_time()
        for stream in streams:
            count_alarms(stream, LevelShift().threshold)
        table.add_row(name, f"{1e6 * (time.process_time() - begun) / 3000:.0f}")
    return table


def main() -> None:
    """Print all tables, or record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", nargs="+", type=Path, metavar="STORE", help="and do no more")
    parser.add_argument("--nulls", type=int, default=10, help="streams of 200 points, each kind")
    parser.add_argument("--powers", type=int, default=100, help="streams of each size and width")
    arguments = parser.parse_args()
    if arguments.record:
        record(arguments.record)
        return
    console = Console(width=220)
    pool = relative_errors()
    for points in recorded():
        console.print(f"{len(points)} recorded values, scatter {scatter(points):.2f} of the stated")
    console.print(cost_table(pool))
    if arguments.powers:
        for length, widths in WIDTHS.items():
            thresholds = matched(5 * arguments.powers, length, pool)
            chosen = ", ".join(f"{name} {threshold:.3g}" for name, threshold in thresholds.items())
            console.print(f"{length} points, {FALSE_ALARMS_PER_STREAM} false alarms: {chosen}")
            console.print(rivals_table(arguments.powers, length, pool, thresholds))
            for width in widths:
                console.print(power_table(arguments.powers, length, width, pool, thresholds))
    if arguments.nulls:
        table, per_thousand = null_table(arguments.nulls, pool)
        console.print(table)
        console.print(f"per 1000 points, at the worst length: {per_thousand}")


if __name__ == "__main__":
    main()
