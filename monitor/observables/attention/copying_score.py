"""Whether heads make more likely what they attend to, read off their weights."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.errors import RefusedError
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.meaning import SUPPORTING
from phasewatch.monitor.core.work import Cost, Work
from phasewatch.monitor.observables.attention.by_head import ELHAGE, by_head
from phasewatch.monitor.observables.attention.looking import attention_of, heads_at_weights
from phasewatch.monitor.observables.attention.model import WAY_OUT, Attention
from phasewatch.monitor.observables.attention.scores import (
    copying_scores,
)
from phasewatch.monitor.observables.evaluation import at_weights
from phasewatch.monitor.observables.work import DIAGONALISED, MULTIPLIED, reads


class CopyingScore:
    """Σλ / Σ|λ| over the eigenvalues of W_U W_OV W_E, for each head; in total their maximum.

    +1: the head makes more likely what it attends to; −1: less likely. It needs no data. Layer
    norms are left out.

    Args:
        attention: Who speaks for the model's attention, where its layers are of no known structure.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from phasewatch.monitor.observables.once import measure_once
        >>> _ = torch.manual_seed(0)
        >>> layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
        >>> model = nn.Sequential(nn.Embedding(16, 8), layer, nn.Linear(8, 16))
        >>> found = measure_once(CopyingScore(), model)
        >>> [o.name for o in found]
        ['copying_score', 'copying_score/L0H0', 'copying_score/L0H1']
    """

    name = "copying_score"
    unit = "1"
    cost = Cost.WEIGHTS
    needs = "attention layers, an embedding and an unembedding of one vocabulary"
    source = f'{ELHAGE}, "Summarizing OV/QK matrices"'
    streams: ClassVar = {"copying_score": SUPPORTING}

    def __init__(self, *, attention: Attention | None = None) -> None:
        self._attention = attention

    def check(self, context: MeasureContext) -> None:
        """Look for the matrices.

        Raises:
            RefusedError: One is not there, or embedding and unembedding differ in vocabulary.
        """
        self._scores(context)

    def work(self, context: MeasureContext) -> Work:
        """For each head, products with both embeddings, and eigenvalues of d_head rows."""
        attention = attention_of(context, self._attention)
        layers = heads_at_weights(context, self._attention)
        with torch.no_grad():
            entries = at_weights(context, lambda model: attention.unembedding(model).numel())
        width = int(layers[0].w_o.shape[1])
        total = len(layers) * MULTIPLIED * entries * width
        for heads in layers:
            num, rows, columns = heads.w_v.shape
            total += num * (MULTIPLIED * rows * columns**2 + DIAGONALISED * rows**3)
        return reads(context, total)

    def measure(self, context: MeasureContext) -> list[Observation]:
        """The maximum over the heads, then each head.

        Raises:
            RefusedError: As `check`.
        """
        return by_head(context, self.name, self.unit, self._scores(context))

    def _scores(self, context: MeasureContext) -> list[Tensor]:
        attention = attention_of(context, self._attention)
        layers = heads_at_weights(context, self._attention)

        def scores(model: nn.Module) -> list[Tensor]:
            w_e, w_u = attention.embedding(model), attention.unembedding(model)
            if w_e.shape != w_u.T.shape:
                raise RefusedError(
                    f"{self.name}: looked for W_E of shape (d_model, vocabulary) and W_U of shape "
                    f"(vocabulary, d_model); found {tuple(w_e.shape)} and {tuple(w_u.shape)}; "
                    f"{WAY_OUT}"
                )
            return [copying_scores(heads, w_e, w_u) for heads in layers]

        with torch.no_grad():
            found: list[Tensor] = at_weights(context, scores)
        return found
