"""What one measurement can tell the next of the same model."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

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
