"""Watch a toy model of superposition go from one polygon to the next.

    python examples/superposition.py

Six features share two hidden dimensions, x̂ = ReLU(Wᵀ W x + b), and one feature is on at a time
(Elhage et al. 2022). Chen et al. (2023, arXiv 2310.06301) found that regular polygons are critical
points of the loss, and that training goes from one to the next, from high loss and low λ to low
loss and high λ. For pentagons and the hexagon λ is known: (3 (k + σ) − 1)/2 for k corners and σ
features left over at positive bias, written k⁺.

We start at a square, with two features left over that are dead, and train by Langevin dynamics,
gradient descent with white noise of temperature T, which samples the posterior of n β = 1/T
samples. Without noise nothing would happen: every polygon here is a local minimum. What is
measured is a copy whose noise was quenched by 200 steps of descent, so that λ̂ is taken at the
critical point itself.

We see the same journey, always downhill in loss. How far it goes in 12,000 steps is chance:

    seed 0   4 → 5 → 5⁺             2 transitions, both acquisitions
    seed 1   4 → 4⁺ → 5 → 5⁺ → 6    3 transitions, all acquisitions
    seed 2   4                      none: the dead features never come back

λ̂ on each, averaged over all measurements there (seed 0, seed 1, seed 2), beside the closed form:

    5     7.12 ± 0.15,  6.97 ± 0.29                 7
    5⁺    8.50 ± 0.16,  8.90 ± 0.38                 8.5
    6                   8.49 ± 0.10                 8.5
    4     7.54 ± 0.16,  7.71 ± 0.23,  7.58 ± 0.09   none is known: it sits on a kink of the ReLU

So loss and λ̂ trade places from 5 to 5⁺, as in the paper; 5⁺ and 6 have one and the same λ. From 5
to 5⁺ the loss falls by a tenth only: there it is λ̂ that tells, and only in hindsight.

A run takes about 70 seconds on one CPU core.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from common import Panel, conclude, quieten, read_options
from torch import Tensor, nn

from phasewatch.monitor import Watch
from phasewatch.monitor.observables.toy_models.polygon import polygon_lambda, polygon_name
from phasewatch.monitor.sampling.closed_forms import Superposition

FEATURES = 6
SAMPLES = 1_000_000
"""n of nβ = n / log n: at fewer, pentagon and hexagon run into one another."""


@dataclass(frozen=True)
class Task:
    """How long is trained, and how closely it is watched."""

    steps: int = 12_000
    temperature: float = 1e-3
    lr: float = 0.2
    every: int = 100
    llc_every: int = 300
    quench: int = 200
    draws: int = 384


FAST = Task(steps=60, every=20, llc_every=20, quench=20, draws=32)


def make_data() -> Tensor:
    """One feature at a time is on, uniform on [0, 1]: evenly spaced values, shape (120, 6)."""
    values = (torch.arange(20) + 0.5) / 20
    return torch.kron(torch.eye(FEATURES), values[:, None])


def loss_fn(model: nn.Module, x: Tensor) -> Tensor:
    """Squared error of each sample: negative log-likelihood at noise variance ½, in nats."""
    losses: Tensor = (model(x) - x).square().sum(dim=1)
    return losses


def make_model(random: torch.Generator) -> nn.Module:
    """A square that is a little uneven, and two features that are not represented."""
    angles = torch.arange(4) * (math.pi / 2)
    weight, bias = torch.zeros(2, FEATURES), torch.zeros(FEATURES)
    weight[:, :4] = torch.stack([angles.cos(), angles.sin()])
    weight += 0.05 * torch.randn(weight.shape, generator=random)
    bias[4:] = -0.5
    return Superposition(weight, bias)


def descend(model: nn.Module, x: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
    """One step of gradient descent; gives the loss before it."""
    loss = loss_fn(model, x).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def quench(model: nn.Module, x: Tensor, lr: float, steps: int) -> Tensor:
    """Take the noise out: descend to the critical point nearby; gives the loss there."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True)
    for _ in range(steps):
        descend(model, x, optimizer)
    with torch.no_grad():
        return loss_fn(model, x).mean()


def train(task: Task, options: Any) -> Watch:
    """Train with noise; measure a copy without it."""
    random = torch.Generator().manual_seed(options.seed)
    x, model = make_data(), make_model(random)
    quenched = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=task.lr)
    noise = math.sqrt(2 * task.lr * task.temperature)
    settings = {
        "run_name": f"superposition-seed{options.seed}",
        "every_n_steps": task.every,
        "observables": {
            "polygon": {},
            "feature_dimensionality": {},
            "represented_features": {},
            "llc": {"every_n_steps": task.llc_every},
        },
        # The polygon turns and jumps between measurements: chains cannot go on from one to another.
        "sampler": {"num_draws": task.draws, "max_draws": 0, "warm_start": False},
        "store": str(options.out / "phasewatch.db"),
    }
    with Watch(settings, probe=[x], loss_fn=loss_fn, n_samples=SAMPLES) as watch:
        watch.check(quenched)
        for step in range(1, task.steps + 1):
            descend(model, x, optimizer)
            for parameter in model.parameters():
                parameter.data += noise * torch.randn(parameter.shape, generator=random)
            if watch.due(step):
                quenched.load_state_dict(model.state_dict())
                loss = quench(quenched, x, task.lr, task.quench)
                watch.observe(step, {"quenched_loss": loss})
                watch.probe(step, quenched)
    return watch


def polygons(watch: Watch) -> tuple[dict[int, str], dict[str, float]]:
    """Name of the polygon at each step, where there is one; closed form of each name."""
    steps, corners, _ = watch.history("polygon")
    _, positive, _ = watch.history("polygon/positive")
    seen = [(int(k), int(s)) for k, s in zip(corners, positive, strict=True)]
    names = {step: polygon_name(*one) for step, one in zip(steps.tolist(), seen, strict=True)}
    known = {polygon_name(*one): polygon_lambda(*one) for one in seen}
    return names, {name: value for name, value in known.items() if value is not None}


def stages(watch: Watch) -> dict[str, Any]:
    """The polygons in the order they came, and λ̂ of each beside its closed form."""
    names, known = polygons(watch)
    order = [name for name, _ in groupby(n for n in names.values() if n != "none")]
    facts: dict[str, Any] = {"polygons": " → ".join(order)}
    steps, values, errors = watch.history("llc", include_unconverged=True)
    for name in dict.fromkeys(order):
        there = [i for i, step in enumerate(steps.tolist()) if names[step] == name]
        if there:
            error = float((errors[there] ** 2).sum() ** 0.5) / len(there)
            facts[f"{name}: closed form"] = known.get(name)
            facts[f"{name}: λ̂"] = round(float(values[there].mean()), 2)
            facts[f"{name}: standard error"] = round(error, 2)
            facts[f"{name}: measurements"] = len(there)
    return facts


PANELS = (
    Panel("loss at rest (nats)", {"quenched_loss": "quenched"}),
    Panel("polygon", {"polygon": "corners", "polygon/positive": "left over, positive bias"}),
    Panel("represented features", {"represented_features": "‖W‖²"}),
    Panel("λ̂", {"llc": "λ̂", "polygon/llc": "closed form"}),
)


def main(arguments: list[str] | None = None) -> None:
    """Train, watch, and compare."""
    options = read_options(__doc__, "superposition", arguments)
    quieten()
    watch = train(FAST if options.fast else Task(), options)
    title = "Six features in two dimensions: from one polygon to the next"
    conclude(watch, options, PANELS, stages(watch), title)


if __name__ == "__main__":
    main()
