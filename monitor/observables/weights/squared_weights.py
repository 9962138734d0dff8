"""The squared weights of a model: what weight decay acts on."""

from __future__ import annotations

from typing import ClassVar

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.meaning import SUPPORTING
from phasewatch.monitor.core.work import Cost, Work
from phasewatch.monitor.observables.weights.norms import l2_norm, observed


class SquaredWeights:
    """Sum of the squares of all parameters, Σ_i w_i²: trainable and frozen, biases and embeddings.

    Of complex parameters |w|². With weight decay it shrinks slowly while circuits form, and falls
    sharply in the cleanup that makes a network generalise.

    Example:
        >>> import torch
        >>> from phasewatch.monitor.observables.once import measure_once
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.constant_(model.weight, 3.0)
        >>> [(o.name, round(o.value, 3)) for o in measure_once(SquaredWeights(), model)]
        [('squared_weights', 18.0)]
    """

    name = "squared_weights"
    unit = "weight²"
    cost = Cost.WEIGHTS
    reads_live = True
    source = "Nanda et al. 2023, arXiv 2301.05217, §5.2"
    streams: ClassVar = {"squared_weights": SUPPORTING}

    def work(self, _: MeasureContext) -> Work:
        """A norm of all weights."""
        return Work(weight_passes=1.0)

    def measure(self, context: MeasureContext) -> Observation:
        """The sum at w*."""
        frozen = (context.buffers[name] for name in sorted(context.frozen))
        norm = l2_norm((*context.params.values(), *frozen))
        return observed(context, self.name, self.unit, float(norm) ** 2)
