"""Every detector on recorded training curves with known transitions, and on curves without any.

The recorded curves are those of `training_curves.json` in the folder PHASEWATCH_TEST_DATA names;
without it, simulated ones stand in. Columns: recall, precision, lenient F1 (repeats within a found
transition forgiven), strict F1 (counted false), median delay from the start of the transition in
its widths and in points, false alarms per 1000 points without a transition, processor time a point.
Detectors of river are added where river is installed, and Lightning's SpikeDetection. Ours are fed
what they expect: losses in nats, or their log10. "detrended" is the residual ours are fed inside.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from lightning.fabric.utilities.spike import SpikeDetection, TrainingSpikeException
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from phasewatch import detectors
from phasewatch.detectors.detrend import Detrend
from phasewatch.detectors.scoring import (
    Curve,
    Interval,
    Score,
    always_alarm,
    detect,
    load_curves,
    match,
)
from support.curves import autoregressive, feed, grokking_val_loss, power_law, sigmoid_fall, spiky

Run = Callable[[Curve], list[int]]

NULL_POINTS = 20_000
MEASURED_STREAMS = 100

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


def recorded_curves() -> tuple[str, list[Curve]]:
    """The curves to score on, and what they are."""
    folder = os.environ.get("PHASEWATCH_TEST_DATA")
    if folder is not None:
        return "recorded curves", load_curves(Path(folder) / "training_curves.json")
    return "simulated curves (PHASEWATCH_TEST_DATA is not set)", simulated_curves()


def simulated_curves() -> list[Curve]:
    """Falls of several widths and sizes under noise, one grokking run, and ordinary decay."""
    curves = []
    for seed, (width, dex, noise) in enumerate(
        [(0.05, 1.0, 0.0), (0.1, 2.0, 0.01), (0.08, 0.5, 0.03), (0.06, 0.4, 0.05)]
    ):
        values = sigmoid_fall(1000, width, dex) * 10.0 ** autoregressive(1000, 0.3, noise, seed)
        near = Interval(start=500 - int(1000 * width), end=500 + int(1000 * width))
        curves.append(curve_of(f"fall {seed}", values, [near]))
        decay = power_law(1000) * 10.0 ** autoregressive(1000, 0.3, noise, seed + 100)
        curves.append(curve_of(f"decay {seed}", decay))
    _, losses = grokking_val_loss(1000)
    curves.append(curve_of("grokking", losses, [Interval(start=520, end=680)]))
    return curves


def curve_of(name: str, values: np.ndarray, transitions: Sequence[Interval] = ()) -> Curve:
    """A curve logged at every step."""
    return Curve(
        name=name,
        steps=tuple(range(len(values))),
        values=tuple(values.tolist()),
        transitions=tuple(transitions),
    )


def null_streams(seed: int = 1) -> Iterator[Curve]:
    """Long losses without a transition, each with its own kind of noise."""
    n = NULL_POINTS
    rng = np.random.default_rng(seed)
    t = np.arange(n)
    cosine = 0.5 * (1.0 + np.cos(np.pi * t / n))
    streams = {
        "white noise, .03 dex": 2.0 * 10.0 ** autoregressive(n, 0.0, 0.03, seed),
        "AR(0.6), .1 dex": 2.0 * 10.0 ** autoregressive(n, 0.6, 0.1, seed),
        "AR(0.9), .1 dex": 2.0 * 10.0 ** autoregressive(n, 0.9, 0.1, seed),
        "t3 tails, .05 dex": 2.0 * 10.0 ** (0.05 * rng.standard_t(3, n)),
        "power law": power_law(n) * 10.0 ** autoregressive(n, 0.3, 0.03, seed),
        "power law, no noise": power_law(n),
        "cosine schedule": (0.3 + cosine + 3.0 * np.exp(-t / 500.0))
        * 10.0 ** autoregressive(n, 0.3, 0.02, seed),
        "accumulation saw-teeth": 2.0 + 0.2 * (t % 8) / 8.0 + 2.0 * np.exp(-t / 2000.0),
        "minibatches, small loss": (0.02 + np.exp(-t / 2000.0)) * rng.gamma(8.0, 0.125, n),
        "flat tail at 1e-6": 4.0 * np.exp(-t / 300.0) + 1e-6,
        "spikes of 3 dex": spiky(n, 400, seed=seed),
    }
    for name, values in streams.items():
        yield curve_of(name, values)


def candidates() -> dict[str, Run]:
    """How to get the alarms of each detector on one curve."""
    runs: dict[str, Run] = {
        f"{name} ({scale})": ours(name, scale)
        for name in detectors.names()
        for scale in ("log10" if name == "ruptures_window" else "nats",)
    }
    runs["Lightning SpikeDetection (nats)"] = lightning_spikes
    if importlib.util.find_spec("river") is not None:
        from river import drift

        for kind in (drift.PageHinkley, drift.ADWIN, drift.KSWIN):
            runs[f"river {kind.__name__} (log10)"] = theirs(kind, logarithmic)
        runs["river PageHinkley, 20 (detrended)"] = theirs(
            lambda: drift.PageHinkley(threshold=20.0), detrended
        )
    return runs


def ours(name: str, scale: str) -> Run:
    """A registered detector, fed the loss or its logarithm."""

    def run(curve: Curve) -> list[int]:
        return detect(curve if scale == "nats" else logarithmic(curve), detectors.create(name))

    return run


def theirs(make: Callable[[], Any], prepare: Callable[[Curve], Curve]) -> Run:
    """A detector of river."""

    def run(curve: Curve) -> list[int]:
        detector = make()
        alarms = []
        for point, value in enumerate(prepare(curve).values):
            detector.update(value)
            if detector.drift_detected:
                alarms.append(point)
        return alarms

    return run


def lightning_spikes(curve: Curve) -> list[int]:
    """SpikeDetection with its defaults; training would stop at each alarm, here it goes on."""
    fabric = mock.MagicMock(global_rank=1)
    fabric.strategy.root_device = torch.device("cpu")
    fabric.strategy.reduce_boolean_decision = lambda decision, **_: decision
    detector = SpikeDetection()
    alarms = []
    for point, value in enumerate(curve.values):
        try:
            detector.on_train_batch_end(fabric, torch.tensor(value), None, point)
        except TrainingSpikeException:
            alarms.append(point)
    return alarms


def detrended(curve: Curve) -> Curve:
    """The residuals of its log10 against the local line; 0 where there are none yet."""
    detrend = Detrend()
    points = zip(curve.steps, logarithmic(curve).values, strict=True)
    values = tuple(detrend.update(step, y, 1.0) or 0.0 for step, y in points)
    return replace(curve, values=values)


def logarithmic(curve: Curve) -> Curve:
    """The same curve in log10."""
    values = np.log10(np.maximum(curve.values, 1e-12))
    return replace(curve, values=tuple(values.tolist()))


def timed_score(run: Run, curves: Sequence[Curve]) -> tuple[Score, float]:
    """Score over all curves, and microseconds of processor time a point."""
    total, seconds, points = Score(), 0.0, 0
    for curve in curves:
        start = time.process_time()
        alarms = run(curve)
        seconds += time.process_time() - start
        points += len(curve.values)
        total += match(alarms, curve)
    return total, 1e6 * seconds / points


def score_table(title: str, curves: Sequence[Curve]) -> Table:
    """One row a detector, the always-alarm baseline first."""
    table = Table(title=title)
    table.add_column("detector")
    for head in ("recall", "precision", "F1", "strict", "delay w/points", "FA/1k", "µs/point"):
        table.add_column(head, justify="right")
    baseline = always_alarm(curves)
    table.add_row("always alarm", *cells(baseline), "-")
    for name, run in candidates().items():
        score, microseconds = timed_score(run, curves)
        table.add_row(name, *cells(score), f"{microseconds:.1f}")
    return table


def sparse_table(curves: Sequence[Curve]) -> Table:
    """Lenient F1 of our detectors when only every n-th point is logged."""
    table = Table(title="F1 when every n-th point is logged")
    table.add_column("detector")
    every = (1, 2, 4, 8)
    for n in every:
        table.add_column(str(n), justify="right")
    for name, run in candidates().items():
        if name.split(" ")[0] in detectors.names():
            scores = (timed_score(run, [curve.every(n) for curve in curves])[0] for n in every)
            table.add_row(name, *(f"{score.f1:.3f}" for score in scores))
    return table


def cells(score: Score) -> list[str]:
    """The figures of one row."""
    return [
        f"{score.recall:.2f}",
        f"{score.precision:.2f}",
        f"{score.f1:.3f}",
        f"{score.strict_f1:.3f}",
        f"{score.median_relative_delay:.2f}w/{score.median_delay:.0f}",
        f"{score.false_alarms_per_1000:.3f}",
    ]


def null_table() -> Table:
    """False alarms per 1000 points on streams without a transition."""
    table = Table(title=f"false alarms per 1000 points, {NULL_POINTS} points each")
    table.add_column("detector")
    curves = list(null_streams())
    for curve in curves:
        table.add_column(curve.name, justify="right")
    for name, run in candidates().items():
        counts = [1000.0 * len(run(curve)) / len(curve.values) for curve in curves]
        table.add_row(name, *(f"{count:.2f}" for count in counts))
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
    console = Console(width=160)
    what, curves = recorded_curves()
    points = sum(len(curve.values) for curve in curves)
    transitions = sum(len(curve.transitions) for curve in curves)
    title = f"{len(curves)} {what}: {transitions} transitions, {points} points"
    console.print(score_table(title, curves))
    console.print(sparse_table(curves))
    console.print(null_table())
    console.print(measured_table())


if __name__ == "__main__":
    main()
