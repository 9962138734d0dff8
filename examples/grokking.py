"""Watch a small network grok modular addition: it memorises first, and understands much later.

    python examples/grokking.py

The network learns a + b mod p from half of all pairs. Within 200 steps it knows that half by heart,
and is wrong on the rest. Hundreds of steps later weight decay has made it find the rule: validation
accuracy climbs from nothing to one while the training loss hardly moves. This is the transition.
The local learning coefficient (LLC, λ̂) tells the same story from inside: it rises while the network
memorises, and falls as the memorised solution gives way to the simpler one.

It takes about a minute on one CPU core. Look at `report.html` in the output folder afterwards.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from common import quieten
from rich.console import Console
from terminal import Progress, transition_table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from phasewatch.callbacks import TransitionMonitor
from phasewatch.monitor.config.measuring import ProbeConfig, SamplerConfig
from phasewatch.monitor.config.monitor import MonitorConfig
from phasewatch.monitor.reports.png import write_picture
from phasewatch.monitor.reports.run_page import write_report
from phasewatch.monitor.store.store import Store


@dataclass(frozen=True)
class Task:
    """What is trained, and how closely it is watched."""

    p: int = 53
    embedding: int = 32
    hidden: int = 64
    steps: int = 1800
    warmup: int = 200
    val_every: int = 5
    llc_every: int = 40
    llc_chains: int = 3
    llc_draws: int = 40


FAST = Task(p=11, embedding=8, hidden=16, steps=60, warmup=10, llc_every=10, llc_draws=16)
"""Tiny: shows that everything works, groks nothing."""


def modular_addition(p: int, seed: int) -> tuple[TensorDataset, TensorDataset]:
    """All pairs (a, b) with the label a + b mod p: one half to train on, one to validate."""
    pairs = torch.cartesian_prod(torch.arange(p), torch.arange(p))
    labels = pairs.sum(dim=1) % p
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))
    train, val = order.tensor_split(2)
    return TensorDataset(pairs[train], labels[train]), TensorDataset(pairs[val], labels[val])


class ModularAdder(pl.LightningModule):
    """Embeds both numbers, and maps them through one hidden layer to the p possible sums.

    Its activation is the square: products of features are what the trigonometric solution of the
    task is made of (Gromov 2023, arXiv 2301.02679), so it is found quickly.
    """

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task
        self.embed = nn.Embedding(task.p, task.embedding)
        self.hidden = nn.Linear(2 * task.embedding, task.hidden)
        self.unembed = nn.Linear(task.hidden, task.p, bias=False)

    def forward(self, pairs: Tensor) -> Tensor:
        """Logits of shape (batch, p) for pairs of shape (batch, 2)."""
        features = self.hidden(self.embed(pairs).flatten(start_dim=-2)).square()
        logits: Tensor = self.unembed(features)
        return logits

    def _losses(self, batch: tuple[Tensor, Tensor], stage: str) -> Tensor:
        pairs, labels = batch
        # Late in training the loss is so small that float32 would round it to noise.
        logits = self(pairs).double()
        loss = nn.functional.cross_entropy(logits, labels)
        accuracy = (logits.argmax(dim=-1) == labels).double().mean()
        self.log_dict({f"{stage}_loss": loss, f"{stage}_accuracy": accuracy}, batch_size=len(pairs))
        return loss

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """Mean cross-entropy in nats."""
        return self._losses(batch, "train")

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        """Log loss and accuracy on the pairs held out."""
        self._losses(batch, "val")

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW; its weight decay is what makes the network grok."""
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=5e-3, weight_decay=1.0, betas=(0.9, 0.98)
        )
        warmup = torch.optim.lr_scheduler.LinearLR(
            optimizer, start_factor=1 / self.task.warmup, total_iters=self.task.warmup
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": warmup, "interval": "step"},
        }


def monitor_for(
    task: Task, train: TensorDataset, seed: int, progress: Progress
) -> TransitionMonitor:
    """The one thing to add to a Trainer. `TransitionMonitor()` alone would do, too."""
    return TransitionMonitor(
        MonitorConfig(
            run_name=f"grokking-seed{seed}",
            # Training alone takes seconds here, so a share of it would measure too seldom: each
            # observable gets a cadence of its own, and the budget is lifted.
            observables={
                "llc": {"every_n_steps": task.llc_every},
                "gradient_norm": {"every_n_steps": task.val_every},
                "weight_norm": {"every_n_steps": task.val_every},
                "update_ratio": {"every_n_steps": task.val_every},
            },
            overhead=1.0,
            # γ keeps the chains near w*: with a weaker pull they would wander off to where this
            # small network has forgotten everything, and λ̂ would exceed what the data can tell.
            sampler=SamplerConfig(
                localization=170.0,
                num_chains=task.llc_chains,
                num_draws=task.llc_draws,
                max_draws=3 * task.llc_draws,
                seed=seed,
            ),
            probe=ProbeConfig(num_samples=len(train)),
            store="phasewatch.db",  # under the Trainer's default_root_dir
        ),
        # The loader below repeats one full batch; the probe is each pair once.
        probe=train,
        sinks=[progress],
    )


