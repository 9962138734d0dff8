"""Cost and memory of one measurement against model size, 10³ to 10⁷ parameters.

Perceptrons 64-W-W-10 of growing width on a probe of 128 samples, four chains, each size in a fresh
process of one thread; also on the GPU where there is one. Columns:

- bare: a plain forward + backward pass over the probe;
- step: what one more step of one chain adds to `estimate_llc` (the difference of a longer and a
  shorter call, with the looks at the sharpness on the way);
- peak: memory at the highest point of the call beyond what the process held before it, model,
  gradients and probe included there; also per parameter.

The slopes are those of straight lines through the logarithms, from 10⁵ parameters up: below, calls
cost more than arithmetic. Times are CPU times (on a GPU: wall times).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn

from phasewatch.monitor.core.estimates import Estimate
from phasewatch.monitor.sampling import SamplerConfig, estimate_llc

SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
INPUTS, CLASSES, BATCH = 64, 10, 128
NUM_CHAINS = 4
SHORT = 8
LARGE = 100_000
ENOUGH_SECONDS = 30.0
"""A size is not repeated after that long."""

STATUS, PEAK_RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def network(size: int) -> nn.Module:
    """Perceptron with about `size` parameters: W² + (64 + 10 + 2) W + 10."""
    linear = INPUTS + CLASSES + 2
    width = max(1, round((math.sqrt(linear**2 + 4 * (size - CLASSES)) - linear) / 2))
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise((INPUTS, width, width, CLASSES)):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


# -- one size, in a process of its own ------------------------------------------------------------


class Meter:
    """Seconds and peak bytes on one device."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"

    def seconds(self, function: Callable[[], Any]) -> float:
        clock = time.perf_counter if self.cuda else time.process_time
        self._wait()
        started = clock()
        function()
        self._wait()
        return clock() - started

    def peak_bytes(self, function: Callable[[], Any]) -> int:
        """Highest use during the call, beyond the use before it."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            function()
            return torch.cuda.max_memory_allocated() - before
        PEAK_RESET.write_text("5", encoding="ascii")
        before = _status("VmRSS")
        function()
        return _status("VmHWM") - before

    def _wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()


def _status(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


def measured(size: int, device: str, repeats: int) -> dict[str, Any]:
    """Everything about one size."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    meter = Meter(device)
    model = network(size).to(device)
    batch = (
        torch.randn(BATCH, INPUTS, device=device),
        torch.randint(0, CLASSES, (BATCH,), device=device),
    )

    def bare() -> None:
        model.zero_grad(set_to_none=True)
        loss(model, batch).mean().backward()

    def measure(num_draws: int) -> Estimate:
        config = SamplerConfig(num_chains=NUM_CHAINS, num_draws=num_draws, max_draws=0)
        return estimate_llc(model, [batch], loss, n_samples=BATCH, config=config)

    meter.seconds(bare)
    measure_small(device)  # first calls load code
    found: list[Estimate] = []
    peak = meter.peak_bytes(lambda: found.append(measure(SHORT)))
    once = statistics.median(meter.seconds(bare) for _ in range(3))
    extra = max(SHORT, min(256, math.ceil(1.0 / (once * NUM_CHAINS))))
    passes = max(1, min(50, math.ceil(0.2 / once)))
    bares, steps = [], []
    started = time.monotonic()
    while not steps or (len(steps) < repeats and time.monotonic() - started < ENOUGH_SECONDS):
        bares.append(meter.seconds(lambda: [bare() for _ in range(passes)]) / passes)
        short = meter.seconds(lambda: measure(SHORT))
        long = meter.seconds(lambda: measure(SHORT + extra))
        steps.append((long - short) / extra / NUM_CHAINS)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "device": device,
        "engine": found[0].engine,
        "bare": statistics.median(bares),
        "step": statistics.median(steps),
        "peak": peak,
    }


def measure_small(device: str) -> None:
    """One measurement of a tiny model."""
    model = nn.Linear(2, 2).to(device)
    batch = (torch.ones(3, 2, device=device), torch.zeros(3, dtype=torch.long, device=device))
    config = SamplerConfig(num_chains=NUM_CHAINS, num_draws=SHORT, max_draws=0)
    estimate_llc(model, [batch], loss, n_samples=3, config=config)


# -- all sizes ------------------------------------------------------------------------------------


def ask(size: int, device: str, repeats: int) -> dict[str, Any]:
    """`measured`, in a fresh process."""
    command = [sys.executable, __file__, "--one", str(size), "--device", device]
    command += ["--repeats", str(repeats)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def slope(rows: Sequence[dict[str, Any]], key: str) -> float:
    """d log(value) / d log(parameters) over the large sizes."""
    large = [row for row in rows if row["parameters"] > 0.9 * LARGE]
    if len(large) < 2:
        return math.nan
    logs = np.log([[row["parameters"], row[key]] for row in large])
    return float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])


def _slope(rows: Sequence[dict[str, Any]], key: str) -> str:
    return f" (slope {slope(rows, key):.2f} from 10⁵ up)"


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Seconds and memory against size, as a PNG."""
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for device in sorted({row["device"] for row in rows}):
        of_device = [row for row in rows if row["device"] == device]
        sizes = [row["parameters"] for row in of_device]
        for key, label, style in (("step", "one step of one chain", "o-"), ("bare", "bare", "x--")):
            name = f"{label}, {device}{_slope(of_device, key)}"
            left.loglog(sizes, [1e3 * row[key] for row in of_device], style, label=name)
        memory = [row["peak"] / 2**20 for row in of_device]
        right.loglog(sizes, memory, "o-", label=device + _slope(of_device, "peak"))
    left.set_ylabel("milliseconds")
    left.set_title("Chain step and bare forward + backward", fontsize=10)
    right.set_ylabel("MiB")
    right.set_title(f"Peak memory of a measurement, {NUM_CHAINS} chains", fontsize=10)
    for axis in (left, right):
        axis.set_xlabel("parameters")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Print one line for each size, and the slopes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=float, nargs="+", default=SIZES)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plot", type=Path, help="write a PNG here, such as docs/llc_scale.png")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cpu", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measured(options.one, options.device, options.repeats)))
        return
    if not PEAK_RESET.exists():
        raise SystemExit(f"{PEAK_RESET} is missing: peak memory is read from Linux's /proc")
    print(f"{NUM_CHAINS} chains, a probe of {BATCH} samples")
    header = f"{'device':6s} {'parameters':>10s} {'engine':7s} {'bare ms':>9s} {'step ms':>9s}"
    print(f"{header} {'step/bare':>9s} {'peak MiB':>9s} {'bytes/parameter':>15s}")
    rows = []
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for size in options.sizes:
            rows.append(ask(int(size), device, options.repeats))
            row = rows[-1]
            print(
                f"{device:6s} {row['parameters']:10d} {row['engine']:7s} {row['bare'] * 1e3:9.3f} "
                f"{row['step'] * 1e3:9.3f} {row['step'] / row['bare']:9.2f} "
                f"{row['peak'] / 2**20:9.1f} {row['peak'] / row['parameters']:15.1f}",
                flush=True,
            )
        of_device = [row for row in rows if row["device"] == device]
        slopes = ", ".join(f"{key} {slope(of_device, key):.2f}" for key in ("step", "bare", "peak"))
        print(f"slopes from {LARGE:,} parameters up: {slopes}")
    if options.plot:
        draw(rows, options.plot)
        print(f"plot: {options.plot}")


if __name__ == "__main__":
    main()
