"""A small training that saves checkpoints, and the factory by which they are measured later."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

SIZE = 64
CONFIG = {
    "every_n_steps": 10,
    "observables": ["llc", "weight_norm"],
    "exporter": {"enabled": False},
    "sampler": {
        "num_chains": 2, "num_draws": 16, "max_draws": 16, "engine": "loop", "warm_start": False,
    },
}  # fmt: skip


def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SIZE, 4, generator=generator)
    return x, (x.sum(1) > 0).long()


def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def factory():
    return net(), [data()], loss, SIZE


def not_a_net():
    return net(), [data()], "loss", SIZE


def train(folder: Path, steps: int, saved, watch=None) -> None:
    """Train, calling `saved(step, model)` every ten steps."""
    model, (batch,), loss_fn, _ = factory()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    folder.mkdir(parents=True, exist_ok=True)
    for step in range(1, steps + 1):
        mean = loss_fn(model, batch).mean()
        optimizer.zero_grad()
        mean.backward()
        optimizer.step()
        if step % 10 == 0:
            saved(step, model)
        if watch is not None and watch.due(step):
            watch.probe(step, model)


JUMPING = {
    **CONFIG,
    "observables": ["weight_norm"],
    "streams": {"weight_norm": {"role": "leading"}},
}
"""Watches what `jump` writes; its transition is at step 290 to 300."""


def jump(step: int) -> dict:
    """Weights at a step of a training whose weights are five times as large from step 300 on."""
    generator = torch.Generator().manual_seed(step)
    scale = 1.0 if step < 300 else 5.0
    return {
        key: scale * value + 0.01 * torch.randn(value.shape, generator=generator)
        for key, value in net().state_dict().items()
    }
