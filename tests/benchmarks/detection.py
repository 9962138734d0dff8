"""Every detector on training curves with known transitions, and on streams without any.

The curves are those of `training_curves.json` in the folder PHASEWATCH_TEST_DATA names; without it,
the simulated ones of `detectors.simulated`. Columns: recall, precision, lenient F1 (repeats within
a found transition forgiven) with its 95 % interval over sources drawn anew, strict F1 (counted
false), lenient F1 where each source is judged by the setting that is best on all others, median
delay from the start of the transition in its widths and in points, the same on noisy curves, false
alarms per 1000 points without a transition, processor time a point. Then F1 with every n-th point
only and under added noise, and false alarms by class of stream with their upper 95 % bound.

Detectors of river, trainscope, trainpulse and Lightning are judged beside ours where they are
installed, here or in `.venv-peers` (`make bench-detection` sees to it).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from phasewatch import detectors
from phasewatch.detectors.evaluation import cross_validation, null_streams, simulated
from phasewatch.detectors.evaluation.scoring import Curve, Score, always_alarm, load_curves, match
from support.candidates import Candidate, Rivals, Settings, our_candidates
from support.curves import feed

MEASURED_STREAMS = 100
EVERY = (2, 4, 8)
NOISE = (0.03, 0.1)
HELD_OUT = 2_000_000
"""First seed of the null streams: no table was made from them."""

COURSES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "constant": lambda t: np.full_like(t, 20.0),
    "line, 20 to 10": lambda t: 20.0 - 10.0 * t,
    "decay, 20 to 2": lambda t: 20.0 * 10.0**-t,
    "grokking: rises, then decays": lambda t: np.where(
        t < 0.05, 30.0 + 2000.0 * t, 130.0 * np.exp(-2.5 * (t - 0.05))
    ),
    "wide sigmoid, 20 to 10": lambda t: 20.0 - 10.0 / (1.0 + np.exp(-12.0 * (t - 0.5))),
    "step, 20 to 17": lambda t: np.where(t < 0.5, 20.0, 17.0),
    "step, 20 to 15": lambda t: np.where(t < 0.5, 20.0, 15.0),
    "step, 20 to 10": lambda t: np.where(t < 0.5, 20.0, 10.0),
}


def known_curves() -> tuple[str, list[Curve]]:
    """The curves to score on, and what they are."""
    folder = os.environ.get("PHASEWATCH_TEST_DATA")
    if folder is not None:
        return "recorded curves", load_curves(Path(folder) / "training_curves.json")
    return "simulated curves (PHASEWATCH_TEST_DATA is not set)", simulated.curves()


def judge(
    candidate: Candidate, curves: Iterable[Curve], settings: Settings | None = None
) -> tuple[dict[str, Score], float]:
    """Score by source, and microseconds of processor time a point."""
    seconds, points = 0.0, 0

    def run(curve: Curve) -> list[int]:
        nonlocal seconds, points
        alarms, spent = candidate.run(curve, settings)
        seconds, points = seconds + spent, points + len(curve.values)
        return alarms

    scores = cross_validation.score_by_source(curves, run)
    return scores, 1e6 * seconds / points


def score_table(
    title: str,
    curves: Sequence[Curve],
    candidates: Sequence[Candidate],
    missing: Sequence[str],
    leave_out: bool,
) -> Table:
    """One row a detector, the always-alarm baseline first."""
    table = Table(title=title)
    table.add_column("detector", no_wrap=True)
    heads = ("recall", "prec.", "F1", "95 %", "strict", "held out", "delay", "noisy", "FA/1k")
    for head in (*heads, "µs/point"):
        table.add_column(head, justify="right", no_wrap=True)
    noisy = [curve for curve in curves if curve.noisy]
    baseline = {curve.source: Score() for curve in curves}
    for curve in curves:
        baseline[curve.source] += always_alarm([curve])
    table.add_row("always alarm", *cells(baseline, None, always_alarm(noisy)), "–")
    for candidate in candidates:
        scores, microseconds = judge(candidate, curves)
        held_out = held_out_score(candidate, curves, scores) if leave_out else None
        of_noisy = cross_validation.total(judge(candidate, noisy)[0].values()) if noisy else Score()
        label = candidate.name if candidate.ours else f"{candidate.name} [{candidate.given}]"
        table.add_row(escape(label), *cells(scores, held_out, of_noisy), f"{microseconds:.1f}")
    for name in missing:
        table.add_row(name, "not installed")
    return table


def held_out_score(
    candidate: Candidate, curves: Sequence[Curve], default: dict[str, Score]
) -> Score | None:
    """Each source by the setting that is best on all others; None with one source or setting."""
    if len(default) < 2 or len(candidate.grid) < 2:
        return None
    others = {
        i: judge(candidate, curves, candidate.grid[i])[0] for i in range(1, len(candidate.grid))
    }
    return cross_validation.leave_one_source_out({0: default, **others})


def cells(by_source: dict[str, Score], held_out: Score | None, noisy: Score) -> list[str]:
    """The figures of one row."""
    score = cross_validation.total(by_source.values())
    low, high = cross_validation.bootstrap(by_source, lambda one: one.f1, draws=400)
    return [
        f"{score.recall:.2f}",
        f"{score.precision:.2f}",
        f"{score.f1:.3f}",
        f"{low:.2f}–{high:.2f}",
        f"{score.strict_f1:.3f}",
        "–" if held_out is None else f"{held_out.f1:.3f}",
        f"{score.median_relative_delay:.2f}w/{score.median_delay:.0f}" if score.delays else "–",
        f"{noisy.median_relative_delay:.2f}w" if noisy.delays else "–",
        f"{score.false_alarms_per_1000:.3f}",
    ]


def hard_table(curves: Sequence[Curve], candidates: Sequence[Candidate]) -> Table:
    """Lenient F1 when every n-th point is logged, and under added Gaussian noise."""
    table = Table(title="F1 on fewer points, and under noise added to log10")
    table.add_column("detector", no_wrap=True)
    variants = {f"every {n}": [curve.every(n) for curve in curves] for n in EVERY}
    for dex in NOISE:
        variants[f"+{dex:g} dex"] = [cross_validation.with_noise(curve, dex) for curve in curves]
    for head in variants:
        table.add_column(head, justify="right")
    for candidate in candidates:
        totals = (
            cross_validation.total(judge(candidate, v)[0].values()) for v in variants.values()
        )
        table.add_row(candidate.name, *(f"{score.f1:.3f}" for score in totals))
    return table


def null_table(candidates: Sequence[Candidate], points: int) -> Table:
    """False alarms per 1000 points on streams without a transition, and their upper bound."""
    table = Table(title=f"false alarms per 1000 points (≤ 95 % bound), {points} points a class")
    table.add_column("class of stream", no_wrap=True)
    for candidate in candidates:
        table.add_column(candidate.name, justify="right")
    length = min(points, 10_000)
    seeds = range(HELD_OUT, HELD_OUT + -(-points // length))
    for name in null_streams.names():
        row = []
        for candidate in candidates:
            score = cross_validation.total(
                match(candidate.run(curve)[0], curve)
                for curve in null_streams.curves(length, seeds, (name,))
            )
            bound = 1000.0 * cross_validation.poisson_upper(score.num_false) / score.num_null_points
            row.append(f"{score.false_alarms_per_1000:.3f} (≤ {bound:.3f})")
        table.add_row(name, *row)
    return table


def measured_table() -> Table:
    """Share of λ̂ streams, with errors of 2 to 6 %, on which the default detector alarms."""
    table = Table(title=f"level_shift: share of {MEASURED_STREAMS} measured streams with an alarm")
    table.add_column("course")
    lengths = (20, 60, 200)
    for length in lengths:
        table.add_column(f"{length} points", justify="right")
    for name, course in COURSES.items():
        shares = [
            sum(alarms_on(course, length, seed) for seed in range(MEASURED_STREAMS))
            / MEASURED_STREAMS
            for length in lengths
        ]
        table.add_row(name, *(f"{share:.2f}" for share in shares))
    return table


def alarms_on(course: Callable[[np.ndarray], np.ndarray], length: int, seed: int) -> bool:
    """Whether `level_shift` alarms on one noisy stream of that course."""
    rng = np.random.default_rng(seed)
    levels = course(np.linspace(0.0, 1.0, length))
    stderrs = rng.uniform(0.02, 0.06, length) * levels
    values = levels + stderrs * rng.standard_normal(length)
    return bool(feed(detectors.default("measured"), values, stderrs=stderrs.tolist()))


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--detectors", nargs="*", help="names; all where not given")
    parser.add_argument("--long", action="store_true", help="settings left out by source; others'")
    parser.add_argument(
        "--null-points", type=int, help="of each class; 2000, or 100000 with --long"
    )
    arguments = parser.parse_args()
    console = Console(width=170)
    what, curves = known_curves()
    others = Rivals()
    wanted = [*our_candidates(), *others.candidates()]
    if arguments.detectors:
        wanted = [one for one in wanted if one.name in arguments.detectors]
    ours = [one for one in wanted if one.ours]
    points = sum(len(curve.values) for curve in curves)
    transitions = sum(len(curve.transitions) for curve in curves)
    title = f"{len(curves)} {what}: {transitions} transitions, {points} points"
    console.print(score_table(title, curves, wanted, others.missing, arguments.long))
    console.print(hard_table(curves, wanted if arguments.long else ours))
    # A measured stream has standard errors: its detector is judged in a table of its own.
    dense = [one for one in ours if one.name != "level_shift"]
    null_points = arguments.null_points or (100_000 if arguments.long else 2_000)
    console.print(null_table(dense, null_points))
    console.print(measured_table())
    others.close()


if __name__ == "__main__":
    main()