def train(task: Task, seed: int, out: Path, progress: Progress) -> TransitionMonitor:
    """Train, watched; returns the monitor."""
    pl.seed_everything(seed, verbose=False)
    train_set, val_set = modular_addition(task.p, seed)
    # One epoch of many full batches, for Lightning does much more between epochs than in them.
    train_loader = DataLoader([train_set.tensors] * task.steps, batch_size=None)
    val_loader = DataLoader([val_set.tensors], batch_size=None)
    monitor = progress.monitor = monitor_for(task, train_set, seed, progress)
    trainer = pl.Trainer(
        max_epochs=1,
        val_check_interval=task.val_every,
        log_every_n_steps=task.val_every,
        accelerator="cpu",
        callbacks=[monitor, progress],
        default_root_dir=out,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(ModularAdder(task), train_loader, val_loader)
    return monitor


def half_accuracy_step(monitor: TransitionMonitor) -> int | None:
    """First step at which the validation accuracy is above one half."""
    steps, values, _ = monitor.history("val_accuracy")
    above = np.flatnonzero(values > 0.5)
    return int(steps[above[0]]) if len(above) else None


def summarise(monitor: TransitionMonitor, task: Task, seed: int, out: Path) -> dict[str, Any]:
    """What happened, as plain numbers."""
    with Store(out / "phasewatch.db", create=False) as store:
        llc = store.observations(monitor.watch.run_id, "llc")
    return {
        "seed": seed,
        "steps": task.steps,
        "half_accuracy_step": half_accuracy_step(monitor),
        "transitions": [
            {
                "kind": str(t.kind),
                "status": str(t.status),
                "onset_step": t.onset_step,
                "detected_step": t.detected_step,
                "end_step": t.end_step,
                "severity": t.severity,
                "evidence": {name: alarm.detected_step for name, alarm in t.evidence.items()},
            }
            for t in monitor.transitions
        ],
        "llc": [[o.step, o.value, o.stderr, str(o.status)] for o in llc],
        "report": str(out / "report.html"),
        "picture": str(out / "transition.png"),
        "store": str(out / "phasewatch.db"),
        "run": monitor.watch.run_name,
    }


def tell(
    console: Console, monitor: TransitionMonitor, progress: Progress, result: dict[str, Any]
) -> None:
    """Say what was found, and where everything is."""
    console.print(transition_table(monitor.transitions))
    half = result["half_accuracy_step"]
    if half is not None:
        console.print(f"Validation accuracy crossed one half at step {half}.")
    good = sum(status == "ok" for *_, status in result["llc"])
    console.print(f"λ̂ was measured {len(result['llc'])} times, {good} of them with status ok.\n")
    console.print(f"report   {result['report']}", soft_wrap=True)
    console.print(f"picture  {result['picture']}", soft_wrap=True)
    console.print(f"store    {result['store']}", soft_wrap=True)
    metrics = progress.metrics_url or "not served"
    console.print(f"metrics  {metrics}  (while it trained)", soft_wrap=True)
    more = f"phasewatch show {result['run']} --store {result['store']}"
    console.print(f"\nMore of it: {more}", soft_wrap=True)


def options(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="optimizer steps (default: 1800)")
    parser.add_argument("--out", type=Path, default=Path("phasewatch-demo"), help="output folder")
    parser.add_argument("--fast", action="store_true", help="a few seconds: shows no grokking")
    parser.add_argument("--no-progress", action="store_true", help="no live line")
    parser.add_argument("--json", action="store_true", help="print a summary as JSON, alone")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Train, watch, and write the report."""
    chosen = options(arguments)
    quieten()
    task = FAST if chosen.fast else Task()
    if chosen.steps is not None:
        task = replace(task, steps=chosen.steps)
    out: Path = chosen.out
    out.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=chosen.json)
    progress = Progress(task.steps, console, shown=not (chosen.no_progress or chosen.json))
    monitor = train(task, chosen.seed, out, progress)
    result = summarise(monitor, task, chosen.seed, out)
    with Store(out / "phasewatch.db", create=False) as store:
        write_report(store, monitor.watch.run_id, out / "report.html")
        write_picture(store, monitor.watch.run_id, out / "transition.png")
    if chosen.json:
        print(json.dumps(result))
    else:
        tell(console, monitor, progress, result)


if __name__ == "__main__":
    main()
