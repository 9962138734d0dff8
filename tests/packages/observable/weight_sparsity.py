"""An observable of one's own: one class, one entry point."""

from __future__ import annotations

from phasewatch import MeasureContext, Observation


class WeightSparsity:
    """Share of weights whose size is below `threshold`: #{i : |w_i| < ε} / d, dimensionless."""

    name = "weight_sparsity"
    unit = "1"

    def __init__(self, threshold: float = 1e-3) -> None:
        self.threshold = threshold

    def measure(self, context: MeasureContext) -> Observation:
        small = sum(int((w.abs() < self.threshold).sum()) for w in context.params.values())
        total = sum(w.numel() for w in context.params.values())
        return Observation(
            name=self.name, step=context.step, epoch=context.epoch, value=small / total, unit="1"
        )
