"""How heads of one layer read what heads of an earlier one write, read off their weights."""

from __future__ import annotations

from typing import ClassVar

import torch

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.errors import RefusedError
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.meaning import SUPPORTING
from phasewatch.monitor.core.work import Cost, Work
from phasewatch.monitor.observables.attention.by_head import ELHAGE
from phasewatch.monitor.observables.attention.looking import heads_at_weights
from phasewatch.monitor.observables.attention.model import Attention
from phasewatch.monitor.observables.attention.scores import (
    compositions,
)
from phasewatch.monitor.observables.evaluation import listed
from phasewatch.monitor.observables.weights.norms import observed
from phasewatch.monitor.observables.work import MULTIPLIED, reads


class Composition:
    """How much heads read what heads of earlier layers write, beyond the level of random matrices.

    For each pair of heads, the second in a later layer, x → W x, W_QK = W_Qᵀ W_K, W_OV = W_O W_V:
    Q-composition ‖W_QK²ᵀ W_OV¹‖_F / (‖W_QK²‖_F ‖W_OV¹‖_F), K-composition with W_QK² and
    V-composition with W_OV² in its place; less 1/√d_model, which unrelated matrices have. Streams
    "composition/q", "/k" and "/v" are the maxima over the pairs, "composition" the largest of them.
    An induction head K-composes with a previous-token head. Layer norms and rotations by position
    are left out.

    Args:
        attention: Who speaks for the model's attention, where its layers are of no known structure.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from phasewatch.monitor.observables.once import measure_once
        >>> layers = (nn.TransformerEncoderLayer(8, 2, 8, batch_first=True) for _ in range(2))
        >>> model = nn.Sequential(nn.Embedding(16, 8), *layers)
        >>> [o.name for o in measure_once(Composition(), model)]
        ['composition', 'composition/q', 'composition/k', 'composition/v']
    """

    name = "composition"
    unit = "1"
    cost = Cost.WEIGHTS
    needs = "two attention layers of one width"
    source = f'{ELHAGE}, "Two-layer attention-only transformers"'
    streams: ClassVar = {"composition": SUPPORTING}

    def __init__(self, *, attention: Attention | None = None) -> None:
        self._attention = attention

    def check(self, context: MeasureContext) -> None:
        """Look for the layers.

        Raises:
            RefusedError: There are fewer than two, or their widths differ.
        """
        self._compositions(context)

    def work(self, context: MeasureContext) -> Work:
        """For each pair of heads three products of d_head rows with d_model columns."""
        shapes = [heads.w_v.shape for heads in heads_at_weights(context, self._attention)]
        pairs = [(a, b) for index, b in enumerate(shapes) for a in shapes[:index]]
        total = sum(
            6 * MULTIPLIED * first * last * e * (f * d + 2 * e * f)
            for (first, e, d), (last, f, _) in pairs
        )
        return reads(context, total)

    def measure(self, context: MeasureContext) -> list[Observation]:
        """The largest composition, then that of each kind.

        Raises:
            RefusedError: As `check`.
        """
        found = self._compositions(context)
        result = [observed(context, self.name, self.unit, max(found.values()))]
        for kind, value in found.items():
            result.append(observed(context, f"{self.name}/{kind}", self.unit, value))
        return result

    def _compositions(self, context: MeasureContext) -> dict[str, float]:
        layers = heads_at_weights(context, self._attention)
        widths = {int(heads.w_o.shape[1]) for heads in layers}
        if len(layers) < 2 or len(widths) > 1:
            raise RefusedError(
                f"{self.name}: looked for two attention layers of one width; the model has "
                f"{listed(heads.module for heads in layers)}, of width {sorted(widths)}"
            )
        with torch.no_grad():
            pairs = [
                compositions(earlier, later)
                for index, later in enumerate(layers)
                for earlier in layers[:index]
            ]
        random = widths.pop() ** -0.5
        return {
            kind: float(torch.stack([pair[kind].max() for pair in pairs]).max()) - random
            for kind in ("q", "k", "v")
        }
