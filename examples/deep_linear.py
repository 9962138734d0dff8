"""Watch a deep linear network learn a matrix, one singular value after the other.

    python examples/deep_linear.py

Saxe et al. (2014, arXiv 1312.6120): a deep linear network that starts near zero learns the singular
values of its target one at a time, the largest first. Each is an S-curve of its own, and the loss
is a staircase. Aoyagi (2024) gives λ of such a network when the map it has learnt has rank r.

On a plateau the weights are at a saddle of the loss, because the rest is still to be learnt: λ̂ of
the loss is far below zero there, and is marked NEGATIVE. What can be compared with the closed form
is λ̂ of the loss on data that the network itself makes at w*, ½ ‖f_w(x) − f_w*(x)‖²: w* is one of
its minima at every step, so it tells how degenerate the function learnt so far is (the behavioural
loss of Bushnaq et al. 2024, arXiv 2405.10927). A singular value counts as there once it is above
what n samples can tell from zero, about 1/√nβ = 0.03.

We see a staircase too. Each singular value is one acquisition, which begins as it comes out of the
noise and before half of it is learnt: at steps 180, 420, 748; 195, 395, 818; 195, 370, 898 (seeds 0
to 2). λ̂ on the plateaus, beside the closed form:

    rank 0   17.49 ± 0.20,  17.52 ± 0.16,  17.65 ± 0.17   18
    rank 1   21.36 ± 0.31,  21.41 ± 0.50,  21.67 ± 0.49   22
    rank 2   25.33 ± 0.38,  25.29 ± 0.25,  25.13 ± 0.22   25.5
    rank 3   29.00 ± 0.23,  28.57 ± 0.33,  28.59 ± 0.36   29

It is up to 3 % low: at n = 10,000, and with the pull back to w*, the most singular points are not
measured in full. λ̂ of the loss at the same steps is far below zero: near -11,000 on the first
plateau, -2,300 on the second and -130 to -470 on the third.

A run takes about 50 seconds on one CPU core.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from common import Panel, conclude, quieten, read_options
from torch import Tensor, nn

from phasewatch.monitor import Watch
from phasewatch.monitor.config.measuring import SamplerConfig
from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.observables.evaluation import at_weights
from phasewatch.monitor.observables.llc.llc import LLC
from phasewatch.monitor.observables.weights.effective_rank import EffectiveRank
from phasewatch.monitor.observables.weights.singular_values import SingularValues
from phasewatch.monitor.sampling.closed_forms import deep_linear_lambda

WIDTHS = (10, 4, 10)
TARGET = (4.0, 2.0, 1.0)
"""Singular values of the matrix to be learnt."""

SAMPLES = 10_000
"""n of nβ = n / log n. White inputs act through their covariance alone: ten inputs √10 e_i stand
for so many."""

HIDDEN = 0.03
"""A singular value below 1/√nβ cannot be told from zero: nβ L changes by less than ½."""


@dataclass(frozen=True)
class Task:
    """How long is trained, and how closely it is watched."""

    steps: int = 1300
    every: int = 5
    llc_every: int = 25
    draws: int = 384


FAST = Task(steps=40, every=10, llc_every=20, draws=32)


class FunctionLLC(LLC):
    """λ̂ of the loss on outputs that the network itself makes at w*."""

    def measure(self, context: MeasureContext) -> Observation:
        """Measure with the network's own outputs for targets."""
        with torch.no_grad():
            own = [(x, at_weights(context, lambda net, x: net(x), x)) for x, _ in context.batches]
        return super().measure(replace(context, batches=own))


