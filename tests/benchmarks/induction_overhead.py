"""What measuring everything that fits adds to the training of induction heads.

Trains `examples/induction_heads.py` with no monitor and with `TransitionMonitor(observables="all")`
and its default budget, in turn, in one process on one thread. Printed are the overhead ratio that
the monitor reports, the measured slowdown, what of it the first measurements took, which the budget
does not count, and how often each observable was measured. With the default sampler the first λ̂
may take longer than this whole training: chains and probe are short here.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import lightning.pytorch as pl
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

from common import quieten
from induction_heads import Task, make_data, train

from phasewatch.callbacks import TransitionMonitor


def run(task: Task, folder: Path, monitor: TransitionMonitor | None = None) -> tuple[float, float]:
    """Wall-clock and CPU seconds of one training, its data apart."""
    pl.seed_everything(0, verbose=False)
    batches, held_out = make_data(task, 0)
    wall, cpu = time.perf_counter(), time.process_time()
    train(task, batches, held_out, folder, [] if monitor is None else [monitor])
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    """Train by turns, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1200, help="optimizer steps of a training")
    parser.add_argument("--repeats", type=int, default=3, help="trainings with and without")
    parser.add_argument("--draws", type=int, default=64, help="draws of each chain of λ̂")
    parser.add_argument("--probe", type=int, default=64, help="sequences of the probe")
    arguments = parser.parse_args()
    quieten()
    torch.set_num_threads(1)
    task = replace(Task(), steps=arguments.steps)
    probe = make_data(replace(task, steps=1, held_out=arguments.probe), 0)[1]
    sampler = {"num_draws": arguments.draws, "max_draws": arguments.draws}
    slowdowns = []
    with tempfile.TemporaryDirectory() as folder:
        run(replace(task, steps=task.every), Path(folder))  # what is slow only once
        for repeat in range(arguments.repeats):
            bare = run(task, Path(folder))
            settings = {
                "run_name": f"overhead-{repeat}",
                "store": "phasewatch.db",
                "exporter": {"enabled": False},
                "sampler": sampler,
            }
            monitor = TransitionMonitor(settings, observables="all", probe=probe)
            watched = run(task, Path(folder), monitor)
            by_clock, by_cpu = (slow / fast - 1 for slow, fast in zip(watched, bare, strict=True))
            slowdowns.append((by_clock, by_cpu))
            health = monitor.watch.health
            accounts = monitor.watch._planner._accounts.values()
            first = sum(account.first_cost for account in accounts if account.cost is not None)
            print(
                f"{task.steps} steps: {bare[0]:.1f} s without, {watched[0]:.1f} s with; slowdown "
                f"{by_clock:.1%} by the clock, {by_cpu:.1%} by CPU time; "
                f"the monitor reports {health.overhead_ratio:.1%}, and first measurements took "
                f"{first:.1f} s"
            )
            measured = ", ".join(f"{name} {n}" for name, n in sorted(health.measurements.items()))
            print(f"  measured: {measured}")
            print(f"  refused: {', '.join(sorted(health.skip_reasons)) or 'nothing'}")
    by_clock, by_cpu = (median(column) for column in zip(*slowdowns, strict=True))
    print(
        f"median slowdown {by_clock:.1%} by the clock, {by_cpu:.1%} by CPU time "
        "(budget: 5 %, first measurements apart)"
    )


if __name__ == "__main__":
    main()
