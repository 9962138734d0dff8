"""The loss at single positions of a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.errors import ConfigError, RefusedError
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.meaning import LOSS, on_both
from phasewatch.monitor.observables.tokens.losses import (
    LossesFn,
)
from phasewatch.monitor.observables.tokens.positions import (
    TokenLossObservable,
    log_spaced,
    mean_and_stderr,
)
from phasewatch.monitor.observables.weights.norms import MAX_GROUPS, observed


class TokenLoss(TokenLossObservable):
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
