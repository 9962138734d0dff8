"""Cases of the progress measures of grokking: modular addition."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from support.cases.norms import perceptron, points
from support.observable_cases import ObservableCase
from support.zoo_modules import Plain

MODULI = (11, 53, 113)
WIDTHS = ((8, 16), (64, 256), (256, 1024))


class Adder(nn.Module):
    """Embeds a and b, and maps them through one layer of squares to the sums."""

    def __init__(self, p: int, d: int, hidden: int):
        super().__init__()
        self.embed = nn.Embedding(p, d)
        self.hidden = nn.Linear(2 * d, hidden)
        self.unembed = nn.Linear(hidden, p, bias=False)

    def forward(self, pairs):
        return self.unembed(self.hidden(self.embed(pairs).flatten(start_dim=-2)).square())


def adder(size: int) -> pl.LightningModule:
    return Plain(Adder(MODULI[size], *WIDTHS[size]))


def half_of_all_pairs(size: int) -> Dataset:
    p = MODULI[size]
    pairs = torch.cartesian_prod(torch.arange(p), torch.arange(p))
    pairs = pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))]
    pairs = pairs[: len(pairs) // 2]
    return TensorDataset(pairs, pairs.sum(dim=1) % p)


CASES = (
    ObservableCase(
        name="grokking",
        module=adder,
        dataset=half_of_all_pairs,
        streams=(
            "restricted_loss",
            "excluded_loss",
            "excluded_loss_max",
            "gini_embedding",
            "gini_unembedding",
            "key_frequencies",
        ),
    ),
    ObservableCase(
        name="squared_weights", module=perceptron, dataset=points, streams=("squared_weights",)
    ),
)
