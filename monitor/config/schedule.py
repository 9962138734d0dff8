"""Cadences: at which optimizer steps something is to be measured."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt


class EveryNSteps(BaseModel):
    """Measure every `n` optimizer steps."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["every"] = "every"
    n: PositiveInt

    def next_after(self, step: int) -> int:
        """First scheduled step after `step`."""
        return (step // self.n + 1) * self.n


class LogSpaced(BaseModel):
    """Measure at steps that are evenly spaced in log(step).

    Attributes:
        per_decade: Measurements per factor of ten in steps.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["log"] = "log"
    per_decade: PositiveFloat = 20.0

    def next_after(self, step: int) -> int:
        """First scheduled step after `step`."""
        if step < 1:
            return 1
        index = math.floor(math.log10(step) * self.per_decade + 1e-9) + 1
        return max(step + 1, math.ceil(10 ** (index / self.per_decade) - 1e-9))


Cadence = Annotated[EveryNSteps | LogSpaced, Field(discriminator="kind")]
"""A cadence as the configuration writes it: `{kind: every, n: 100}`, `{kind: log, per_decade: 20}`.
"""
