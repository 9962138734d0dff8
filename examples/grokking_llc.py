"""Does the fall of λ̂ lead or lag the generalisation that it goes with?

    python examples/grokking_llc.py --seed 0

While a network groks, its local learning coefficient λ̂ falls: the solution it ends with is simpler
than what it had learnt by heart. This trains the network of `grokking_phases.py` on half of all
pairs for three p, and once on random labels, which can only be learnt by heart. It asks when λ̂ and
the validation loss have done 10, 50 and 90 % of their fall from the peak to the end.

Seeds 0, 1 and 2, λ̂ measured every 30 steps; λ̂ has done half of its fall so many steps before the
validation loss has:

    p = 31  320, 370, 470     p = 43  200, 260, 150     p = 53  50, 30, 110

So it leads in nine of nine runs, by 218 steps on average. But that alone foretells nothing: with
random labels λ̂ begins to fall at the same step and has done half of its fall at step 270, as with
true ones (240 to 300), for weight decay simplifies whatever was memorised. What generalisation adds
is that λ̂ goes on: to 0.2 to 1.3 % of its peak, where random labels keep 11 %. λ̂ at p = 43 is down
to half of what random labels keep (both as shares of their peaks) at step 480, 540, 450; the
validation loss has done half of its fall at 470, 530, 420. By that measure λ̂ neither leads nor
lags by more than one of its measurements.

It takes about a minute and a half on one CPU core.
"""

from __future__ import annotations

import argparse
import json
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

TASKS = {f"p{p}": Task(p=p, share=0.5, steps=1200, measure_every=30) for p in (31, 43, 53)}
CONTROL = "p43-random-labels"
SHARES = (0.1, 0.5, 0.9)

SAMPLER = {"localization": 170.0, "num_chains": 2, "num_draws": 32, "max_draws": 48}
"""γ keeps the chains near w*: see `grokking.py`."""

Curve = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]
"""Steps, values and standard errors."""


def tasks(fast: bool) -> dict[str, Task]:
    """What is trained, by name."""
    if fast:
        return {"p11": FAST, CONTROL: FAST}
    return TASKS | {CONTROL: TASKS["p43"]}


def watched(task: Task, name: str, options: argparse.Namespace) -> dict[str, Curve]:
    """Train, and return what was seen of λ̂ and of the validation loss."""
    torch.manual_seed(options.seed)
    (pairs, labels), val_batch = make_data(task, options.seed)
    if name == CONTROL:
        labels = labels[torch.randperm(len(labels))]
    train_batch = pairs, labels
    settings = {
        "run_name": f"grokking-llc-{name}-seed{options.seed}",
        "observables": {"llc": {}},
        "every_n_steps": task.measure_every,
        "sampler": SAMPLER | {"seed": options.seed},
        "probe": {"num_samples": len(pairs)},
        "store": str(options.out / "phasewatch.db"),
    }
    watch = Watch(settings, probe=[train_batch], loss_fn=loss_fn)
    watch.start(expected_steps=task.steps)
    with watch:
        train(watch, task, train_batch, val_batch)
    return {
        stream: watch.history(stream, include_unconverged=True) for stream in ("llc", "val_loss")
    }


def fallen(curve: Curve, share: float) -> int:
    """First step after the peak at which this share of the fall from there to the end is done."""
    steps, values, _ = curve
    top = int(values.argmax())
    level = values[top] - share * (values[top] - np.median(values[-5:]))
    return int(steps[top + int(np.argmax(values[top:] <= level))])


def summary(curves: dict[str, Curve]) -> dict[str, Any]:
    """Peak and end of λ̂, and when it and the validation loss have fallen, as plain numbers."""
    _, llc, _ = curves["llc"]
    return {
        "peak": float(llc.max()),
        "end": float(np.median(llc[-5:])),
        "llc": [fallen(curves["llc"], share) for share in SHARES],
        "val_loss": [fallen(curves["val_loss"], share) for share in SHARES],
    }


def halved(curve: Curve, control: Curve) -> int | None:
    """First step after the peaks at which a share of the peak is below half of the control's."""
    steps, values, _ = curve
    _, others, _ = control
    shares = (values / values.max()) / (others / others.max())
    shares[: 1 + max(values.argmax(), others.argmax())] = 1.0
    return int(steps[shares < 0.5][0]) if (shares < 0.5).any() else None


def draw(curves: dict[str, dict[str, Curve]], options: argparse.Namespace) -> None:
    """Draw λ̂ and validation loss of each p as shares of their peaks."""
    shown = [name for name in curves if name != CONTROL]
    figure = Figure(figsize=(9.0, 0.8 + 2.1 * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    figure.suptitle("Grokking: λ̂ and validation loss, as shares of their peaks", x=0.02, ha="left")
    for axis, name in zip(axes, shown, strict=True):
        for stream, label in (("llc", "λ̂"), ("val_loss", "validation loss")):
            steps, values, errors = curves[name][stream]
            top = values.max()
            (line,) = axis.plot(steps, values / top, label=label, linewidth=1.3)
            if np.isfinite(errors).any():
                low, high = (values - 2 * errors) / top, (values + 2 * errors) / top
                axis.fill_between(steps, low, high, color=line.get_color(), alpha=0.2)
        steps, values, _ = curves[CONTROL]["llc"]
        label = "λ̂ at p = 43 with random labels"
        axis.plot(steps, values / values.max(), "--", color="0.6", linewidth=1.0, label=label)
        axis.set_title(f"p = {name[1:]}", loc="left", fontsize=9)
        axis.legend(fontsize=8, frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("optimizer step")
    figure.savefig(options.out / "figure.png", dpi=100)


def tell(found: dict[str, dict[str, Any]], options: argparse.Namespace) -> None:
    """Print the table: steps of λ̂ and of the validation loss, and how much later λ̂ is."""
    table = Table(title="Step at which so much of the fall is done: λ̂ / validation loss (lag of λ̂)")
    for column in ("run", "λ̂ peak", "λ̂ end", *(f"{share:.0%}" for share in SHARES)):
        table.add_column(column)
    for name, one in found.items():
        pairs = zip(one["llc"], one["val_loss"], strict=True)
        cells = [f"{a} / {b} ({a - b:+d})" if name != CONTROL else f"{a} / –" for a, b in pairs]
        table.add_row(name, f"{one['peak']:.0f}", f"{one['end']:.1f}", *cells)
    console = Console()
    console.print(table)
    for name, one in found.items():
        if "halved" in one:
            console.print(f"{name}: λ̂ is half of what random labels keep at {one['halved']}")
    console.print(f"picture  {options.out / 'figure.png'}", soft_wrap=True)


def main(arguments: list[str] | None = None) -> None:
    """Train each, and compare."""
    options = read_options(__doc__, "grokking-llc", arguments)
    quieten()
    curves = {name: watched(task, name, options) for name, task in tasks(options.fast).items()}
    found = {name: summary(one) for name, one in curves.items()}
    for name, one in curves.items():
        if name != CONTROL:
            found[name]["halved"] = halved(one["llc"], curves[CONTROL]["llc"])
    draw(curves, options)
    if options.json:
        print(json.dumps({"seed": options.seed, "runs": found}))
    else:
        tell(found, options)


if __name__ == "__main__":
    main()
