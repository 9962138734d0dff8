"""What an observable may look at."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from phasewatch.monitor.core.estimates import Estimate
from phasewatch.monitor.core.together import ALONE, Together
from phasewatch.monitor.core.work import T

if TYPE_CHECKING:
    import torch
    from torch import nn


LossFn = Callable[["nn.Module", Any], "torch.Tensor"]
"""`loss_fn(model, batch)` -> per-sample losses of shape `(B,)`, their mean, or the pair (their sum,
their number), in nats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatches:
    """Gradients of the micro-batches of one optimizer step, as far as they cost nothing to see.

    Attributes:
        first_norm: L2 norm of the gradient that was there after the first; a 0-dim tensor, not yet
            read. Like the step's own, it is in units of the accumulated gradient, which is the sum
            of the micro-batches'.
        num_samples: Samples of each micro-batch seen so far.
        num_replicas: Processes over which the accumulated gradient is averaged, and the first
            micro-batch's is not.
    """

    first_norm: torch.Tensor
    num_samples: tuple[int, ...]
    num_replicas: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """What can only be seen just before an optimizer step.

    Attributes:
        step: The step this record leads to (the count after the optimizer has stepped).
        gradient_norm: L2 norm of the whole gradient before clipping; a 0-dim tensor, not yet read.
        params_before: Copies of the trainable parameters before the step, by name; empty where
            nobody asked for them.
        micro_batches: What the gradient was accumulated from; None where it was not, or nobody
            looked.
    """

    step: int
    gradient_norm: torch.Tensor
    params_before: Mapping[str, torch.Tensor]
    micro_batches: MicroBatches | None = None


class SharedWork:
    """What observables that are measured in one turn have in common, so that it is done once.

    All contexts of a turn hold the same object. It holds what was found until the turn is over.

    Args:
        seed: For random numbers that several observables use.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._found: dict[tuple[Hashable, ...], tuple[Any, tuple[object, ...]]] = {}

    def get(self, what: Hashable, make: Callable[[], T], *about: object) -> T:
        """What was made before of the same, or is made now.

        Args:
            what: What it is.
            make: Makes it; what it raises is not kept.
            about: What it was made of, told apart by identity.
        """
        key = (what, *map(id, about))
        if key not in self._found:
            self._found[key] = (make(), about)  # held, so that no identity is used twice
        found: T = self._found[key][0]
        return found

    def has(self, what: Hashable, *about: object) -> bool:
        """Whether it was made before."""
        return (what, *map(id, about)) in self._found


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureContext:
    """Everything an observable may look at. Nothing in it is alive: training cannot be touched.

    Attributes:
        step: Optimizer steps completed.
        epoch: Epoch, if known.
        copied: Gives the copy of the model; see `model`. It is made when first asked for where
            weights are read as they are.
        params: w*: detached copies of the trainable parameters, by name: in fp32, in fp64 or
            complex where training is. In a `live_context`, which only observables of our own see,
            the live weights themselves, in their own dtype: never write into them.
        buffers: Copies of the buffers, by name. Also frozen parameters, which are never sampled.
        frozen: Which of the buffers are frozen parameters.
        lent: Memory of live weights, by parameter name, in which chains may run if they leave it as
            they found it. Empty unless the caller of `measure_context` lends it.
        loss_fn: `loss_fn(model, batch)`, in nats; None when the run has no probe loss.
        batches: The fixed probe batches, collated once, on the model's device.
        val_batches: Probe batches of validation data, if given.
        n_samples: n, the number of terms the probe loss averages over.
        n_data: Size of the training dataset, if known.
        sample_unit: What one term of the loss is.
        probe_mode: "eval" or "train".
        generator: A generator of our own on the model's device, seeded from (seed, step).
        deadline_seconds: How long the measurement should take at most; inf without a budget. What
            is spread over the training counts its own seconds only.
        pause: Asked between two evaluations of a measurement in steps: whether training is to go
            on before the next one.
        over: Whether a measurement in steps is to end at once, with what it has.
        max_bytes: Memory that a measurement should take at most; None leaves it to the sampler.
        previous: The last estimate of the same observable in this process, if any.
        record: What was seen before the step; None where the training loop did not call
            `Watch.before_step`.
        learning_rate: Of the coming step, the largest of all parameter groups; None if unknown.
        shared: What the observables of a turn have in common; `dataclasses.replace` carries it on.
        together: The processes among which the weights are spread. `params` and `buffers` then hold
            what lies here of each parameter, flat, and each process has the same batches.
    """

    step: int
    epoch: int | None = None
    copied: Callable[[], nn.Module]
    params: Mapping[str, torch.Tensor]
    buffers: Mapping[str, torch.Tensor]
    frozen: frozenset[str] = frozenset()
    lent: Mapping[str, torch.Tensor] = field(default_factory=dict)
    loss_fn: LossFn | None = None
    batches: Sequence[Any] = ()
    val_batches: Sequence[Any] = ()
    n_samples: int = 0
    n_data: int | None = None
    sample_unit: str = "sample"
    probe_mode: str = "eval"
    generator: torch.Generator
    deadline_seconds: float = float("inf")
    pause: Callable[[], bool] = lambda: False
    over: Callable[[], bool] = lambda: False
    max_bytes: int | None = None
    previous: Estimate | None = None
    record: StepRecord | None = None
    learning_rate: float | None = None
    shared: SharedWork = field(default_factory=SharedWork)
    together: Together = ALONE

    @property
    def model(self) -> nn.Module:
        """A copy of the model whose parameters live on the meta device.

        Give it weights with `torch.func.functional_call`. A parameter that was not given fails
        loudly.
        """
        return self.copied()
