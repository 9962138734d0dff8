"""Does the fall of λ̂ lead or lag the generalisation that it goes with?

python examples/grokking_llc.py --seed 0
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from common import quieten, read_options
from grokking_phases import FAST, Task, loss_fn, make_data, train
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from phasewatch.monitor import Watch

TASKS = {f"p={p}": Task(p=p, share=0.5, steps=1200, measure_every=20) for p in (31, 43, 53)}
CONTROL = {"p=53, no decay": replace(TASKS["p=53"], weight_decay=0.0)}
"""The same without weight decay: it memorises, and does not generalise in this time."""

SAMPLER = {"localization": 170.0, "num_chains": 2, "num_draws": 40, "max_draws": 80}
"""γ keeps the chains near w*: see `grokking.py`."""

Curve = tuple[NDArray[np.int64], NDArray[np.float64]]


def watched(task: Task, name: str, options: argparse.Namespace) -> dict[str, Curve]:
    """Train, and return what was seen of λ̂ and of the losses."""
    torch.manual_seed(options.seed)
    train_batch, val_batch = make_data(task, options.seed)
    settings = {
        "run_name": name,
        "observables": {"llc": {}},
        "every_n_steps": task.measure_every,
        "sampler": {**SAMPLER, "seed": options.seed},
        "probe": {"num_samples": len(train_batch[0])},
        "store": str(options.out / "phasewatch.db"),
    }
    watch = Watch(settings, probe=[train_batch], loss_fn=loss_fn)
    watch.start(expected_steps=task.steps)
    with watch:
        train(watch, task, train_batch, val_batch)
    return {s: watch.history(s)[:2] for s in ("llc", "val_loss", "train_loss")}


def fallen(curve: Curve, share: float) -> int:
    """First step after the peak at which so much of the fall from there to the end is done."""
    steps, values = curve
    top = int(values.argmax())
    level = values[top] - share * (values[top] - np.median(values[-5:]))
    return int(steps[top + int(np.argmax(values[top:] <= level))])


def lags(curves: dict[str, Curve]) -> dict[str, Any]:
    """Steps at which λ̂ and the validation loss have fallen, and by how much λ̂ comes later."""
    found: dict[str, Any] = {}
    for share in (0.1, 0.5, 0.9):
        llc, val = fallen(curves["llc"], share), fallen(curves["val_loss"], share)
        found[f"{share:.0%}"] = {"llc": llc, "val_loss": val, "lag": llc - val}
    return found
