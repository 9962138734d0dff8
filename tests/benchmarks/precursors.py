"""How early precursors say that a transition is coming, and how often they are right.

    python tests/benchmarks/precursors.py

An alarm is right if a known transition starts within the horizon after it, as in a live run: as
many points as the trend was looked for over (block × blocks), and at least a quarter of those so
far. "base" is how often an alarm at a random point would be right: a precursor is worth something
only above it. Lead is from the alarm to the start. Alarms inside a transition or in a zone that
counts neither way are left out.

The recorded curves are those of `training_curves.json` in the folder PHASEWATCH_TEST_DATA names,
left out without it; their losses are mostly free of noise, which has nothing to slow down. The
recorded runs are those of `tests/golden`, where λ̂ is looked at as well.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from phasewatch.detectors.evaluation.scoring import Curve, Interval, load_curves
from phasewatch.detectors.online.early_warning import Precursor
from phasewatch.monitor.transitions.episodes import HORIZON
from support.curves import autoregressive, power_law
from support.recorded import GOLDEN, read, transitions_of

BLOCKS = 12
NULL_POINTS = 20_000


def alarms_of(curve: Curve, block: int) -> list[int]:
    """Points of the precursors' alarms."""
    detector = Precursor(block=block, blocks=BLOCKS)
    points = zip(curve.steps, curve.values, strict=True)
    return [i for i, (step, value) in enumerate(points) if detector.update(step, value)]


def judge(curves: Sequence[Curve], block: int) -> list[str]:
    """A row: transitions foretold, alarms, right ones, the base rate, leads."""
    horizon = block * BLOCKS
    leads: list[int] = []
    known = told = right = alarms = base = counted = 0
    for curve in curves:
        starts = [interval.start for interval in curve.transitions]
        aside = [*curve.transitions, *curve.ignore]
        free = [i for i in range(len(curve.values)) if not any(z.holds(i) for z in aside)]

        def coming(point: int, starts: list[int] = starts) -> list[int]:
            until = point + max(horizon, HORIZON * point)
            return [start for start in starts if point < start <= until]

        base += sum(bool(coming(i)) for i in free)
        counted += len(free)
        kept = sorted(set(alarms_of(curve, block)) & set(free))
        known += len(starts)
        alarms += len(kept)
        right += sum(bool(coming(i)) for i in kept)
        first = {s: min(i for i in kept if s in coming(i)) for i in kept for s in coming(i)}
        told += len(first)
        leads += [start - point for start, point in first.items()]
    return [
        str(block),
        f"{told} of {known}",
        str(alarms),
        f"{right / alarms:.2f}" if alarms else "–",
        f"{base / counted:.2f}",
        f"{np.median(leads):.0f}" if leads else "–",
        f"{1000.0 * (alarms - right) / counted:.2f}",
    ]


def null_curves() -> list[Curve]:
    """Streams on which nothing is coming."""
    n = NULL_POINTS
    t = np.arange(n)
    values = {
        "white": 2.0 * 10.0 ** autoregressive(n, 0.0, 0.03, 1),
        "AR(0.6)": 2.0 * 10.0 ** autoregressive(n, 0.6, 0.1, 2),
        "AR(0.9)": 2.0 * 10.0 ** autoregressive(n, 0.9, 0.1, 3),
        "power law": power_law(n) * 10.0 ** autoregressive(n, 0.3, 0.03, 4),
        "noise that grows": power_law(n)
        * 10.0 ** (autoregressive(n, 0.3, 0.02, 5) * (1.0 + 4.0 * t / n)),
    }
    return [Curve(name=k, steps=tuple(range(n)), values=tuple(v)) for k, v in values.items()]


def recorded_runs() -> list[Curve]:
    """Losses of our own runs; the transitions are those that were found in them."""
    curves = []
    for path in sorted(GOLDEN.glob("grokking_*.npz")):
        onsets = [(t.onset_step, t.end_step or t.detected_step) for t in transitions_of(path)]
        seen = read(path)
        for name in ("train_loss", "val_loss"):
            rows = [(o.step, o.value) for o in seen if o.name == name]
            curves.append(_with_transitions(f"{path.stem} {name}", rows, onsets))
    return curves


def _with_transitions(
    name: str, rows: Sequence[tuple[int, float]], onsets: Sequence[tuple[int, int]]
) -> Curve:
    steps = [step for step, _ in rows]
    places = [np.searchsorted(steps, pair) for pair in onsets]
    intervals = [Interval(start=int(a), end=min(int(b), len(steps) - 1)) for a, b in places]
    values = tuple(value for _, value in rows)
    return Curve(name=name, steps=tuple(steps), values=values, transitions=tuple(intervals))


def llc_table() -> Table:
    """When λ̂ had fallen to half its peak, beside the onset of the generalisation."""
    table = Table(title="λ̂ of the recorded runs, in steps", title_justify="left")
    for column in ("run", "peak of λ̂", "half of it", "onset", "lead", "detected"):
        table.add_column(column, justify="right")
    for path in sorted(GOLDEN.glob("grokking_*.npz")):
        seen = [(o.step, o.value) for o in read(path) if o.name == "llc"]
        steps, values = np.array(seen).T
        peak = int(values.argmax())
        half = int(steps[peak:][values[peak:] < 0.5 * values[peak]][0])
        found = next(t for t in transitions_of(path) if t.kind == "generalisation")
        cells = (int(steps[peak]), half, found.onset_step, found.onset_step - half)
        table.add_row(path.stem, *map(str, cells), str(found.detected_step))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, nargs="*", default=[8, 16], help="points of a block")
    chosen = parser.parse_args()
    groups = {"recorded runs": recorded_runs(), "nothing comes": null_curves()}
    if folder := os.environ.get("PHASEWATCH_TEST_DATA"):
        curves = load_curves(Path(folder) / "training_curves.json")
        groups["recorded curves"] = curves
        groups["of these, noisy"] = [curve for curve in curves if curve.noisy]
    table = Table(title="Precursors: rising variance and autocorrelation", title_justify="left")
    for column in ("on", "block", "foretold", "alarms", "right", "base", "lead", "false / 1000"):
        table.add_column(column, justify="left" if column == "on" else "right")
    for name, curves in groups.items():
        for block in chosen.blocks:
            table.add_row(name, *judge(curves, block))
    console = Console(width=110)
    console.print(table)
    console.print(llc_table())


if __name__ == "__main__":
    main()
