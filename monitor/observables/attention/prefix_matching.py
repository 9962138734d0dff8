"""How much heads attend to what came after the same token before."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from phasewatch.monitor.core.meaning import FORMATION
from phasewatch.monitor.observables.attention.pattern_score import OLSSON, PatternScore
from phasewatch.monitor.observables.attention.scores import (
    prefix_matching_scores,
)


class PrefixMatching(PatternScore):
    """Prefix matching: attention to what followed the current token the last time it was there.

    On [BOS] + a random block of length T, repeated: mean over the queries i of the second block of
    Σ_{j≤i, token_{j−1}=token_i} A[i, j], for each head; in total their maximum. One for a perfect
    induction head; even attention has about 2/(3T), where no token comes again in a block. The row
    of BOS is left out. See `PatternScore` for the arguments.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from phasewatch.monitor.observables.once import measure_once
        >>> _ = torch.manual_seed(0)
        >>> layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
        >>> model = nn.Sequential(nn.Embedding(16, 8), layer, nn.Linear(8, 16))
        >>> tokens = torch.randint(16, (4, 12))
        >>> found = measure_once(PrefixMatching(), model, [tokens])
        >>> [o.name for o in found]
        ['prefix_matching', 'prefix_matching/L0H0', 'prefix_matching/L0H1']
    """

    name = "prefix_matching"
    source = f"{OLSSON}, appendix (head activation evaluators)"
    streams: ClassVar = {"prefix_matching": FORMATION}

    def _scores(self, pattern: Tensor, tokens: Tensor) -> Tensor:
        return prefix_matching_scores(pattern, tokens)
