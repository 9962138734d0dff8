"""Cases of what is made of losses per token, on a small model of sequences."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset

from phasewatch.monitor.observables.tokens.components import ComponentLoss
from support.observable_cases import ObservableCase
from support.zoo_modules import Plain

WIDTHS = (8, 128, 512)
WORDS, LENGTH = 5, 12


class NextToken(Plain):
    """A recurrent language model that tells the loss of each token."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.GRU(width, width, batch_first=True))
        self.embed = nn.Embedding(WORDS, width)
        self.unembed = nn.Linear(width, WORDS)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.unembed(self.net(self.embed(tokens))[0])

    def probe_token_losses(self, batch: list[torch.Tensor]) -> torch.Tensor:
        (tokens,) = batch
        logits = self(tokens[:, :-1]).transpose(1, 2)
        return F.cross_entropy(logits, tokens[:, 1:], reduction="none")

    def loss(self, batch: list[torch.Tensor]) -> torch.Tensor:
        return self.probe_token_losses(batch).mean()


def language(size: int) -> NextToken:
    """Predicts each token from those before it."""
    return NextToken(WIDTHS[size])


def sequences(size: int) -> Dataset:
    """Random tokens."""
    generator = torch.Generator().manual_seed(3)
    shape = ((24, 128, 128)[size], LENGTH + 1)
    return TensorDataset(torch.randint(0, WORDS, shape, generator=generator))


CASES = (
    ObservableCase(
        name="icl_score", module=language, dataset=sequences, streams=("icl_score_1_12",)
    ),
    ObservableCase(
        name="dloss_dlog_token",
        module=language,
        dataset=sequences,
        streams=("dloss_dlog_token_1_12",),
    ),
    ObservableCase(
        name="token_loss",
        module=language,
        dataset=sequences,
        streams=("token_loss", "token_loss/1", "token_loss/12"),
    ),
    ObservableCase(
        name="component_loss",
        module=language,
        dataset=sequences,
        observable=lambda _: ComponentLoss(label="place"),
        streams=("loss_place_0", "loss_place_11"),
    ),
    ObservableCase(
        name="essential_dynamics",
        module=language,
        dataset=sequences,
        streams=("essential_dynamics", "essential_dynamics/score_1", "essential_dynamics/share_3"),
    ),
)
