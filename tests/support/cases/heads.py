"""Cases of the measures of attention heads, on a small causal language model."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from support.observable_cases import ObservableCase

LENGTH = 24
WIDTHS, TOKENS, COUNTS = (8, 96, 288), (16, 256, 512), (2, 4, 8)


class LanguageModel(pl.LightningModule):
    """Two encoder layers under a causal mask, trained to tell the next token."""

    def __init__(self, size: int = 0) -> None:
        super().__init__()
        width = WIDTHS[size]
        self.tokens = nn.Embedding(TOKENS[size], width)
        self.positions = nn.Embedding(LENGTH, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, COUNTS[size], width, dropout=0.1, batch_first=True)
            for _ in range(2)
        )
        self.unembed = nn.Linear(width, TOKENS[size])

    def forward(self, tokens):
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=tokens.device)
        x = self.tokens(tokens) + self.positions.weight[:length]
        for layer in self.layers:
            x = layer(x, src_mask=mask, is_causal=True)
        return self.unembed(x)

    def training_step(self, batch, _):
        (tokens,) = batch
        logits = self(tokens)[:, :-1]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def sequences(size: int) -> Dataset:
    """Random tokens."""
    generator = torch.Generator().manual_seed(size)
    return TensorDataset(torch.randint(TOKENS[size], (40, LENGTH), generator=generator))


CASES = tuple(
    ObservableCase(
        name=name, module=LanguageModel, dataset=sequences, streams=(name, f"{name}/{part}")
    )
    for name, part in (
        ("prefix_matching", "L1H1"),
        ("previous_token", "L0H0"),
        ("copying_score", "L0H1"),
        ("composition", "k"),
        ("head_ablation", "L1H0"),
    )
)
