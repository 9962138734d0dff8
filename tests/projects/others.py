"""Contrast with a queue, graphs, games, masks, time series, and a command line."""

from __future__ import annotations

import copy
import random
from collections import deque

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LightningCLI
from projects.generative import SIDE, images
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, TensorDataset


class Contrast(pl.LightningModule):
    """Momentum encoder and a queue of keys in buffers, written in the step."""

    def __init__(self, size=64, width=8):
        super().__init__()
        self.query = nn.Sequential(
            nn.Flatten(), nn.Linear(SIDE * SIDE, 32), nn.ReLU(), nn.Linear(32, width)
        )
        self.key = copy.deepcopy(self.query).requires_grad_(False)
        self.register_buffer("queue", functional.normalize(torch.randn(width, size), dim=0))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.long))

    @torch.no_grad()
    def _keys(self, x):
        for mean, now in zip(self.key.parameters(), self.query.parameters(), strict=True):
            mean.data = mean.data * 0.99 + now.data * 0.01
        return functional.normalize(self.key(x), dim=1)

    @torch.no_grad()
    def _enqueue(self, keys):
        start = int(self.pointer)
        self.queue[:, start : start + len(keys)] = keys.T
        self.pointer[0] = (start + len(keys)) % self.queue.shape[1]

    def training_step(self, batch, _):
        x = batch[0]
        views = [x + 0.1 * torch.randn_like(x) for _ in range(2)]
        q, k = functional.normalize(self.query(views[0]), dim=1), self._keys(views[1])
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ self.queue.clone()], 1) / 0.2
        loss = functional.cross_entropy(logits, torch.zeros(len(x), dtype=torch.long))
        self._enqueue(k)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.query.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)


class Graphs:
    """Several graphs as one, as PyTorch Geometric batches them: an object with `to`."""

    def __init__(self, x, edge_index, batch, y):
        self.x, self.edge_index, self.batch, self.y = x, edge_index, batch, y
        self.num_graphs = len(y)

    def to(self, device, **_):
        return Graphs(*(v.to(device) for v in (self.x, self.edge_index, self.batch, self.y)))

    def pin_memory(self):
        return self


def graph(seed):
    generator = torch.Generator().manual_seed(seed)
    size = int(torch.randint(4, 9, (), generator=generator))
    edges = torch.randint(0, size, (2, 2 * size), generator=generator)
    return torch.randn(size, 5, generator=generator), edges, int(2 * size > 12)


def joined(graphs):
    starts = torch.tensor([0, *(len(x) for x, _, _ in graphs)]).cumsum(0)
    return Graphs(
        torch.cat([x for x, _, _ in graphs]),
        torch.cat([e + start for (_, e, _), start in zip(graphs, starts, strict=False)], 1),
        torch.cat([torch.full((len(x),), i) for i, (x, _, _) in enumerate(graphs)]),
        torch.tensor([y for _, _, y in graphs]),
    )


class Gin(pl.LightningModule):
    """Sums over neighbours and over the nodes of a graph."""

    def __init__(self, width=16):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(n, width), nn.BatchNorm1d(width), nn.ReLU()) for n in (5, width)
        )
        self.eps = nn.Parameter(torch.zeros(2))
        self.head = nn.Linear(width, 2)

    def forward(self, data):
        x, (source, target) = data.x, data.edge_index
        for layer, eps in zip(self.layers, self.eps, strict=True):
            x = layer((1 + eps) * x + torch.zeros_like(x).index_add(0, target, x[source]))
        pooled = torch.zeros(data.num_graphs, x.shape[1]).index_add(0, data.batch, x)
        return self.head(pooled)

    def training_step(self, data, _):
        loss = functional.cross_entropy(self(data), data.y)
        self.log("train_loss", loss, batch_size=data.num_graphs)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


def graph_data():
    loader = DataLoader([graph(seed) for seed in range(96)], 16, shuffle=True, collate_fn=joined)
    return {"train_dataloaders": loader}


class Replay(IterableDataset):
    """Draws from what was played so far."""

    def __init__(self, memory, size):
        self.memory, self.size = memory, size

    def __iter__(self):
        yield from random.sample(list(self.memory), self.size)


