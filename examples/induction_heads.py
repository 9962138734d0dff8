"""Watch induction heads form in a two-layer attention-only transformer.

    python examples/induction_heads.py

Each sequence is a block of tokens, of a length of its own, that is repeated to the end. Tokens
follow one another by a fixed table of chances, so that there is something to learn at once; to tell
the repeated tokens the model must look for the last place where it saw the current one, and say
what came next there. That takes two heads in a row: one that attends to the token before, and an
induction head that reads what it wrote.

Olsson et al. 2022 (arXiv 2209.11895) saw in-context learning, prefix matching and a bump of the
loss all appear in one narrow window of training. So it is here. Through step 500 the loss falls
ever more slowly, and the best head puts 0.06 of its attention where an induction head would. Then
that becomes 0.78, 0.79 and 0.76 (seeds 0, 1, 2), the loss late in a sequence falls 2.2, 2.1 and 2.0
nats below that early in it, and K-composition rises between the layers. Loss, in-context learning
and prefix matching are half of their way at steps 750, 770 and 770; 770, 790 and 780; 620, 680 and
640. The transition is found at steps 680, 710 and 550. A run takes about 55 s on one CPU core.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from common import Panel, conclude, quieten, read_options
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from phasewatch.callbacks import TransitionMonitor
from phasewatch.monitor import Watch
from phasewatch.monitor.config.monitor import MonitorConfig

EARLY, LATE = 7, 49
"""Predictions, counted from 1, between which the in-context-learning score is taken: no block is
over at the first of them, all are at the second."""

SCORE = f"icl_score_{EARLY}_{LATE}"


@dataclass(frozen=True)
class Task:
    """What is trained, and how closely it is watched."""

    tokens: int = 32
    length: int = 64
    blocks: tuple[int, int] = (8, 32)
    width: int = 32
    heads: int = 2
    batch: int = 32
    steps: int = 1200
    held_out: int = 256
    every: int = 10
    ablate_every: int = 40


FAST = Task(steps=40, batch=8, held_out=16, ablate_every=20)
"""Shows that everything works; no head forms."""


def repeated_blocks(task: Task, number: int, random: torch.Generator) -> Tensor:
    """Token 0, then a block drawn from a table of chances, repeated to the end of the sequence."""
    words = task.tokens - 1
    # The table is the same for all seeds: a Dirichlet distribution of parameter 0.3 in each row.
    rows = np.random.default_rng(0).dirichlet(np.full(words, 0.3), size=words)
    chances = torch.from_numpy(rows)
    shortest, longest = task.blocks
    block = torch.randint(words, (number, longest), generator=random)
    for place in range(1, longest):
        drawn = torch.multinomial(chances[block[:, place - 1]], 1, generator=random)
        block[:, place] = drawn.squeeze(1)
    lengths = torch.randint(shortest, longest + 1, (number, 1), generator=random)
    repeated = block.gather(1, torch.arange(task.length - 1) % lengths) + 1
    return nn.functional.pad(repeated, (1, 0))


class AttentionOnly(pl.LightningModule):
    """Two layers of attention heads between an embedding and an unembedding; no MLP.

    Positions enter queries and keys alone, as in Olsson et al.: a head cannot pass them on, so that
    the second layer finds an earlier place by what was there.
    """

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task
        self.embed = nn.Embedding(task.tokens, task.width)
        self.positions = nn.Embedding(task.length, task.width)
        self.norms = nn.ModuleList(nn.LayerNorm(task.width) for _ in range(2))
        self.layers = nn.ModuleList(
            nn.MultiheadAttention(task.width, task.heads, bias=False, batch_first=True)
            for _ in range(2)
        )
        self.final_norm = nn.LayerNorm(task.width)
        self.unembed = nn.Linear(task.width, task.tokens, bias=False)
        mask = nn.Transformer.generate_square_subsequent_mask(task.length)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of shape (batch, length, tokens)."""
        length = tokens.shape[1]
        mask = self.mask[:length, :length]
        stream = self.embed(tokens)
        for norm, attend in zip(self.norms, self.layers, strict=True):
            x = norm(stream)
            placed = x + self.positions.weight[:length]
            stream = stream + attend(placed, placed, x, attn_mask=mask, need_weights=False)[0]
        logits: Tensor = self.unembed(self.final_norm(stream))
        return logits

    def probe_token_losses(self, batch: list[Tensor]) -> Tensor:
        """Cross-entropy in nats of each token but the first, shape (batch, length − 1)."""
        (tokens,) = batch
        logits = self(tokens)[:, :-1].transpose(1, 2)
        return nn.functional.cross_entropy(logits, tokens[:, 1:], reduction="none")

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        """Mean cross-entropy in nats."""
        loss = self.probe_token_losses(batch).mean()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        """Log the loss on new sequences."""
        self.log("val_loss", self.probe_token_losses(batch).mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01)


