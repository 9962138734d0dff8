"""Peak memory of each engine: measured, and by the formula of `sampling/memory.py`.

Each row is a process of its own. It copies a perceptron of d parameters, lets the chains run a few
draws with all looks at the sharpness, and compares the highest resident memory (`VmHWM`, reset
after the copy) with what was resident before. Linux only.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from phasewatch.monitor.isolation import measure_context
from phasewatch.monitor.sampling import SamplerConfig, measure_llc, memory_budget
from phasewatch.monitor.sampling.posing import pose
from phasewatch.monitor.sampling.posterior import Problem

NUM_CHAINS = 4
ENGINES = {"vmap": NUM_CHAINS, "vmap, 2": 2, "loop": 1, "inplace": 1}
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""glibc keeps freed blocks of up to 32 MiB for later; so that what is resident is what is in use,
it is told to return them."""

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def perceptron(num_parameters: int) -> nn.Module:
    """Four layers of one size, without biases."""
    width = round(math.sqrt(num_parameters / 4))
    layers = [nn.Linear(width, width, bias=False) for _ in range(4)]
    return nn.Sequential(*itertools.chain.from_iterable((layer, nn.Tanh()) for layer in layers))


def squares(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return 0.5 * (model(batch[0]) - batch[1]).square().mean(dim=-1)


def resident(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


def by_formula(problem: Problem, engine: str) -> tuple[int, int]:
    """Bytes that an engine takes, and those of its activations."""
    if engine == "inplace":
        size = memory_budget.inplace_bytes(problem)
    elif engine == "loop":
        size = memory_budget.loop_bytes(problem, NUM_CHAINS)
    else:
        size = memory_budget.vmap_bytes(problem, NUM_CHAINS, ENGINES[engine])
    return size, problem.kept_bytes


def measure(engine: str, num_parameters: int, batch_size: int) -> dict[str, float]:
    """Run one engine in this process: bytes measured, bytes by the formula."""
    torch.set_num_threads(1)
    torch.manual_seed(0)

    def run(size: int) -> dict[str, float]:
        model = perceptron(size)
        x = torch.randn(batch_size, model[0].in_features)
        batch = (x, model(x).detach())
        context = measure_context(
            model, step=0, loss_fn=squares, batches=[batch], n_samples=1024, lend=True
        )
        formula, kept = by_formula(pose(context), engine)
        config = SamplerConfig(
            engine=engine.split(",")[0], max_bytes=formula, num_draws=10, max_draws=0
        )
        gc.collect()
        CLEAR.write_text("5")  # resets VmHWM to what is resident now
        before = resident("VmRSS")
        measure_llc(context, config)
        measured = resident("VmHWM") - before
        num_parameters = sum(p.numel() for p in model.parameters())
        return {"d": num_parameters, "kept": kept, "formula": formula, "measured": measured}

    run(1000)  # what torch and arviz load at their first call
    return run(num_parameters)


def measured_apart(engine: str, num_parameters: int, batch_size: int) -> dict[str, float]:
    """The same in a fresh process."""
    command = [sys.executable, __file__, "--engine", engine, "--sizes", str(num_parameters)]
    done = subprocess.run(
        [*command, "--batch", str(batch_size)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **GIVE_BACK},
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Print one line for each engine and size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=float, nargs="+", default=[1e5, 1e6, 1e7])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--engine", choices=ENGINES, help="measure this one in this process")
    arguments = parser.parse_args()
    if arguments.engine:
        found = measure(arguments.engine, int(arguments.sizes[0]), arguments.batch)
        print(json.dumps(found))
        return
    print(f"{NUM_CHAINS} chains, batch {arguments.batch}, fp32; sizes in MiB; S = 4 d bytes")
    print("engine          d        S  kept  formula  measured  measured/formula  measured/S")
    for size, engine in itertools.product(arguments.sizes, ENGINES):
        row = measured_apart(engine, int(size), arguments.batch)
        state = 4 * row["d"]
        sizes = [x / 2**20 for x in (state, row["kept"], row["formula"], row["measured"])]
        print(
            f"{engine:8s} {row['d']:10.0f} {sizes[0]:7.1f} {sizes[1]:6.1f} {sizes[2]:8.1f} "
            f"{sizes[3]:9.1f} {sizes[3] / sizes[2]:13.2f} {sizes[3] / sizes[0]:13.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
