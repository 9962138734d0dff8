"""See the three phases of grokking: memorisation, circuit formation, cleanup.

    python examples/grokking_phases.py --seed 0

Nanda et al. 2023 (arXiv 2301.05217) trained a one-layer transformer on a + b mod 113 and took it
apart: it adds by trigonometric identities at five key frequencies. Measured by what the logits owe
to these, training has three phases: it memorises (train and excluded loss fall), circuits form
while the test loss is still flat (excluded loss rises, restricted loss falls), and a cleanup (test
loss and sum of squared weights drop, the Gini coefficients rise) makes the generalisation visible.

Here a network with one hidden layer of squares learns a + b mod 53 from 35 % of the pairs. Seeds
0, 1 and 2 show the same phases, recognised as they come (steps of onset, of detection in brackets):

    memorisation       69 (96)    69 (96)    69 (96)
    circuit formation 520 (680)  460 (560)  500 (620)   validation loss still at its peak
    cleanup           850 (1120) 840 (980)  750 (1080)  it is below 0.1 at 1530, 1500, 1540

The excluded loss falls to 0.21, 0.14, 0.04 nats and rises to 5.9, 6.2, 3.2; the restricted loss is
below 0.1 at step 920, 1140, 1320, before the validation loss is. As in the paper, weights and Gini
coefficients change most in the cleanup. Different is that memorising takes 40 % off the squared
weights first; and that the phases overlap: the validation loss begins to fall while circuits still
form.

The key frequencies are those of the logits. From step 600 on all of them are among those that W_L
has in the end (6 of 6, 2 of 4, 2 of 6), while W_L itself still calls all 26 key until step 1100.

It takes some 20 s on one CPU core.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from common import Panel, conclude, first_crossing, quieten, read_options, standing
from torch import Tensor, nn

from phasewatch.monitor import Watch
from phasewatch.monitor.core.transitions import TransitionKind

PANELS = (
    Panel("loss in nats", {"train_loss": "train", "val_loss": "validation"}, log=True),
    Panel(
        "progress measures in nats",
        {"restricted_loss": "restricted loss", "excluded_loss": "excluded loss"},
        log=True,
    ),
    Panel("Gini coefficient", {"gini_embedding": "embedding", "gini_unembedding": "unembedding"}),
    Panel("sum of squared weights", {"squared_weights": "all parameters"}),
    Panel("number of key frequencies", {"key_frequencies": "of 26"}),
)


@dataclass(frozen=True)
class Task:
    """What is trained, and how closely it is watched."""

    p: int = 53
    share: float = 0.35
    embedding: int = 32
    hidden: int = 64
    steps: int = 1800
    warmup: int = 200
    val_every: int = 10
    measure_every: int = 20


FAST = Task(p=11, embedding=8, hidden=16, steps=60, warmup=10)
"""Tiny: shows that everything works, groks nothing."""


class Adder(nn.Module):
    """Embeds both numbers, and maps them through one hidden layer of squares to the p sums."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.embed = nn.Embedding(task.p, task.embedding)
        self.hidden = nn.Linear(2 * task.embedding, task.hidden)
        self.unembed = nn.Linear(task.hidden, task.p, bias=False)

    def forward(self, pairs: Tensor) -> Tensor:
        """Logits of shape (batch, p) for pairs of shape (batch, 2)."""
        logits: Tensor = self.unembed(self.hidden(self.embed(pairs).flatten(start_dim=-2)).square())
        return logits


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of each pair in nats; in float64, for late in training it is tiny."""
    pairs, labels = batch
    return nn.functional.cross_entropy(model(pairs).double(), labels, reduction="none")


def make_data(task: Task, seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """All pairs (a, b) with the label a + b mod p: some to train on, the rest to validate."""
    pairs = torch.cartesian_prod(torch.arange(task.p), torch.arange(task.p))
    pairs = pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))]
    labels = pairs.sum(dim=1) % task.p
    cut = int(task.share * len(pairs))
    return (pairs[:cut], labels[:cut]), (pairs[cut:], labels[cut:])


def train(
    watch: Watch, task: Task, train_batch: tuple[Tensor, Tensor], val_batch: tuple[Tensor, Tensor]
) -> None:
    """Full batches with AdamW; its weight decay is what makes the network grok."""
    model = Adder(task)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=1.0, betas=(0.9, 0.98))
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / task.warmup, total_iters=task.warmup)
    for step in range(1, task.steps + 1):
        loss = loss_fn(model, train_batch).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        warmup.step()
        seen = {"train_loss": loss.detach()}
        if step % task.val_every == 0:
            with torch.no_grad():
                seen["val_loss"] = loss_fn(model, val_batch).mean()
        watch.observe(step, seen)
        if watch.due(step):
            watch.probe(step, model)


def main(arguments: list[str] | None = None) -> None:
    """Train, watched."""
    options = read_options(__doc__, "grokking-phases", arguments)
    quieten()
    task = FAST if options.fast else Task()
    torch.manual_seed(options.seed)
    train_batch, val_batch = make_data(task, options.seed)
    settings = {
        "run_name": f"grokking-phases-seed{options.seed}",
        "observables": {"grokking": {}, "squared_weights": {}},
        "every_n_steps": task.measure_every,
        "store": str(options.out / "phasewatch.db"),
    }
    watch = Watch(settings, probe=[train_batch], loss_fn=loss_fn)
    watch.start(expected_steps=task.steps)
    with watch:
        train(watch, task, train_batch, val_batch)
    conclude(watch, options, PANELS, facts(watch, task), f"Grokking a + b mod {task.p}")


def facts(watch: Watch, task: Task) -> dict[str, object]:
    """What the paper looks at, as plain numbers."""
    excluded = dict(zip(*(a.tolist() for a in watch.history("excluded_loss")[:2]), strict=True))
    lowest = min(excluded, key=excluded.__getitem__)
    strengths = {k: watch.history(f"key_frequencies/{k}")[1] for k in range(1, task.p // 2 + 1)}
    onsets = {str(t.kind): t.onset_step for t in reversed(standing(watch.transitions))}
    return {
        **{f"{k} begins": onsets.get(k) for k in (str(kind) for kind in PHASES)},
        "excluded loss is lowest at step": lowest,
        "there it is": round(excluded[lowest], 3),
        "restricted loss is below 0.1 from step": first_crossing(
            watch, "restricted_loss", 0.1, rising=False
        ),
        "validation loss is below 0.1 from step": first_crossing(
            watch, "val_loss", 0.1, rising=False
        ),
        "key frequencies in the end": [k for k, s in strengths.items() if s[-1] > 0.25],
    }


PHASES = (
    TransitionKind.MEMORISATION,
    TransitionKind.CIRCUIT_FORMATION,
    TransitionKind.CLEANUP,
)


if __name__ == "__main__":
    main()
