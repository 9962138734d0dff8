"""Datasets, loaders and datamodules with the habits of real ones."""

from __future__ import annotations

import random
import threading
from typing import NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    random_split,
)

from support.zoo_modules import Plain


def tensors(num_samples: int = 40, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Three noisy classes in four dimensions."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(3, (num_samples,), generator=generator)
    x = torch.randn(num_samples, 4, generator=generator)
    x[torch.arange(num_samples), y] += 1.0
    return x, y


def dataset(num_samples: int = 40, seed: int = 0) -> TensorDataset:
    return TensorDataset(*tensors(num_samples, seed))


def loader(data: Dataset | None = None, **options) -> DataLoader:
    options = {"batch_size": 8, "shuffle": True} | options
    return DataLoader(data or dataset(), **options)


def val_loader() -> DataLoader:
    return loader(dataset(16, seed=1), shuffle=False)


class Nested(Dataset):
    def __init__(self):
        self.x, self.y = tensors()

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return {"inputs": {"x": self.x[index]}, "label": self.y[index], "text": f"row {index}"}


class RandomTransform(Dataset):
    """Augments with all three global generators."""

    def __init__(self):
        self.x, self.y = tensors()

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        shift = torch.randn(4) + float(np.random.randn()) + random.gauss(0, 1)  # noqa: NPY002
        return self.x[index] + 0.05 * shift, self.y[index]


class Stateful(RandomTransform):
    """Counts its reads, caches them, and draws from generators of its own."""

    def __init__(self):
        super().__init__()
        self.num_reads = 0
        self.cache = {}
        self.noise = torch.Generator().manual_seed(11)
        self.numpy_noise = np.random.default_rng(12)

    def __getitem__(self, index):
        self.num_reads += 1
        self.cache[index] = self.num_reads
        shift = torch.randn(4, generator=self.noise) + self.numpy_noise.normal()
        return self.x[index] + 0.01 * shift + 0.001 * self.num_reads, self.y[index]


class StatefulUncopyable(Stateful):
    """The same behind a lock, as datasets with an open file are: it cannot be copied."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()

    def __getitem__(self, index):
        with self.lock:
            return super().__getitem__(index)


class Stream(IterableDataset):
    """An endless-looking stream that draws as it goes."""

    def __init__(self, num_samples: int = 40):
        self.num_samples = num_samples
        self.num_yielded = 0

    def __iter__(self):
        x, y = tensors(self.num_samples)
        for index in range(self.num_samples):
            self.num_yielded += 1
            yield x[index] + 0.01 * torch.randn(4), y[index]


class TwoLoaders(Plain):
    """Gets a dict of two batches, from two loaders at once."""

    def loss(self, batch):
        return sum(F.cross_entropy(self(x), y) for x, y in batch.values())

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))


class TupleOfLoaders(TwoLoaders):
    def loss(self, batch):
        return sum(F.cross_entropy(self(x), y) for x, y in batch)


class OwnLoaders(Plain):
    """Makes its loaders itself and counts how often it was asked."""

    def __init__(self):
        super().__init__()
        self.num_requests = 0

    def train_dataloader(self):
        self.num_requests += 1
        return loader()

    def val_dataloader(self):
        self.num_requests += 1
        return val_loader()


class RandomTransfer(pl.LightningDataModule):
    """Augments in its transfer hooks, counts them, and splits its data at random in setup."""

    def __init__(self):
        super().__init__()
        self.num_transfers = 0
        self.num_before = 0
        self.num_requests = 0

    def setup(self, stage):
        self.train, self.val = random_split(dataset(56), [40, 16])

    def train_dataloader(self):
        self.num_requests += 1
        return loader(self.train)

    def val_dataloader(self):
        return loader(self.val, shuffle=False)

    def on_before_batch_transfer(self, batch, dataloader_idx):
        self.num_before += 1
        return batch

    def on_after_batch_transfer(self, batch, dataloader_idx):
        self.num_transfers += 1
        return [batch[0] + 0.05 * torch.randn_like(batch[0]), batch[1]]


class TransferInModule(Plain):
    """The same hooks on the module itself."""

    def __init__(self):
        super().__init__()
        self.num_transfers = 0

    def on_after_batch_transfer(self, batch, dataloader_idx):
        self.num_transfers += 1
        return [batch[0] + 0.05 * torch.randn_like(batch[0]), batch[1]]


def global_sampler() -> DataLoader:
    data = dataset()
    return DataLoader(data, batch_size=8, sampler=RandomSampler(data))


def weighted_sampler() -> DataLoader:
    data = dataset()
    sampler = WeightedRandomSampler(torch.ones(len(data)), num_samples=len(data))
    return DataLoader(data, batch_size=8, sampler=sampler, drop_last=True)


def random_collate(samples):
    """Mixes the samples of a batch at random, with two generators."""
    x = torch.stack([sample[0] for sample in samples])
    y = torch.stack([sample[1] for sample in samples])
    order = torch.randperm(len(x))
    return [x + 0.1 * random.random() * x[order], y]


class WholeBatches(RandomTransform):
    """Each item is a batch already."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        rows = slice(8 * index, 8 * index + 8)
        return [self.x[rows], self.y[rows]]


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


class NamedTuples(RandomTransform):
    def __getitem__(self, index):
        return Pair(self.x[index], self.y[index])


def batch_sampler() -> DataLoader:
    data = dataset()
    batches = BatchSampler(RandomSampler(data), batch_size=8, drop_last=False)
    return DataLoader(data, batch_sampler=batches)
