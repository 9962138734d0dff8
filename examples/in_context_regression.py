"""Watch a small transformer learn to learn: linear regression from the examples in its context.

    python examples/in_context_regression.py

Each sequence is a regression problem of its own, x₁, y₁, x₂, y₂, … with yₖ = w·xₖ + noise (Garg et
al. 2022, arXiv 2208.01066). Hoogland et al. 2024 (arXiv 2402.02364) trained a transformer on it for
500,000 steps and saw stages LR1 to LR5 in λ̂ and in the essential dynamics: in LR1 it learns what
can be predicted without the context, in LR2 it acquires in-context learning, and λ̂ rises. In the
later ones the loss hardly changes, while λ̂ falls and the predictions for unusual inputs change.

Here there are 700 steps and two dimensions: the end of LR1, and LR2. Until step 130 to 190 all
examples of a context have about the same loss, and the ICL score is near 0. Then the losses of the
later ones fall, all but that of the first: one transition, an acquisition, which the streams of
single examples find. Seeds 0, 1 and 2:

    onset, detected at step      130, 190         190, 270         160, 200
    ICL score at step 10, 700    0.6, −6.3        −0.3, −5.6       −0.5, −7.0
    that of ridge regression     −8.1             −6.5             −8.4
    λ̂ at step 100, 300, 700      1.8, 26, 23      1.8, 16, 18      2.1, 20, 27
    variance in 3 components     86 %             89 %             87 %
    turning points at steps      200, 270         140, 230 … 370   200, 350 … 410

The sharp turns of the essential dynamics lie around the transition and at its end; in seeds 1 and 2
they are five and four, more than there are stages. The later stages are out of reach of so short a
run. λ̂ is for nβ = 10, hotter than usual, and short chains leave it with a large error. The ICL
score takes long to fall: no detector of its own raises an alarm, and hindsight finds the change in
two of the three.

It takes some 40 seconds of CPU time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from common import Panel, conclude, quieten, read_options
from torch import Tensor, nn

from phasewatch.monitor import Watch
from phasewatch.monitor.observables.tokens.components import ComponentLoss
from phasewatch.monitor.observables.tokens.essential_dynamics import EssentialDynamics
from phasewatch.monitor.observables.tokens.icl_score import IclScore

NOISE = 0.125
"""Variance of the targets' noise."""


@dataclass(frozen=True)
class Task:
    """What is trained, and how closely it is watched."""

    dimensions: int = 2
    examples: int = 8
    width: int = 32
    heads: int = 4
    layers: int = 2
    batch: int = 64
    learning_rate: float = 3e-3
    warmup: int = 400
    steps: int = 700
    probe: int = 256
    every: int = 10
    llc_every: int = 100
    llc_draws: int = 16


FAST = Task(
    width=8, heads=2, layers=1, batch=16, warmup=10, steps=40, probe=32, llc_every=20, llc_draws=8
)
"""Tiny: shows that everything works, learns nothing."""