class Dqn(pl.LightningModule):
    """Plays a walk on a line as it learns; its step plays and reads with `.item()`."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 24), nn.ReLU(), nn.Linear(24, 2))
        self.target = copy.deepcopy(self.net)
        self.memory, self.place, self.reward = deque(maxlen=500), torch.zeros(2), 0.0
        for _ in range(200):
            self.play(1.0)

    @torch.no_grad()
    def play(self, epsilon):
        action = (
            random.randrange(2)
            if random.random() < epsilon
            else self.net(self.place).argmax().item()
        )
        after = torch.tensor([self.place[0] + (0.2 if action else -0.2), 1.0])
        done = abs(after[0].item()) >= 1.0
        reward = float(after[0] >= 1.0)
        self.memory.append((self.place, action, reward, done, after))
        self.place = torch.zeros(2) if done else after
        self.reward += reward

    def training_step(self, batch, _):
        self.play(max(0.1, 1.0 - self.global_step / 20))
        states, actions, rewards, dones, after = batch
        values = self.net(states).gather(1, actions[:, None]).squeeze(1)
        with torch.no_grad():
            best = self.target(after).max(1).values
            best[dones] = 0.0
        loss = functional.mse_loss(values, 0.9 * best + rewards.float())
        if self.global_step % 5 == 0:
            self.target.load_state_dict(self.net.state_dict())
        self.log_dict({"train_loss": loss, "reward": self.reward})
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.net.parameters(), lr=5e-3)

    def train_dataloader(self):
        return DataLoader(Replay(self.memory, 96), batch_size=16)


class Segmentation(pl.LightningModule):
    """A small U-Net on a dict of images and masks, with a loss of overlaps."""

    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.middle = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.head = nn.Conv2d(16, 1, 1)

    def forward(self, image):
        wide = self.down(image)
        return self.head(torch.cat([wide, self.up(self.middle(wide))], 1))

    def _step(self, batch, stage):
        logits, mask = self(batch["image"]), batch["mask"]
        overlap = (logits.sigmoid() * mask).sum((1, 2, 3))
        size = logits.sigmoid().sum((1, 2, 3)) + mask.sum((1, 2, 3))
        loss = (1 - (2 * overlap + 1) / (size + 1)).mean()
        self.log_dict(
            {f"{stage}_loss": loss, f"{stage}_pixels": ((logits > 0) == mask).float().mean()}
        )
        return loss

    def training_step(self, batch, _):
        return self._step(batch, "train")

    def validation_step(self, batch, _):
        self._step(batch, "val")

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=3e-3)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)
        return {"optimizer": optimizer, "lr_scheduler": scheduler, "monitor": "val_loss"}


def masks():
    x = images()
    rows = [
        {"image": one, "mask": (one > 0.5).float(), "name": f"{i}.png"} for i, one in enumerate(x)
    ]
    return {
        "train_dataloaders": DataLoader(rows, batch_size=16, shuffle=True),
        "val_dataloaders": DataLoader(rows[:32], batch_size=16),
    }


class Forecast(pl.LightningModule):
    """A recurrent net over windows of different lengths, packed; quantiles of what comes next."""

    def __init__(self):
        super().__init__()
        self.net = nn.LSTM(1, 12, batch_first=True)
        self.head = nn.Linear(12, 3)

    def training_step(self, batch, _):
        x, lengths, y = batch
        packed = nn.utils.rnn.pack_padded_sequence(
            x, lengths, batch_first=True, enforce_sorted=False
        )
        _, (hidden, _) = self.net(packed)
        error = y[:, None] - self.head(hidden[-1])
        levels = torch.tensor([0.1, 0.5, 0.9])
        loss = torch.maximum(levels * error, (levels - 1) * error).mean()
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.RMSprop(self.parameters(), lr=3e-3)


def ragged(rows):
    lengths = torch.tensor([len(x) for x, _ in rows])
    x = nn.utils.rnn.pad_sequence([x for x, _ in rows], batch_first=True)
    return x[..., None], lengths, torch.stack([y for _, y in rows])


def windows():
    wave = torch.sin(torch.arange(400) / 5.0)
    rows = [(wave[i : i + 5 + i % 7], wave[i + 5 + i % 7]) for i in range(96)]
    return {"train_dataloaders": DataLoader(rows, batch_size=16, shuffle=True, collate_fn=ragged)}


class Spirals(pl.LightningDataModule):
    """Made in `setup`, as a command line asks for it."""

    def __init__(self, batch_size: int = 16) -> None:
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage):
        t = torch.linspace(0.0, 6.0, 96)
        x = torch.stack([t * t.cos(), t * t.sin()], 1)
        y = torch.arange(96) % 2
        self.rows = TensorDataset(x * (1 - 2 * y[:, None]), y)

    def train_dataloader(self):
        return DataLoader(self.rows, batch_size=self.hparams.batch_size, shuffle=True)


class Configured(pl.LightningModule):
    """Its optimizer and schedule come from the command line."""

    def __init__(self, hidden: int = 16) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(2, hidden), nn.Tanh(), nn.Linear(hidden, 2))

    def training_step(self, batch, _):
        loss = functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss


def by_command_line():
    """The module as LightningCLI makes it, with its optimizer; the fit is the test's."""
    cli = LightningCLI(
        Configured, Spirals, run=False, save_config_callback=None, seed_everything_default=False,
        trainer_defaults={"logger": False, "enable_checkpointing": False},
        args=["--model.hidden=12", "--optimizer=Adam", "--optimizer.lr=0.01",
              "--lr_scheduler=ExponentialLR", "--lr_scheduler.gamma=0.9"],
    )  # fmt: skip
    return cli.model


def spirals():
    return {"datamodule": Spirals()}
