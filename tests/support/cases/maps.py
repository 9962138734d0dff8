"""Cases of superposition and of spectra: a toy model, and a deep linear network."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from phasewatch.monitor.sampling.closed_forms import Superposition
from support.observable_cases import ObservableCase
from support.zoo_modules import Plain

FEATURES = (250, 30_000, 300_000)
WIDTHS = (16, 180, 580)


class Squared(Plain):
    """Squared error, in place of the cross-entropy."""

    def loss(self, batch):
        x, y = batch
        return 0.5 * (self(x) - y).square().sum(dim=1).mean()


def toy_model(size: int) -> pl.LightningModule:
    """Features in two hidden dimensions."""
    features = FEATURES[size]
    return Squared(Superposition(0.1 * torch.randn(2, features), torch.zeros(features)))


def sparse(size: int) -> Dataset:
    """One feature at a time is on."""
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(64, FEATURES[size])
    x[torch.arange(64), torch.arange(64)] = torch.rand(64, generator=generator)
    return TensorDataset(x, x)


def deep_linear(size: int) -> pl.LightningModule:
    """Three linear layers."""
    width = WIDTHS[size]
    return Squared(nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(3))))


def mapped(size: int) -> Dataset:
    """Inputs, and their image under a map of rank one."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, WIDTHS[size], generator=generator)
    return TensorDataset(x, x[:, :1].expand_as(x))


CASES = (
    *(
        ObservableCase(
            name=name, module=toy_model, dataset=sparse, streams=(name, f"{name}/{part}")
        )
        for name, part in (
            ("feature_dimensionality", "0"),
            ("represented_features", "count"),
            ("polygon", "negative"),
        )
    ),
    ObservableCase(
        name="singular_values",
        module=deep_linear,
        dataset=mapped,
        streams=("singular_value_1", "singular_value_5"),
    ),
    ObservableCase(
        name="effective_rank",
        module=deep_linear,
        dataset=mapped,
        streams=("effective_rank", "effective_rank_end_to_end", "effective_rank/net.1.weight"),
    ),
)