def sequences(task: Task, num: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs x of shape (num, K, D) and targets y = w·x + noise, shape (num, K); w ~ N(0, 1)."""
    weights = torch.randn(num, task.dimensions, 1, generator=random)
    inputs = torch.randn(num, task.examples, task.dimensions, generator=random)
    noise = torch.randn(num, task.examples, generator=random)
    return inputs, (inputs @ weights)[..., 0] + NOISE**0.5 * noise


class Layer(nn.Module):
    """Causal attention and a hidden layer, each after a layer norm."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        width = task.width
        self.heads = task.heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.hidden = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, residual: Tensor) -> Tensor:
        """From and to shape (batch, tokens, width)."""
        parts = self.query_key_value(self.norms[0](residual)).unflatten(-1, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        residual = residual + self.output(seen.transpose(1, 2).flatten(2))
        changed: Tensor = residual + self.hidden(self.norms[1](residual))
        return changed


class Regressor(nn.Module):
    """Reads x₁, y₁, x₂, y₂, … and predicts each y from all that comes before it."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.embed = nn.Linear(task.dimensions + 1, task.width)
        self.position = nn.Parameter(0.1 * torch.randn(2 * task.examples - 1, task.width))
        self.layers = nn.Sequential(*(Layer(task) for _ in range(task.layers)))
        self.norm = nn.LayerNorm(task.width)
        self.unembed = nn.Linear(task.width, 1)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Predictions, shape (batch, K)."""
        questions = nn.functional.pad(inputs, (0, 1))
        answers = nn.functional.pad(targets[..., None], (inputs.shape[-1], 0))
        tokens = torch.stack([questions, answers], dim=2).flatten(1, 2)[:, :-1]
        residual = self.layers(self.embed(tokens) + self.position)
        predictions: Tensor = self.unembed(self.norm(residual))[:, ::2, 0]
        return predictions

    def probe_token_losses(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Gaussian negative log-likelihood but for a constant, in nats, shape (batch, K)."""
        inputs, targets = batch
        return (self(inputs, targets) - targets).square() / (2 * NOISE)


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The same, from outside: λ̂ counts each prediction as a sample."""
    losses: Tensor = model.probe_token_losses(batch)
    return losses


def best_possible(task: Task, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Losses of the Bayes-optimal predictor, ridge regression on the examples before, in nats."""
    inputs, targets = batch
    losses = []
    for k in range(task.examples):
        x, y = inputs[:, :k].double(), targets[:, :k, None].double()
        precision = x.mT @ x + NOISE * torch.eye(task.dimensions, dtype=torch.float64)
        guess = (inputs[:, k, None].double() @ torch.linalg.solve(precision, x.mT @ y))[:, 0, 0]
        losses.append((guess - targets[:, k]).square() / (2 * NOISE))
    return torch.stack(losses, dim=1)


def main(arguments: list[str] | None = None) -> None:
    """Train, watched."""
    options = read_options(__doc__, "in-context", arguments)
    quieten()
    task = FAST if options.fast else Task()
    torch.manual_seed(options.seed)
    random = torch.Generator().manual_seed(options.seed + 1)
    model = Regressor(task)
    optimizer = torch.optim.Adam(model.parameters(), lr=task.learning_rate)
    warmup = torch.optim.lr_scheduler.LinearLR(
        optimizer, start_factor=1 / task.warmup, total_iters=task.warmup
    )
    probe = sequences(task, task.probe, random)
    path = EssentialDynamics()
    places = [f"example_{k}" for k in range(1, task.examples + 1)]
    settings = {
        "run_name": f"in-context-seed{options.seed}",
        "every_n_steps": task.every,
        "observables": {"llc": {"every_n_steps": task.llc_every}},
        "sampler": {
            "num_chains": 2,
            "num_draws": task.llc_draws,
            "max_draws": task.llc_draws,
            # Far from a minimum, and with few problems to tell them apart, chains at the usual
            # temperature run downhill, and λ̂ is negative. Hotter ones do so less.
            "n_beta": 10.0,
            "localization": 100.0,
            "seed": options.seed,
        },
        "store": str(options.out / "phasewatch.db"),
    }
    watch = Watch(
        settings,
        probe=[probe],
        loss_fn=loss_fn,
        n_samples=task.probe * task.examples,
        observables=[IclScore(), ComponentLoss(places), path, "llc"],
    )
    with watch:
        watch.check(model)
        for step in range(1, task.steps + 1):
            loss = loss_fn(model, sequences(task, task.batch, random)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            warmup.step()
            watch.observe(step, {"train_loss": loss.detach()})
            if watch.due(step):
                watch.probe(step, model)
    best = best_possible(task, probe)
    score = f"icl_score_1_{task.examples}"
    last = {name: watch.history(name)[1][-1] for name in (score, *(f"loss_{p}" for p in places))}
    mean = sum(last[f"loss_{place}"] for place in places) / len(places)
    facts = {
        "loss on the probe, nats a token": round(float(mean), 3),
        "loss of ridge regression there": round(float(best.mean()), 3),
        "ICL score, nats": round(float(last[score]), 3),
        "ICL score of ridge regression": round(float((best[:, -1] - best[:, 0]).mean()), 3),
        "turning points of the essential dynamics": [
            f"step {step} ({angle:.1f} rad)" for step, angle in path.turning_points()
        ],
    }
    parts = (1, 2, 3, 4, 6, 8)
    panels = [
        Panel(
            "loss at each place of the context, nats",
            {f"loss_example_{k}": f"example {k}" for k in parts},
            log=True,
        ),
        Panel("ICL score, nats", {score: "last example less first"}),
        Panel(
            "essential dynamics, nats",
            {f"essential_dynamics/score_{k}": f"component {k}" for k in (1, 2, 3)},
        ),
        Panel("λ̂", {"llc": "learning coefficient"}),
    ]
    conclude(watch, options, panels, facts, "In-context linear regression")


if __name__ == "__main__":
    main()
