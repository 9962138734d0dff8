"""Losses by position of the token: which positions, and what observables of them share."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.errors import RefusedError
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.work import Cost, Work
from phasewatch.monitor.observables.tokens.losses import (
    LossesFn,
    forwards_of_losses,
    losses_of,
    source_of,
)
from phasewatch.monitor.observables.weights.norms import observed

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


class TokenLossObservable:
    """What observables of losses by position share: the losses of all sequences, as one matrix.

    Args:
        losses: The user's `losses(model, batch)`; None takes the model's own.
        validation: Look at the validation data.
        name: Name of the stream; None takes that of the class.
    """

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
