"""How much heads attend to the token before."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from phasewatch.monitor.core.meaning import StreamMeaning
from phasewatch.monitor.observables.attention.pattern_score import OLSSON, PatternScore
from phasewatch.monitor.observables.attention.scores import (
    previous_token_scores,
)


class PreviousToken(PatternScore):
    """Attention to the token before, for each head; in total their maximum.

    On [BOS] + a random block of length T, repeated: mean over i ≥ 1 of A[i, i−1]. The row of BOS,
    which can attend to nothing else, is left out. See `PatternScore` for the arguments.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from phasewatch.monitor.observables.once import measure_once
        >>> _ = torch.manual_seed(0)
        >>> layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
        >>> model = nn.Sequential(nn.Embedding(16, 8), layer, nn.Linear(8, 16))
        >>> tokens = torch.randint(16, (4, 12))
        >>> found = measure_once(PreviousToken(), model, [tokens])
        >>> [o.name for o in found]
        ['previous_token', 'previous_token/L0H0', 'previous_token/L0H1']
    """

    name = "previous_token"
    source = f"{OLSSON}, appendix (head activation evaluators)"
    streams: ClassVar = {"previous_token": StreamMeaning()}

    def _scores(self, pattern: Tensor, _: Tensor) -> Tensor:
        return previous_token_scores(pattern)
