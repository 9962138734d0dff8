"""Cases of λ̂ and its refinements: of parts of the weights, of validation data, of slices."""

from __future__ import annotations

from torch import Tensor, nn

from phasewatch.monitor.config.measuring import SamplerConfig
from phasewatch.monitor.observables.llc.data import LLCSlices
from support.cases.norms import perceptron, points
from support.observable_cases import ObservableCase

SHORT = SamplerConfig(num_chains=2, num_draws=16, max_draws=16, engine="loop")


def per_sample(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of each sample."""
    x, y = batch
    return nn.functional.cross_entropy(model(x), y, reduction="none")


CASES = (
    ObservableCase(
        name="llc",
        module=perceptron,
        dataset=points,
        streams=("llc", "nu_hat", "llc/wbic", "llc/waic"),
        monitor={"loss_fn": per_sample},
    ),
    ObservableCase(
        name="refined_llc",
        module=perceptron,
        dataset=points,
        streams=tuple(f"refined_llc/net.{layer}" for layer in (0, 2, 4)),
    ),
    ObservableCase(
        name="llc_validation",
        module=perceptron,
        dataset=points,
        streams=("llc_validation", "llc_validation/nu_hat"),
        monitor={"loss_fn": per_sample, "val_probe": points(1)},
    ),
    ObservableCase(
        name="llc_slices",
        module=perceptron,
        dataset=points,
        observable=lambda _: LLCSlices(
            {"first": lambda batch: batch[1] == 0, "others": lambda batch: batch[1] > 0}, SHORT
        ),
        streams=("llc_slices/first", "llc_slices/others"),
    ),
)
