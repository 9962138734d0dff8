"""Embeddings on a copy: the same function and gradient, without writing into the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional


class Renormed(nn.Embedding):
    """An embedding with `max_norm` that scales rows on the way instead of in place.

    Where a row w is longer than m, it reads w · m / (‖w‖ + 1e-7), as torch's own layer does after
    it has overwritten the row. Overwriting is no function of the weights, and would move w*.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  (torch's own name)
        """Look up rows no longer than `max_norm`."""
        rows = functional.embedding(input, self.weight, self.padding_idx)
        limit: Any = self.max_norm
        size = torch.linalg.vector_norm(rows, self.norm_type, dim=-1, keepdim=True)
        return torch.where(size > limit, rows * (limit / (size + 1e-7)), rows)


def prepare_embedding(copied: nn.Embedding | nn.EmbeddingBag) -> None:
    """Make a copied embedding free of side effects, with a dense gradient."""
    copied.sparse = False  # the same gradient; a sparse one cannot be flattened
    if type(copied) is nn.Embedding and copied.max_norm is not None:
        copied.__class__ = Renormed
