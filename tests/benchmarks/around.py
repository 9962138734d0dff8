"""How finely the onset of a change is known, with and without more at a suspected transition.

    python tests/benchmarks/around.py

A logged loss falls at a step that is drawn; a measured stream changes `lag` steps after it. The
streams are simulated and the run is a real one: its detectors, its planner, its ring of
checkpoints. Counted is, for the measured stream, how many steps lie between the two points that
enclose its true onset: as measured, as measured densely, and with the kept checkpoints measured
afterwards. No figure depends on the clock.
"""

from __future__ import annotations

import argparse
import logging
import re
import tempfile
from pathlib import Path

import numpy as np
import torch

from phasewatch.monitor import Watch
from phasewatch.monitor.core.estimates import Observation

STEPS, CADENCE, HANDED_OVER = 10_000, 500, 50
LAGS = (-200, 0, 100, 250, 500, 1_000)


class Measured:
    """A stream that changes at a step."""

    name, unit = "measured", "1"

    def __init__(self, onset: int) -> None:
        self.onset = onset

    def measure(self, context):
        value = 1.0 if context.step < self.onset else 2.0
        return Observation(name=self.name, step=context.step, value=value)


def losses(onset: int, seed: int) -> np.ndarray:
    """A loss that falls to a fifth within 100 steps, with 3 % of noise."""
    steps = np.arange(1, STEPS + 1)
    fall = np.clip((steps - onset) / 100.0, 0.0, 1.0)
    return 5.0**-fall * (1.0 + 0.03 * np.random.default_rng(seed).standard_normal(STEPS))


def run(folder: Path, onset: int, lag: int, seed: int, denser: int) -> tuple[list[int], list[int]]:
    """Steps at which was measured, and of the checkpoints that were kept."""
    model = torch.nn.Linear(1, 1)
    config = {
        "store": str(folder / "runs.db"),
        "exporter": {"enabled": False},
        "every_n_steps": CADENCE,
        "checkpoint_on": "suspected",
        "around": {"denser": denser},
        "loggers": False,
    }
    options = {"save": lambda path: path.write_bytes(b"weights"), "root": folder}
    watch = Watch(config, observables=[Measured(onset + lag)], **options)
    watch.start(expected_steps=STEPS)
    for step, loss in enumerate(losses(onset, seed), start=1):
        watch.observe(step, {"train_loss": float(loss)})
        if watch.due(step):
            watch.probe(step, model)
        if step % HANDED_OVER == 0:
            watch.drain()
    measured = watch.history("measured", include_unconverged=True)[0].tolist()
    watch.finish()
    near = [t for t in watch.transitions if abs(t.onset_step - onset) <= 500]
    kept = {path for transition in near for path in transition.checkpoints}
    return measured, sorted(int(re.findall(r"step=(\d+)", path)[0]) for path in kept)


def between(points: list[int], onset: int) -> int:
    """Steps between the two points that enclose an onset."""
    before = max((p for p in points if p < onset), default=0)
    return min((p for p in points if p >= onset), default=STEPS) - before


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=6)
    seeds = range(parser.parse_args().seeds)
    logging.getLogger("phasewatch").setLevel(logging.WARNING)
    print(f"{STEPS:,} steps, measured every {CADENCE}, a checkpoint every {STEPS // 100}")
    print(f"median of {len(seeds)} runs: steps between the points around the onset, and points")
    print("  lag  sparse  dense  and kept | sparse  dense  kept  before the onset")
    for lag in LAGS:
        rows = []
        for seed in seeds:
            onset = int(np.random.default_rng([seed, 7]).integers(3_000, 7_000))
            with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
                sparse, _ = run(Path(one), onset, lag, seed, 1)
                dense, kept = run(Path(other), onset, lag, seed, 4)
            begins = onset + lag
            rows.append([
                between(sparse, begins), between(dense, begins), between(dense + kept, begins),
                len(sparse), len(dense), len(kept), sum(step < begins for step in kept),
            ])  # fmt: skip
        a, b, c, *counts = np.median(rows, axis=0)
        few, many, kept, early = counts
        print(
            f"{lag:5d}  {a:6.0f}  {b:5.0f}  {c:8.0f} | {few:6.0f}  {many:5.0f}  {kept:4.0f}  "
            f"{early:16.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
