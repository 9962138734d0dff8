"""In-context learning: how much better a sequence model predicts late tokens than early ones.

On a fixed probe each value is exact: from one measurement to the next nothing is drawn anew. What
other sequences would change is told beside it, as the part "<name>/stderr", the standard error of
the mean over the probe's sequences. It is not the value's own `stderr`, which detectors take for
scatter from step to step: they would see next to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.errors import ConfigError, RefusedError
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.meaning import LOSS, Panel, on_both
from phasewatch.monitor.core.work import Cost, Work
from phasewatch.monitor.observables.tokens.losses import (
    LossesFn,
    forwards_of_losses,
    losses_of,
    source_of,
)
from phasewatch.monitor.observables.weights.norms import MAX_GROUPS, observed

LATE, EARLY = 500, 50
"""Positions of Olsson et al., 1-indexed; shorter contexts take their last and the same ratio."""

NUM_POSITIONS = 12
"""Positions whose losses are reported, unless they are named."""


def default_positions(length: int) -> tuple[int, int]:
    """Early and late position for contexts of a length: one to ten, 50 and 500 at most."""
    late = min(LATE, length)
    return max(1, late * EARLY // LATE), late


def log_spaced(length: int, num: int = NUM_POSITIONS) -> list[int]:
    """At most `num` positions from 1 to `length`, evenly spaced in their logarithms."""
    return sorted({round(p) for p in np.geomspace(1, length, num)})


def mean_and_stderr(per_sequence: Tensor) -> tuple[float, float]:
    """Mean over sequences, and its standard error s/√B."""
    error = per_sequence.std(unbiased=True) / math.sqrt(len(per_sequence))
    return float(per_sequence.mean()), float(error)


class _TokenLosses:
    """What the observables of this file share: the losses of all sequences, as one matrix."""

    name: str
    unit = "nats"
    cost = Cost.FORWARD
    needs = "losses per token: a method probe_token_losses(batch), or losses="

    def __init__(self, losses: LossesFn | None, validation: bool, name: str | None) -> None:
        self._losses = losses
        self._validation = validation
        if name is not None:
            self.name = name

    def work(self, context: MeasureContext) -> Work:
        """A forward pass over the data, unless the losses of this turn are known already.

        Raises:
            RefusedError: There are no losses per token.
        """
        function, _ = source_of(context, self.name, self._losses, "token")
        return Work(forwards=forwards_of_losses(context, function, validation=self._validation))

    def _matrix(self, context: MeasureContext) -> Tensor:
        """Losses, shape (sequences, tokens)."""
        found = losses_of(context, self.name, self._losses, validation=self._validation)
        matrix = torch.cat(found)
        if min(matrix.shape) < 2:
            raise RefusedError(
                f"{self.name}: the losses have shape {tuple(matrix.shape)}; it takes at least two "
                "sequences of two tokens. Give a larger probe"
            )
        return matrix

    def _values(
        self, context: MeasureContext, name: str, per_sequence: Tensor
    ) -> list[Observation]:
        """The mean over sequences, and what its standard error over sequences is."""
        value, error = mean_and_stderr(per_sequence)
        return [
            observed(context, name, self.unit, value),
            observed(context, f"{name}/stderr", self.unit, error),
        ]

    def _stream(self) -> str:
        return f"val_{self.name}" if self._validation else self.name


class _BetweenPositions(_TokenLosses):
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


class TokenLoss(_TokenLosses):
    """Mean loss at each of some positions of the context, and over all tokens.

    ℓ(i) = (1/B) Σ_b ℓ_b(i) in nats as "token_loss/<i>", positions counted from 1, and the mean over
    all tokens as "token_loss". The parts carry the standard error of their mean over B sequences.

    Args:
        positions: Positions to report. Default: twelve, evenly spaced in their logarithms.
        losses: `losses(model, batch)` of shape (B, T), in nats. Default: the module's
            `probe_token_losses(batch)`.
        validation: Measure on the validation probe; streams then begin with "val_".
        name: Start of the streams' names.

    Raises:
        ConfigError: A position is below 1, or there are more than `MAX_GROUPS`.

    Source: Olsson et al. 2022, arXiv 2209.11895, "per-token losses".

    Example:
        >>> import torch
        >>> from phasewatch.monitor.observables.once import measure_once
        >>> model, batch = torch.nn.Linear(1, 1), torch.zeros(4, 8)
        >>> falling = lambda model, batch: torch.linspace(2.0, 0.6, 8).expand(4, 8)
        >>> found = measure_once(TokenLoss(losses=falling, positions=[1, 8]), model, [batch])
        >>> [(o.name, round(o.value, 3)) for o in found[2:]]
        [('token_loss/1', 2.0), ('token_loss/8', 0.6)]
    """

    name = "token_loss"
    source = "Olsson et al. 2022, arXiv 2209.11895"
    streams: ClassVar = on_both("token_loss", LOSS)

    def __init__(
        self,
        positions: Sequence[int] | None = None,
        *,
        losses: LossesFn | None = None,
        validation: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(losses, validation, name)
        if positions is not None and not (
            0 < len(positions) <= MAX_GROUPS and all(p >= 1 for p in positions)
        ):
            raise ConfigError(
                f"{self.name}: positions is {positions!r}; give one to {MAX_GROUPS} positions, "
                "counted from 1"
            )
        self._given = positions

    def check(self, context: MeasureContext) -> None:
        """Refuse before the first step what cannot be measured.

        Raises:
            RefusedError: There are no losses per token, or the context is too short.
        """
        self._positions(self._matrix(context))

    def measure(self, context: MeasureContext) -> list[Observation]:
        """The mean over all tokens first, then each position.

        Raises:
            RefusedError: There are no losses per token, or the context is too short.
        """
        matrix, stream = self._matrix(context), self._stream()
        result = self._values(context, stream, matrix.mean(dim=1))
        for position in self._positions(matrix):
            value, stderr = mean_and_stderr(matrix[:, position - 1])
            result.append(observed(context, f"{stream}/{position}", self.unit, value, stderr))
        return result

    def _positions(self, matrix: Tensor) -> Sequence[int]:
        length = matrix.shape[1]
        positions = self._given or log_spaced(length)
        if max(positions) > length:
            raise RefusedError(
                f"{self.name}: looked for a loss at position {max(positions)}; the probe's "
                f"sequences have {length}. Give positions within that"
            )
        return positions
