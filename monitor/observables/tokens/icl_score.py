"""In-context learning: how much better a sequence model predicts late tokens than early ones."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar

from torch import Tensor

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.errors import ConfigError, RefusedError
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.meaning import LOSS, Panel, on_both
from phasewatch.monitor.observables.tokens.losses import (
    LossesFn,
)
from phasewatch.monitor.observables.tokens.positions import (
    EARLY,
    LATE,
    TokenLossObservable,
    default_positions,
)


class _BetweenPositions(TokenLossObservable):
    """A difference of losses between two positions of the context.

    Args:
        early: Early position, 1-indexed. Default: a tenth of the late one.
        late: Late position. Default: 500, or the last one of shorter contexts.
        losses: `losses(model, batch)` of shape (B, T), in nats. Default: the module's
            `probe_token_losses(batch)`.
        validation: Measure on the validation probe; streams then begin with "val_".
        name: Start of the stream's name.

    Raises:
        ConfigError: Not 1 ≤ early < late.
    """

    _per_fold = False

    def __init__(
        self,
        early: int | None = None,
        late: int | None = None,
        *,
        losses: LossesFn | None = None,
        validation: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(losses, validation, name)
        if (early is not None and early < 1) or (early or 1) >= (late or math.inf):
            raise ConfigError(
                f"{self.name}: early is {early} and late is {late}; they are positions, counted "
                "from 1, and early must come first"
            )
        self._early, self._late = early, late

    def check(self, context: MeasureContext) -> None:
        """Refuse before the first step what cannot be measured.

        Raises:
            RefusedError: There are no losses per token, or the context is too short.
        """
        self._positions(self._matrix(context))

    def measure(self, context: MeasureContext) -> list[Observation]:
        """The value first, then the standard error of its mean over sequences.

        Raises:
            RefusedError: There are no losses per token, or the context is too short.
        """
        matrix = self._matrix(context)
        early, late = self._positions(matrix)
        span = matrix[:, late - 1] - matrix[:, early - 1]
        folds = math.log(late / early) if self._per_fold else 1.0
        usual = (early, late) == (EARLY, LATE)
        name = self._stream() if usual else f"{self._stream()}_{early}_{late}"
        return self._values(context, name, span / folds)

    def _positions(self, matrix: Tensor) -> tuple[int, int]:
        length = matrix.shape[1]
        late = self._late or default_positions(length)[1]
        early = self._early or default_positions(late)[0]
        if not early < late <= length:
            raise RefusedError(
                f"{self.name}: looked for losses at positions {early} and {late}; the probe's "
                f"sequences have {length}. Give early and late within that"
            )
        return early, late


class IclScore(_BetweenPositions):
    """In-context learning score: loss at a late position less loss at an early one.

    ICL = (1/B) Σ_b [ℓ_b(late) − ℓ_b(early)], positions counted from 1, in nats; the more negative,
    the more the model makes of its context. The stream is "icl_score" at the paper's positions 50
    and 500, and "icl_score_<early>_<late>" at others.

    Source: Olsson et al. 2022, arXiv 2209.11895, "In-context learning score".

    Example:
        >>> import torch
        >>> from phasewatch.monitor.observables.once import measure_once
        >>> model, batch = torch.nn.Linear(1, 1), torch.zeros(4, 8)
        >>> falling = lambda model, batch: torch.linspace(2.0, 0.6, 8).expand(4, 8)
        >>> found = measure_once(IclScore(losses=falling, late=8, early=1), model, [batch])
        >>> [(o.name, round(o.value, 3)) for o in found]
        [('icl_score_1_8', -1.4), ('icl_score_1_8/stderr', 0.0)]
    """

    name = "icl_score"
    source = "Olsson et al. 2022, arXiv 2209.11895"
    streams: ClassVar = on_both("icl_score*", replace(LOSS, panel=Panel.OWN, detector="scalar"))


class DlossDlogToken(_BetweenPositions):
    """Mean slope of the loss over the logarithm of the token's position, nats per e-fold.

    (ℓ(late) − ℓ(early)) / (ln late − ln early), with ℓ(i) the mean loss at position i, counted from
    1. The stream is "dloss_dlog_token" at
    positions 50 and 500, and "dloss_dlog_token_<early>_<late>" at others.

    Source: Olsson et al. 2022, arXiv 2209.11895, "loss derivative with respect to log token index".

    Example:
        >>> import torch
        >>> from phasewatch.monitor.observables.once import measure_once
        >>> model, batch = torch.nn.Linear(1, 1), torch.zeros(4, 8)
        >>> falling = lambda model, batch: torch.linspace(2.0, 0.6, 8).expand(4, 8)
        >>> found = measure_once(DlossDlogToken(losses=falling, late=8, early=1), model, [batch])
        >>> [(o.name, round(o.value, 3)) for o in found]
        [('dloss_dlog_token_1_8', -0.673), ('dloss_dlog_token_1_8/stderr', 0.0)]
    """

    name = "dloss_dlog_token"
    _per_fold = True
    source = "Olsson et al. 2022, arXiv 2209.11895"
    streams: ClassVar = on_both("dloss_dlog_token*", LOSS)
