"""Transformers: written by hand, fine-tuned with a dict of padded tokens, and a small GPT."""

from __future__ import annotations

import math

import lightning.pytorch as pl
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

WORDS, LENGTH, WIDTH = 29, 12, 16


def tokens(rows=96, seed=0):
    """Sequences in which each word follows from the one before, mostly."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(0, WORDS, (rows, 1), generator=generator)
    steps = torch.arange(LENGTH) * 3
    noise = (torch.rand(rows, LENGTH, generator=generator) < 0.1).long()
    return (first + steps + noise) % WORDS


def loaders(dataset, val, **more):
    return {
        "train_dataloaders": DataLoader(dataset, batch_size=16, shuffle=True, **more),
        "val_dataloaders": DataLoader(val, batch_size=16, **more),
    }


class Attention(nn.Module):
    """Softmax attention spelled out, with one projection for queries, keys and values."""

    def __init__(self, heads=2, *, causal=True):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x, keep=None):
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        if self.causal:
            mask = torch.ones(length, length, dtype=torch.bool).triu(1)
            scores = scores.masked_fill(mask, -torch.inf)
        if keep is not None:
            scores = scores.masked_fill(~keep[:, None, None], -torch.inf)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, WIDTH))


class Block(nn.Module):
    def __init__(self, *, causal=True, dropout=0.1):
        super().__init__()
        self.attention = Attention(causal=causal)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, keep=None):
        x = x + self.dropout(self.attention(self.norms[0](x), keep))
        return x + self.dropout(self.mlp(self.norms[1](x)))


class HandWritten(pl.LightningModule):
    """An encoder with sinusoidal positions, learning-rate warm-up, and the inverse square root."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        angles = torch.arange(LENGTH)[:, None] / 10_000 ** (torch.arange(0, WIDTH, 2) / WIDTH)
        self.register_buffer("positions", torch.cat([angles.sin(), angles.cos()], 1))
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, ids):
        x = self.embedding(ids) * math.sqrt(WIDTH) + self.positions[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(x)

    def _loss(self, batch):
        (ids,) = batch
        logits = self(ids[:, :-1]).flatten(0, 1)
        return functional.cross_entropy(logits, ids[:, 1:].flatten(), label_smoothing=0.1)

    def training_step(self, batch, _):
        loss = self._loss(batch)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, _):
        self.log("val_loss", self._loss(batch))

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-2, betas=(0.9, 0.98), eps=1e-9)
        rate = lambda step: min((step + 1) ** -0.5, (step + 1) * 8**-1.5)  # noqa: E731
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def hand_written_data():
    return loaders(TensorDataset(tokens()), TensorDataset(tokens(32, 1)))


class FineTuned(pl.LightningModule):
    """A frozen embedding, blocks and a head for classes; batches are dicts of padded tokens."""

    def __init__(self):
        super().__init__()
        self.embeddings = nn.Embedding(WORDS, WIDTH, padding_idx=0).requires_grad_(False)
        self.encoder = nn.ModuleList(Block(causal=False) for _ in range(2))
        self.classifier = nn.Sequential(nn.Dropout(0.1), nn.Linear(WIDTH, 3))

    def forward(self, input_ids, attention_mask, labels=None):
        x, keep = self.embeddings(input_ids), attention_mask.bool()
        for block in self.encoder:
            x = block(x, keep)
        logits = self.classifier(x[:, 0])
        return functional.cross_entropy(logits, labels), logits

    def training_step(self, batch, _):
        loss, logits = self(**batch)
        self.log_dict(
            {"loss": loss, "accuracy": (logits.argmax(1) == batch["labels"]).float().mean()}
        )
        return loss

    def validation_step(self, batch, _):
        self.log("val_loss", self(**batch)[0])

    def configure_optimizers(self):
        trained = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.AdamW(trained, lr=2e-3)


def padded(rows):
    """Rows of different lengths, padded to the longest of them."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.stack([functional.pad(ids, (0, width - len(ids))) for ids, _ in rows])
    labels = torch.tensor([label for _, label in rows])
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": labels}


def sentences(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, LENGTH, (rows,), generator=generator).tolist()
    kept = [1 + row[:n] % (WORDS - 1) for row, n in zip(tokens(rows, seed), lengths, strict=True)]
    return [(ids, int(ids[0]) % 3) for ids in kept]


def fine_tuned_data():
    return loaders(sentences(96, 0), sentences(32, 1), collate_fn=padded)


class Gpt(pl.LightningModule):
    """Weight decay for matrices alone, tied weights, gradient clipping, a cosine schedule."""

    def __init__(self):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.h = nn.ModuleList(Block(dropout=0.0) for _ in range(2))
        self.ln_f = nn.LayerNorm(WIDTH)
        self.lm_head = nn.Linear(WIDTH, WORDS, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, ids):
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))

    def training_step(self, batch, _):
        ids, targets = batch[0][:, :-1], batch[0][:, 1:]
        loss = functional.cross_entropy(self(ids).flatten(0, 1), targets.flatten())
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        matrices = [p for p in self.parameters() if p.dim() >= 2]
        others = [p for p in self.parameters() if p.dim() < 2]
        groups = [
            {"params": matrices, "weight_decay": 0.1},
            {"params": others, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95))
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)
        return {
            "optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}
        }  # fmt: skip


def gpt_data():
    return {"train_dataloaders": DataLoader(TensorDataset(tokens()), batch_size=8, shuffle=True)}
