"""Watch the curvature of a small network on handwritten digits reach the edge of stability.

    python examples/digits.py

A perceptron with two hidden layers learns scikit-learn's digits (8×8 pixels, 1000 to train on) by
plain gradient descent on all of them at once, on the squared error. Cohen et al. 2021 (arXiv
2103.00065, figure 1) saw that the sharpness, the largest eigenvalue of the loss's Hessian, rises
until it reaches 2/lr, where gradient descent ought to diverge, and then stays just above it while
the loss goes on falling, no longer at each step.

So it does here, with seeds 0, 1 and 2: the sharpness rises from 9 or 10 to 2/lr = 13.3 by step 325,
300 and 250, overshoots, and stays there, its median from then on being 1.00, 1.01 and 1.00 of 2/lr.
Until then no step raises the loss; afterwards 8 %, 24 % and 20 % of them do, in a few spikes
that die out. The gradient noise scale falls from thousands of samples to tens as the edge is
reached, for the gradient of the whole data grows along the direction in which descent oscillates.
No transition is reported: the approach is gradual, and the spikes are too small.

It takes half a minute of one CPU core a seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Panel, conclude, first_crossing, quieten, read_options
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from phasewatch.monitor import Watch

NUM_TRAIN = 1000
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """What is trained, and how closely it is watched."""

    hidden: int = 32
    learning_rate: float = 0.15
    steps: int = 2000
    curvature_every: int = 25
    validate_every: int = 10


FAST = Task(hidden=8, steps=60, curvature_every=10)
"""Shows that everything works, comes to no edge."""


def load(seed: int) -> tuple[Batch, Batch]:
    """Standardised pixels and one-hot classes: to train on, and held out."""
    digits = load_digits()
    pixels = torch.tensor(digits.data, dtype=torch.float32)
    pixels = (pixels - pixels.mean()) / pixels.std()
    classes = nn.functional.one_hot(torch.tensor(digits.target), 10).to(torch.float32)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(seed))
    train, val = order[:NUM_TRAIN], order[NUM_TRAIN:]
    return (pixels[train], classes[train]), (pixels[val], classes[val])


def make_model(task: Task, seed: int) -> nn.Sequential:
    """Two hidden layers of tanh: smooth, so that the Hessian says all there is."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(64, task.hidden),
        nn.Tanh(),
        nn.Linear(task.hidden, task.hidden),
        nn.Tanh(),
        nn.Linear(task.hidden, 10),
    )


def squared_errors(model: nn.Module, batch: Batch) -> Tensor:
    """Of each sample: a Gaussian negative log-likelihood of unit variance, but for its constant."""
    pixels, classes = batch
    return 0.5 * (model(pixels) - classes).square().sum(dim=1)


def validate(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Held-out loss and accuracy, and the loss of each digit."""
    with torch.no_grad():
        losses = squared_errors(model, batch)
        right = model(batch[0]).argmax(dim=1) == batch[1].argmax(dim=1)
        per_digit = (losses @ batch[1]) / batch[1].sum(dim=0)
    found = {"val_loss": losses.mean(), "val_accuracy": right.float().mean()}
    return found | {f"val_loss_digit_{digit}": per_digit[digit] for digit in range(10)}


def train(task: Task, seed: int, out: Path) -> Watch:
    """Plain gradient descent, watched."""
    train_batch, val_batch = load(seed)
    model = make_model(task, seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=task.learning_rate)
    seldom = {"every_n_steps": 4 * task.curvature_every}
    watch = Watch(
        {
            "run_name": f"digits-seed{seed}",
            "every_n_steps": task.curvature_every,
            "observables": {
                "hessian_top": {},
                "hessian_trace": seldom,
                "hessian_rank": seldom,
                "basin_broadness": seldom,
                "gradient_noise_scale": seldom,
            },
            "probe": {"num_samples": NUM_TRAIN},
            "store": str(out / "phasewatch.db"),
        },
        probe=TensorDataset(*train_batch),
        loss_fn=squared_errors,
    )
    with watch:
        watch.check(model)
        for step in range(1, task.steps + 1):
            optimizer.zero_grad()
            loss = squared_errors(model, train_batch).mean()
            loss.backward()
            optimizer.step()
            # "lr" lets the sharpness be shown beside 2/lr.
            seen: dict[str, Any] = {"train_loss": loss.detach(), "lr": task.learning_rate}
            if step % task.validate_every == 0:
                seen |= validate(model, val_batch)
            watch.observe(step, seen)
            if watch.due(step):
                watch.probe(step, model)
    return watch


def facts(watch: Watch, task: Task) -> dict[str, Any]:
    """The edge of stability in numbers."""
    edge = 2.0 / task.learning_rate
    steps, sharpness, _ = watch.history("hessian_top", include_unconverged=True)
    reached = first_crossing(watch, "hessian_top", edge)
    _, losses, _ = watch.history("train_loss")
    summary: dict[str, Any] = {
        "2/lr": edge,
        "sharpness at the start": round(float(sharpness[0]), 2),
        "step at which the sharpness reaches 2/lr": reached,
        "last validation accuracy": round(float(watch.history("val_accuracy")[1][-1]), 4),
        "last training loss": round(float(losses[-1]), 5),
        "last Hessian trace": round(
            float(watch.history("hessian_trace", include_unconverged=True).values[-1]), 1
        ),
        "last Hessian rank": round(
            float(watch.history("hessian_rank", include_unconverged=True)[1][-1]), 1
        ),
    }
    if reached is not None:
        after = sharpness[steps >= reached] / edge
        low, middle, high = np.quantile(after, [0.1, 0.5, 0.9]).round(3).tolist()
        summary["sharpness over 2/lr from then on (10, 50, 90 %)"] = [low, middle, high]
        rises = np.diff(losses) > 0
        summary["share of steps that raise the loss, before and after"] = [
            round(float(part.mean()), 3) for part in (rises[: reached - 1], rises[reached - 1 :])
        ]
    return summary


PANELS = (
    Panel("loss (nats)", {"train_loss": "training", "val_loss": "validation"}, log=True),
    Panel(
        "validation loss of each digit (nats)",
        {f"val_loss_digit_{digit}": str(digit) for digit in range(10)},
        log=True,
    ),
    Panel(
        "curvature (nats/weight²)",
        {
            "hessian_top": "sharpness",
            "hessian_top/2": "second",
            "hessian_top/3": "third",
            "hessian_top/2_over_lr": "2/lr",
        },
    ),
    Panel("Hessian", {"hessian_trace": "trace", "hessian_rank": "rank at 1 %"}, log=True),
    Panel("gradient noise scale (samples)", {"gradient_noise_scale": "of the probe"}, log=True),
)


def main(arguments: list[str] | None = None) -> None:
    """Train, watch, and say what was found."""
    options = read_options(__doc__, "digits", arguments)
    quieten()
    task = FAST if options.fast else Task()
    watch = train(task, options.seed, options.out)
    conclude(watch, options, PANELS, facts(watch, task), "Gradient descent on digits")


if __name__ == "__main__":
    main()
