"""Cases of λ̂ and its refinements."""

from __future__ import annotations

from phasewatch.monitor.config import SamplerConfig
from phasewatch.monitor.observables.llc import RefinedLLC
from support.cases.norms import perceptron, points
from support.observable_cases import ObservableCase

SHORT = SamplerConfig(num_chains=2, num_draws=16, max_draws=16, engine="loop")

CASES = (
    ObservableCase(name="llc", module=perceptron, dataset=points, streams=("llc",)),
    ObservableCase(
        name="refined_llc",
        module=perceptron,
        dataset=points,
        observable=lambda _: RefinedLLC({"first": ["net.0.*"], "last": ["net.4.*"]}, SHORT),
        streams=("refined_llc/first", "refined_llc/last"),
    ),
)
