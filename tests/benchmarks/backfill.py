"""Forty checkpoints measured in one process, two, tasks, and after a stop: numbers and time.

    python tests/benchmarks/backfill.py [--checkpoints 40] [--jobs 2] [--draws 100]

The net is small, so that starting a process (importing torch, some seconds) weighs more than it
would in earnest. Ray is measured where it is installed; its cluster is started in that time.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

SUPPORT = str(Path(__file__).parents[1])
sys.path.insert(0, SUPPORT)
os.environ["PYTHONPATH"] = SUPPORT + os.pathsep + os.environ.get("PYTHONPATH", "")

from phasewatch.monitor.backfill.backfill import backfill  # noqa: E402
from phasewatch.monitor.backfill.checkpoints import find_checkpoints  # noqa: E402
from phasewatch.monitor.backfill.executors import executor_of  # noqa: E402
from phasewatch.monitor.backfill.measuring import Plan  # noqa: E402
from phasewatch.monitor.store.store import Store  # noqa: E402
from support.backfilled import CONFIG, train  # noqa: E402

SAMPLER = {"num_chains": 4, "engine": "loop"}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoints", type=int, default=40)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--draws", type=int, default=100)
    options = parser.parse_args()
    draws = {"num_draws": options.draws, "max_draws": options.draws}
    plan = Plan("support.backfilled:factory", {**CONFIG, "sampler": {**SAMPLER, **draws}})
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        steps = 10 * options.checkpoints
        train(root, steps, lambda step, net: torch.save(net.state_dict(), root / f"step-{step}.pt"))
        found = find_checkpoints([str(root / "*.pt")])
        half = len(found) // 2
        print(
            f"{len(found)} checkpoints, 4 chains of {options.draws} draws; load before it "
            f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
        )
        histories = {}
        size = -(-len(found) // options.jobs)
        ways = [
            ("1 process", [found], {}),
            (f"{options.jobs} processes", [found], {"jobs": options.jobs}),
            (f"{options.jobs} processes, tasks", [found], {"executor": "processes"}),
            ("Ray", [found], {"executor": "ray"}),
            ("1 process, in as many blocks", [found], {"block": size}),
            ("1 process, stopped half way", [found[:half], found], {}),
        ]
        if importlib.util.find_spec("ray") is None:
            del ways[3]
        for name, parts, how in ways:
            begin = time.perf_counter()
            with ExitStack() as stack:
                crew = dict(how)
                if executor := crew.pop("executor", None):
                    made = stack.enter_context(executor_of(executor, options.jobs))
                    crew = {"executor": made, "block": size}
                store = stack.enter_context(Store(root / f"{name}.db"))
                for part in parts:
                    done = backfill(store, "run", plan, part, **crew)
                found_llc = store.history(done.run_id, "llc", include_unconverged=True)
                histories[name] = found_llc[:3]
            print(f"{name}: {time.perf_counter() - begin:.1f} s, measured last {done.measured}")
        # The same blocks have the same numbers; other blocks have their error.
        for name, (at, values, error) in histories.items():
            for base in ("1 process", "1 process, in as many blocks"):
                _, first, other = histories[base]
                if name == base or (base != "1 process" and "stopped" in name):
                    continue
                equal = values == first
                gap = (np.abs(values - first) / np.hypot(error, other))[~equal]
                rest = f", the others within {gap.max():.2f} standard errors" if len(gap) else ""
                print(f"{name} against {base}: {equal.sum()} of {len(at)} equal bit for bit{rest}")


if __name__ == "__main__":
    main()
