"""Cases of the norms and of λ̂ itself, on a multilayer perceptron."""

from __future__ import annotations

import lightning.pytorch as pl
from torch import nn
from torch.utils.data import Dataset

from support.observable_cases import ObservableCase
from support.zoo_data import dataset
from support.zoo_modules import Plain

WIDTHS = (8, 256, 1024)


def perceptron(size: int) -> pl.LightningModule:
    """Four inputs, three classes, two hidden layers."""
    width = WIDTHS[size]
    return Plain(
        nn.Sequential(
            nn.Linear(4, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 3)
        )
    )


def points(size: int) -> Dataset:
    """Three noisy classes in four dimensions."""
    return dataset((40, 256, 256)[size])


CASES = (
    ObservableCase(
        name="gradient_norm", module=perceptron, dataset=points, streams=("gradient_norm",)
    ),
    ObservableCase(
        name="weight_norm",
        module=perceptron,
        dataset=points,
        streams=("weight_norm", "weight_norm/net.0"),
    ),
    ObservableCase(
        name="update_ratio", module=perceptron, dataset=points, streams=("update_ratio",)
    ),
)