def make_data(task: Task, seed: int) -> tuple[list[list[Tensor]], TensorDataset]:
    """Batches that are each seen once, and sequences held out."""
    random = torch.Generator().manual_seed(seed)
    sequences = repeated_blocks(task, task.steps * task.batch, random)
    batches = [[batch] for batch in sequences.split(task.batch)]
    return batches, TensorDataset(repeated_blocks(task, task.held_out, random))


def train(
    task: Task,
    batches: list[list[Tensor]],
    held_out: TensorDataset,
    out: Path,
    callbacks: list[pl.Callback],
) -> None:
    """Train on each batch once."""
    trainer = pl.Trainer(
        max_epochs=1,
        val_check_interval=task.every,
        log_every_n_steps=task.every,
        accelerator="cpu",
        callbacks=callbacks,
        default_root_dir=out,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(
        AttentionOnly(task),
        DataLoader(batches, batch_size=None),
        DataLoader([held_out.tensors], batch_size=None),
    )


def halfway(watch: Watch, stream: str, since: int) -> int | None:
    """First step at which a stream has gone half of its way from step `since` to the end."""
    steps, values, _ = watch.history(stream)
    begin = int(np.searchsorted(steps, since))
    if begin >= len(steps):
        return None
    way = (values[begin:] - values[begin]) / (values[-1] - values[begin])
    return int(steps[begin + int(np.flatnonzero(way >= 0.5)[0])])


def facts(watch: Watch, task: Task) -> dict[str, Any]:
    """When each measure was half of its way up or down from the plateau, and where it ended."""
    found: dict[str, Any] = {}
    for stream in ("val_loss", SCORE, "prefix_matching", "previous_token"):
        _, values, _ = watch.history(stream)
        found[stream] = {
            "first": round(float(values[0]), 2),
            "last": round(float(values[-1]), 2),
            "halfway": halfway(watch, stream, task.steps // 4),
        }
    return found


PANELS = (
    Panel("cross-entropy in nats", {"train_loss": "training", "val_loss": "new sequences"}),
    Panel(f"in-context learning: loss {LATE} − loss {EARLY}, nats", {SCORE: "score"}),
    Panel(
        "attention on random repeated blocks, best head",
        {"prefix_matching": "prefix matching", "previous_token": "previous token"},
    ),
    Panel(
        "composition of heads, beyond random",
        {"composition/k": "K", "composition/q": "Q", "composition/v": "V"},
    ),
    Panel(
        "loss without a head − loss with it, nats",
        {f"head_ablation/L{layer}H{head}": f"L{layer}H{head}" for layer in "01" for head in "01"},
    ),
)


def main(arguments: list[str] | None = None) -> None:
    """Train, watch, and write the report."""
    options = read_options(__doc__, "induction-heads", arguments)
    quieten()
    task = FAST if options.fast else Task()
    pl.seed_everything(options.seed, verbose=False)
    batches, held_out = make_data(task, options.seed)
    often = {"every_n_steps": task.every}
    monitor = TransitionMonitor(
        MonitorConfig(
            run_name=f"induction-heads-seed{options.seed}",
            observables={
                "icl_score": often | {"parameters": {"early": EARLY, "late": LATE}},
                "prefix_matching": often,
                "previous_token": often,
                "composition": often,
                "copying_score": often,
                "weight_norm": often,
                "head_ablation": {"every_n_steps": task.ablate_every},
            },
            overhead=1.0,
            store="phasewatch.db",  # under the Trainer's default_root_dir
        ),
        probe=held_out,
    )
    train(task, batches, held_out, options.out, [monitor])
    title = f"Induction heads in two layers of attention, seed {options.seed}"
    conclude(monitor.watch, options, PANELS, facts(monitor.watch, task), title)


if __name__ == "__main__":
    main()
