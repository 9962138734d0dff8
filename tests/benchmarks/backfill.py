"""Forty checkpoints measured in one process and in two, and after a stop: the numbers and the time.

    python tests/benchmarks/backfill.py [--checkpoints 40] [--jobs 2]

The net is small, so that starting a process (importing torch, some seconds) weighs more than it
would in earnest.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

SUPPORT = str(Path(__file__).parents[1])
sys.path.insert(0, SUPPORT)
os.environ["PYTHONPATH"] = SUPPORT + os.pathsep + os.environ.get("PYTHONPATH", "")

from phasewatch.monitor.backfill.backfill import backfill  # noqa: E402
from phasewatch.monitor.backfill.checkpoints import find_checkpoints  # noqa: E402
from phasewatch.monitor.backfill.measuring import Plan  # noqa: E402
from phasewatch.monitor.store.store import Store  # noqa: E402
from support.backfilled import CONFIG, train  # noqa: E402

SAMPLER = {"num_chains": 4, "num_draws": 100, "max_draws": 100, "engine": "loop"}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoints", type=int, default=40)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    plan = Plan("support.backfilled:factory", {**CONFIG, "sampler": SAMPLER})
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        steps = 10 * options.checkpoints
        train(root, steps, lambda step, net: torch.save(net.state_dict(), root / f"step-{step}.pt"))
        found = find_checkpoints([str(root / "*.pt")])
        half = len(found) // 2
        print(f"{len(found)} checkpoints, 4 chains of 100 draws")
        histories = {}
        for name, parts, jobs in (
            ("1 process", [found], 1),
            (f"{options.jobs} processes", [found], options.jobs),
            ("1 process, stopped half way", [found[:half], found], 1),
        ):
            begin = time.perf_counter()
            with Store(root / f"{name}.db") as store:
                for part in parts:
                    done = backfill(store, "run", plan, part, jobs=jobs)
                histories[name] = store.history(done.run_id, "llc")
            print(f"{name}: {time.perf_counter() - begin:.1f} s, measured last {done.measured}")
        (_, first, error), *others = histories.values()
        for name, (at, values, other) in zip([*histories][1:], others, strict=True):
            gap = np.abs(values - first) / np.hypot(error, other)
            equal = int((values == first).sum())
            print(
                f"{name} against 1 process: {equal} of {len(at)} equal bit for bit, the others "
                f"within {gap.max():.2f} standard errors at most"
            )


if __name__ == "__main__":
    main()
