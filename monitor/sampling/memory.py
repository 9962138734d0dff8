"""What one measurement can tell the next of the same model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from phasewatch.monitor.sampling.engine_choice import Verdicts
from phasewatch.monitor.sampling.examination import Examination
from phasewatch.monitor.sampling.layout import Layout


@dataclass(slots=True)
class Memory:
    """What one measurement can tell the next of the same model.

    Attributes:
        verdicts: Which engine to use.
        examination: What the loss is.
        sharpest: Unit vector near the sharpest direction, shape (d,).
        sharpness: The sharpness found there.
        displacement: Where the chains ended, relative to the weights of then, shape (chains, d).
        heat: Their mean virial there.
        layout: How these vectors are cut: other parts measured beside this one change it.
        localization: γ that was chosen for the run; it stays what it is.

    Example:
        >>> memory = Memory()  # given to each `measure_llc` of one run
    """

    verdicts: Verdicts = field(default_factory=Verdicts)
    examination: Examination | None = None
    sharpest: Tensor | None = None
    sharpness: float | None = None
    displacement: Tensor | None = None
    heat: float = math.nan
    layout: Layout | None = None
    localization: float | None = None

    @property
    def warm(self) -> bool:
        """Whether chains are kept from which the next measurement goes on."""
        return self.displacement is not None

    def move_to(self, layout: Layout) -> None:
        """Cut the vectors as `layout` is; what it lacks is dropped, what is new is zero."""
        old, self.layout = self.layout, layout
        if old is None or old == layout:
            return
        if self.sharpest is not None:
            self.sharpest = layout.adopt(old.cut(self.sharpest), self.sharpest)
        if self.displacement is not None:
            self.displacement = layout.adopt(old.cut(self.displacement), self.displacement)


EARLIER = 1.0
"""γ of runs that chose none, in versions before it was kept."""


def state_of(memories: Mapping[str, Memory]) -> dict[str, Any]:
    """What a checkpoint keeps of the parts of a model: the last sharpness of each, and γ.

    Neither chains nor the sharpest direction are kept: each is as large as the model, and a
    checkpoint must not grow by that. A resumed run starts them cold.

    Args:
        memories: By part.
    """
    known = (memory.localization for memory in memories.values())
    return {
        "sharpness": {part: memory.sharpness for part, memory in memories.items()},
        "localization": next((value for value in known if value is not None), None),
    }


def take_up(memories: Mapping[str, Memory], state: Mapping[str, Any]) -> None:
    """Take up what `state_of` gave; parts that it does not know start afresh.

    Args:
        memories: By part.
        state: The state; it is not changed.
    """
    kept = state.get("localization", EARLIER)
    for part, memory in memories.items():
        sharpness = state.get("sharpness", {}).get(part)
        memory.sharpness = None if sharpness is None else float(sharpness)
        memory.sharpest = None
        memory.localization = None if kept is None else float(kept)