def make_data(seed: int) -> tuple[Tensor, Tensor]:
    """White inputs, and their images under a matrix with the singular values `TARGET`."""
    random = torch.Generator().manual_seed(seed)
    left, right = (
        torch.linalg.qr(torch.randn(width, len(TARGET), generator=random)).Q
        for width in (WIDTHS[-1], WIDTHS[0])
    )
    inputs = WIDTHS[0] ** 0.5 * torch.eye(WIDTHS[0])
    return inputs, inputs @ right @ torch.diag(torch.tensor(TARGET)) @ left.T


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Negative log-likelihood of each sample in nats, at unit noise and without its constant."""
    inputs, targets = batch
    losses: Tensor = 0.5 * (model(inputs) - targets).square().sum(dim=1)
    return losses


def make_model(seed: int) -> nn.Module:
    """Two linear layers that begin near zero, where nothing is learnt yet."""
    torch.manual_seed(seed)
    model = nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in pairwise(WIDTHS)))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=1e-4)
    return model


def train(task: Task, options: Any) -> Watch:
    """Train by plain gradient descent, watched."""
    batch = make_data(options.seed)
    model = make_model(options.seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sampler = SamplerConfig(num_draws=task.draws, warm_start=False)
    settings = {
        "run_name": f"deep_linear-seed{options.seed}",
        "every_n_steps": task.every,
        "observables": {
            name: {"every_n_steps": task.llc_every} for name in ("llc", "function_llc")
        },
        "store": str(options.out / "phasewatch.db"),
    }
    measured = [
        SingularValues(top=len(TARGET) + 1, resolution=HIDDEN),
        EffectiveRank(),
        LLC(sampler.model_copy(update={"num_draws": 32, "max_draws": 0})),
        FunctionLLC(sampler, name="function_llc"),
    ]
    watch = Watch(settings, probe=[batch], loss_fn=loss_fn, n_samples=SAMPLES, observables=measured)
    with watch:
        watch.check(model)
        for step in range(1, task.steps + 1):
            loss = loss_fn(model, batch).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            watch.observe(step, {"train_loss": loss.detach()})
            if watch.due(step):
                watch.probe(step, model)
    return watch


def plateaus(watch: Watch) -> dict[str, float]:
    """λ̂ of the function on each plateau, averaged, beside the closed form of its rank."""
    streams = [watch.history(f"singular_value_{i}") for i in range(1, len(TARGET) + 1)]
    learnt = np.array([values for _, values, _ in streams])
    goals = np.array(TARGET)[:, None]
    settled = ((learnt < HIDDEN) | (learnt > 0.95 * goals)).all(axis=0)
    rank = dict(zip(streams[0][0].tolist(), (learnt > HIDDEN).sum(axis=0), strict=True))
    quiet = set(streams[0][0][settled].tolist())
    facts: dict[str, float] = {}
    steps, values, errors = watch.history("function_llc", include_unconverged=True)
    for r in range(len(TARGET) + 1):
        there = [i for i, step in enumerate(steps.tolist()) if step in quiet and rank[step] == r]
        if there:
            facts[f"rank {r}: closed form"] = deep_linear_lambda(WIDTHS, r)[0]
            facts[f"rank {r}: λ̂"] = round(float(values[there].mean()), 2)
            error = float(np.linalg.norm(errors[there])) / len(there)
            facts[f"rank {r}: standard error"] = round(error, 2)
            facts[f"rank {r}: measurements"] = len(there)
    return facts


PANELS = (
    Panel("loss (nats)", {"train_loss": "training"}, log=True),
    Panel("singular values", {f"singular_value_{i}": f"σ{i}" for i in range(1, 5)}),
    Panel("effective rank of the whole map", {"effective_rank_end_to_end": "effective rank"}),
    Panel("λ̂ of the function", {"function_llc": "λ̂"}),
)


def main(arguments: list[str] | None = None) -> None:
    """Train, watch, and compare."""
    options = read_options(__doc__, "deep_linear", arguments)
    quieten()
    watch = train(FAST if options.fast else Task(), options)
    title = "A deep linear network learns one singular value after the other"
    conclude(watch, options, PANELS, plateaus(watch), title)


if __name__ == "__main__":
    main()
