"""Cases of lottery tickets: any network with matrices; for the spectrum, one over Z/pZ."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from phasewatch.monitor.observables.toy_models.frequency_entropy import FrequencyEntropy
from support.cases.norms import perceptron, points
from support.observable_cases import ObservableCase
from support.zoo_modules import Plain

TOKENS = (7, 97, 211)
HIDDEN = (16, 256, 2048)


def adder(size: int) -> pl.LightningModule:
    """Two numbers modulo p in, p logits out: embed, hidden layer, unembed."""
    p, hidden = TOKENS[size], HIDDEN[size]
    return Plain(
        nn.Sequential(
            nn.Embedding(p, hidden // 4),
            nn.Flatten(),
            nn.Linear(hidden // 2, hidden),
            nn.ReLU(),
            nn.Linear(hidden, p, bias=False),
        )
    )


def pairs(size: int) -> Dataset:
    """All pairs of numbers modulo p, or 10⁴ of them, with their sums."""
    p = TOKENS[size]
    every = torch.cartesian_prod(torch.arange(p), torch.arange(p))[:10_000]
    return TensorDataset(every, every.sum(dim=1) % p)


CASES = (
    ObservableCase(
        name="mask_overlap",
        module=perceptron,
        dataset=points,
        streams=("mask_overlap", "mask_overlap/reference", "mask_overlap/chance"),
    ),
    ObservableCase(
        name="kept_weights",
        module=perceptron,
        dataset=points,
        streams=("kept_weights", "kept_weights/l1_pruned", "kept_weights/sparsity"),
    ),
    ObservableCase(
        name="frequency_entropy",
        module=adder,
        dataset=pairs,
        observable=lambda _: FrequencyEntropy("net.0.weight", "net.2.weight", "net.4.weight"),
        streams=("frequency_entropy", "frequency_entropy/in", "frequency_entropy/out"),
    ),
)
