"""How often detectors alarm on streams without a transition, by the knob that makes them strict.

With `--write` the counts become `detectors/error_control/false_alarms.json`, from which
`false_alarms.threshold_for` takes thresholds. Without it the rate at the threshold of a stated rate
is measured on other seeds, with its upper 95 % bound (exact, for Poisson counts): it must not pass
twice the stated rate.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats

from phasewatch import detectors
from phasewatch.detectors.error_control import false_alarms
from phasewatch.detectors.evaluation import null_measured, null_streams
from phasewatch.detectors.evaluation.scoring import Curve, detect

SETTINGS: dict[str, tuple[float, ...]] = {
    "bocpd": (0.1, 0.5, 0.9, 0.99, 0.999),
    "cusum": (3.0, 5.0, 7.0, 10.0, 14.0),
    "focus": (8.0, 12.0, 18.0, 25.0, 35.0),
    "level_shift": (6.0, 10.0, 15.0, 20.0, 25.0),
    "page_hinkley": (3.0, 5.0, 7.0, 10.0, 14.0),
    "ruptures_window": (10.0, 20.0, 40.0, 70.0, 100.0),
    "slope_shift": (0.3, 0.45, 0.65, 1.0, 1.4),
}
"""Simulated settings of each knob, from lax enough to alarm up to about the default."""

ONE_SIDED = frozenset({"slope_shift"})
"""Detectors of falls alone: what rises at once is a null stream to them, and not to the others."""

LENGTHS = {"level_shift": 200}
LENGTH = 5000
"""Points of one stream."""

HELD_OUT = 1_000_000
"""First seed of the streams that rates are checked on; the table takes those from 0."""

RESULT = Path(__file__).parents[2] / "detectors" / "error_control" / false_alarms.TABLE


def streams(detector: str, points: int, first_seed: int) -> Iterator[Curve]:
    """Streams of every class, so many points of each, as that detector is fed them live."""
    length = min(LENGTHS.get(detector, LENGTH), points)
    for seed in range(first_seed, first_seed + -(-points // length)):
        if detector == "level_shift":
            for name in null_measured.CLASSES:
                yield null_measured.curve(name, length, seed)
        else:
            for curve in null_streams.curves(length, (seed,)):
                if detector in ONE_SIDED or curve.source not in null_streams.RISING:
                    yield logarithmic(curve) if detector == "ruptures_window" else curve


def logarithmic(curve: Curve) -> Curve:
    """The same in log10: of any sign, as scalars are."""
    return replace(curve, values=tuple(np.log10(curve.values).tolist()))


def count(
    detector: str, setting: float, points: int, first_seed: int
) -> tuple[dict[str, int], int]:
    """Alarms of a shift by class, and the points of each class."""
    knob = {false_alarms.knob(detector): setting}
    alarms: dict[str, int] = {}
    used: dict[str, int] = {}
    for curve in streams(detector, points, first_seed):
        found = detect(curve, detectors.create(detector, **knob))
        alarms[curve.source] = alarms.get(curve.source, 0) + len(found)
        used[curve.source] = used.get(curve.source, 0) + len(curve.values)
    return alarms, min(used.values())


def simulate(detector: str, points: int) -> dict[str, object]:
    """The record of one detector."""
    rows: dict[str, list[int]] = {}
    used = 0
    for setting in SETTINGS[detector]:
        alarms, used = count(detector, setting, points, 0)
        for name, number in alarms.items():
            rows.setdefault(name, []).append(number)
    return {"settings": list(SETTINGS[detector]), "points": used, "alarms": rows}


def write(chosen: list[str], points: int, console: Console) -> None:
    """Simulate, and put the counts into the package beside those of other detectors."""
    for detector in chosen:
        start = time.process_time()
        record = simulate(detector, points)
        known = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
        known[detector] = record
        console.print(f"{detector}: {time.process_time() - start:.0f} s of processor time")
        # Written after each: a run that is cut off has not been for nothing.
        lines = (f"{json.dumps(name)}: {json.dumps(known[name])}" for name in sorted(known))
        RESULT.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def upper(alarms: int, confidence: float = 0.95) -> float:
    """Upper end of the one-sided interval for the mean of a Poisson count."""
    return float(stats.chi2.ppf(confidence, 2 * (alarms + 1)) / 2.0)


def check(chosen: list[str], points: int, stated: float, console: Console) -> bool:
    """Measure the rates at the thresholds for a stated rate; whether all bounds hold."""
    table = Table(title=f"false alarms per 1000 points; stated: {stated:g}; seeds not in the table")
    for head in ("detector", "knob", "setting", "points", "alarms", "rate", "95 % bound", "worst"):
        table.add_column(head, justify="right")
    good = True
    for detector in chosen:
        setting = false_alarms.threshold_for(detector, stated, 1000)
        alarms, used = count(detector, setting, points, HELD_OUT)
        total, all_points = sum(alarms.values()), used * len(alarms)
        bound = 1000.0 * upper(total) / all_points
        good &= bound <= 2.0 * stated
        worst = max(alarms, key=lambda name: alarms[name])
        table.add_row(
            detector, false_alarms.knob(detector), f"{setting:.4g}", str(all_points), str(total),
            f"{1000.0 * total / all_points:.5f}", f"{bound:.5f}",
            f"{worst}: {alarms[worst]}" if total else "–",
        )  # fmt: skip
    console.print(table)
    return good


def main() -> None:
    """Write the table, or check it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--detectors", nargs="*", default=sorted(SETTINGS), choices=sorted(SETTINGS)
    )
    parser.add_argument("--points", type=int, default=5000, help="of each class of streams")
    parser.add_argument("--stated", type=float, default=0.05, help="false alarms per 1000 points")
    parser.add_argument("--write", action="store_true", help="simulate anew and write the table")
    arguments = parser.parse_args()
    console = Console(width=140)
    if arguments.write:
        write(arguments.detectors, arguments.points, console)
    elif not check(arguments.detectors, arguments.points, arguments.stated, console):
        print("the bound passes twice the stated rate: with few points that says little")
        sys.exit(arguments.points >= 50_000)


if __name__ == "__main__":
    main()
