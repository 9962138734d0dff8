"""What warm chains save: 100 measurements along the grokking run, warm against cold.

The same snapshots are measured twice, by chains that start at w* each time and by chains that go on
from where those of the snapshot before ended. Error: against long cold chains at every fifth
snapshot, where those settle. Cost: CPU seconds, and gradients of the whole probe (draws and power
iterations). `fixed` takes one number of draws; `default` draws on until the status is settled.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from grokking import ModularAdder, Task, modular_addition

from phasewatch.monitor.core.estimates import Estimate, EstimateStatus
from phasewatch.monitor.isolation import measure_context
from phasewatch.monitor.sampling import Memory, SamplerConfig, measure_llc
from phasewatch.monitor.sampling.engine import VmapEngine

LOCALIZATION = 170.0
EVERY = 5
"""Snapshots from one reference to the next."""


def losses(model: nn.Module, batch: Any) -> torch.Tensor:
    """Cross-entropy of each pair."""
    pairs, labels = batch
    return nn.functional.cross_entropy(model(pairs).double(), labels, reduction="none")


def snapshots(task: Task, seed: int, count: int) -> list[tuple[int, nn.Module]]:
    """The model at evenly spaced steps of one run."""
    torch.manual_seed(seed)
    train, _ = modular_addition(task.p, seed)
    model = ModularAdder(task)
    chosen = model.configure_optimizers()
    optimizer, scheduler = chosen["optimizer"], chosen["lr_scheduler"]["scheduler"]
    found = []
    for step in range(1, task.steps + 1):
        optimizer.zero_grad()
        losses(model, train.tensors).mean().backward()
        optimizer.step()
        scheduler.step()
        if step % (task.steps // count) == 0:
            found.append((step, copy.deepcopy(model)))
    return found


@dataclass
class Series:
    """Measurements of all snapshots in one way."""

    name: str
    config: SamplerConfig
    memory: Memory = field(default_factory=Memory)
    estimates: list[Estimate] = field(default_factory=list)
    seconds: float = 0.0
    gradients: int = 0

    def measure(self, step: int, model: nn.Module, data: Any, seed: int) -> None:
        """One more."""
        context = measure_context(
            model,
            step=step,
            loss_fn=losses,
            batches=(data,),
            n_samples=len(data[0]),
            seed=1000 * seed + step,
        )
        before = VmapEngine.batch
        count = 0

        def counted(engine: VmapEngine, points: torch.Tensor, index: int) -> Any:
            nonlocal count
            count += 1
            return before(engine, points, index)

        VmapEngine.batch = counted
        started = time.process_time()
        try:
            self.estimates.append(measure_llc(context, self.config, memory=self.memory))
        finally:
            VmapEngine.batch = before
        self.seconds += time.process_time() - started
        self.gradients += count


def main() -> None:
    """Print one line for each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--snapshots", type=int, default=100)
    parser.add_argument("--reference-draws", type=int, default=1024)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    task = Task()
    data = modular_addition(task.p, arguments.seed)[0].tensors
    run = snapshots(task, arguments.seed, arguments.snapshots)
    fixed = {"localization": LOCALIZATION, "max_draws": 0, "engine": "vmap"}
    default = {"localization": LOCALIZATION, "engine": "vmap"}
    ways = [
        Series(f"{mode}, {'warm' if warm else 'cold'}", SamplerConfig(warm_start=warm, **options))
        for mode, options in (
            ("fixed, 128", fixed | {"num_draws": 128}),
            ("default", default),
        )
        for warm in (False, True)
    ]
    reference = Series(
        "reference",
        SamplerConfig(**fixed | {"num_draws": arguments.reference_draws, "warm_start": False}),
    )
    for index, (step, model) in enumerate(run):
        for way in ways:
            way.measure(step, model, data, arguments.seed)
        if index % EVERY == EVERY - 1:
            reference.measure(step, model, data, arguments.seed)
            line = " ".join(f"{way.estimates[-1].lambda_hat:7.1f}" for way in [reference, *ways])
            print(f"step {step:5d}: {line}", flush=True)
    print(f"{'':18s} CPU s  gradients   draws  warm    OK    RMSE  median  against the reference")
    for way in ways:
        errors = [
            found.lambda_hat / truth.lambda_hat - 1
            for found, truth in zip(
                way.estimates[EVERY - 1 :: EVERY], reference.estimates, strict=True
            )
            if truth.status is EstimateStatus.OK
        ]
        drawn = [found.num_draws + found.num_burnin for found in way.estimates]
        share = np.mean([found.status is EstimateStatus.OK for found in way.estimates])
        warm = np.mean([found.warm for found in way.estimates])
        print(
            f"{way.name:18s} {way.seconds:5.1f} {way.gradients:10d} {np.mean(drawn):7.0f} "
            f"{warm:5.0%} {share:5.0%} {math.sqrt(np.mean(np.square(errors))):7.1%} "
            f"{np.median(np.abs(errors)):7.1%}  at {len(errors)} points"
        )


if __name__ == "__main__":
    main()
