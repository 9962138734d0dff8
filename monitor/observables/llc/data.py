"""Data-refined learning coefficients: of validation data, and of slices of the data.

The coefficient of other data q' at the same weights (Wang et al. 2024, arXiv 2410.02984, §2.1):

    λ̂(w*; q') = nβ (E_w[L_q'(w)] − L_q'(w*)),   w from the local posterior of L_q',

L_q' the mean loss over q'. nβ is that of the probe, n / log n, whatever the size of q': numbers
taken at unlike temperatures cannot be compared. w* is no minimum of L_q' where the model does worse
on q' than it could nearby; a λ̂ below zero says so, with status NEGATIVE.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from phasewatch.monitor.config.measuring import SamplerConfig
from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.errors import ConfigError, RefusedError
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.meaning import StreamMeaning
from phasewatch.monitor.core.work import Cost, Steps, Work, run_through
from phasewatch.monitor.isolation.batches import leading_size, mapped
from phasewatch.monitor.isolation.probe import build_probe
from phasewatch.monitor.observables.evaluation import device_of, to_device
from phasewatch.monitor.observables.llc.llc import LLC
from phasewatch.monitor.observables.llc.parts import Turns
from phasewatch.monitor.observables.llc.values import observed_llc, refusals
from phasewatch.monitor.sampling import Memory
from phasewatch.monitor.sampling.estimators import default_n_beta
from phasewatch.monitor.sampling.measure import check_llc, llc_steps, sampling_work
from phasewatch.monitor.sampling.memory import state_of, take_up

Chooser = Callable[[Any], Tensor]
"""From a probe batch, as the loss takes it, to a boolean mask over its samples, shape (B,)."""


class LLCValidation(LLC):
    """λ̂ of the validation data, as "llc_validation", and what the same chains tell as its parts.

    Parts, where the loss comes for each sample: "llc_validation/nu_hat" and
    "llc_validation/waic"; see `LLC`.

    Args:
        config: How the local posterior is sampled.

    Example:
        >>> LLCValidation().name  # needs val_probe= of the monitor or of `Watch`
        'llc_validation'
    """

    needs = "a probe loss; validation data (val_probe)"
    source = "Wang et al. 2024, arXiv 2410.02984, §2.1"
    streams: ClassVar = {"llc_validation": StreamMeaning(detector="measured")}

    def __init__(self, config: SamplerConfig | None = None) -> None:
        super().__init__(config, name="llc_validation")

    def _posed(self, context: MeasureContext) -> tuple[MeasureContext, SamplerConfig]:
        if not context.val_batches:
            raise RefusedError(
                "there is no validation data; give val_probe= (a dataset, loader or batches)"
            )
        return on_data(context, context.val_batches), at_temperature_of(context, self._config)

    def work(self, context: MeasureContext) -> Work:
        """Gradients of all chains, of the validation data."""
        own, _ = self._posed(context)
        size = _num_samples(own.batches) / max(_num_samples(context.batches), 1)
        one = super().work(context)
        return replace(one, gradients=size * one.gradients)


class LLCSlices:
    """λ̂ of slices of the data, as streams "<name>/<slice>".

    Each slice has chains of its own. Where the budget does not reach for all of them, they are
    measured in turn, those that have waited longest first, and the log names those that were left.

    Args:
        slices: By name: a function of a probe batch, as the loss takes it, that gives a boolean
            mask over its samples; or data of its own, as `probe=` takes it (a dataset, loader or
            batches), that is read once, when the run begins.
        config: How the local posterior is sampled.
        name: Start of the streams' names.

    Raises:
        ConfigError: There are no slices.

    Example:
        >>> LLCSlices({"threes": lambda batch: batch[1] == 3}).name
        'llc_slices'
    """

    unit = "1"
    cost = Cost.SAMPLING
    needs = "a probe loss"
    source = "Wang et al. 2024, arXiv 2410.02984, §2.1"
    streams: ClassVar = {"llc_slices": StreamMeaning(detector="measured")}

    def __init__(
        self,
        slices: Mapping[str, Chooser | Any],
        config: SamplerConfig | None = None,
        *,
        name: str = "llc_slices",
    ) -> None:
        if not isinstance(slices, Mapping) or not slices:
            raise ConfigError(
                f"LLCSlices: slices is {slices!r}; give a mapping from names to functions of a "
                "batch, or to data"
            )
        self.name = name
        self._slices = dict(slices)
        self._config = config or SamplerConfig()
        self._memories = {part: Memory() for part in slices}
        self._data: dict[str, Sequence[Any]] = {}
        self._turns = Turns(name, list(slices))

    def check(self, context: MeasureContext) -> None:
        """Refuse before the first step what cannot be measured.

        Raises:
            RefusedError: A slice is empty, or its loss cannot be sampled; says which.
        """
        config = at_temperature_of(context, self._config)
        with refusals():  # what is wrong with the loss itself is said of the whole probe
            check_llc(context, config)
        for part, memory in self._memories.items():
            own = on_data(context, self._batches(context, part))
            with refusals():
                check_llc(own, config, memory=memory)

    def measure(self, context: MeasureContext) -> list[Observation]:
        """Measure slices at `context.step`, as many as `context.deadline_seconds` reach for.

        Raises:
            RefusedError: They cannot be measured safely.
            MeasurementError: The loss at w* is not finite.
        """
        return run_through(self.measure_in_steps(context))

    def work(self, context: MeasureContext) -> Work:
        """Gradients of all slices' chains, each on its share of the samples."""
        parts = (self._batches(context, part) for part in self._memories)
        sizes = sum(map(_num_samples, parts)) / max(_num_samples(context.batches), 1)
        one = sampling_work(self._config, self._memories.values())
        return replace(one, gradients=sizes * one.gradients)

    def measure_in_steps(self, context: MeasureContext) -> Steps[list[Observation]]:
        """The same in steps."""
        config = at_temperature_of(context, self._config)
        chosen = self._turns.next(context.step, context.deadline_seconds)
        left = context.deadline_seconds
        found: list[Observation] = []
        seconds: dict[str, float] = {}
        for part in chosen:
            own = on_data(context, self._batches(context, part))
            own = replace(own, deadline_seconds=left / (len(chosen) - len(found)))
            estimate = yield from llc_steps(own, config, memory=self._memories[part])
            left = max(left - estimate.duration_seconds, 0.0)
            found.append(observed_llc(context, f"{self.name}/{part}", estimate))
            seconds[part] = estimate.duration_seconds
        self._turns.took(seconds, context.deadline_seconds)
        return found

    def _batches(self, context: MeasureContext, part: str) -> Sequence[Any]:
        given = self._slices[part]
        if callable(given) and not isinstance(given, torch.utils.data.Dataset):
            chosen = [chosen_of(batch, given(batch), part) for batch in context.batches]
            kept = [batch for batch in chosen if leading_size(batch) > 0]
            if not kept:
                raise RefusedError(f"the slice {part!r} is empty: its mask chose no probe sample")
            return kept
        if part not in self._data:
            batches = build_probe(given).batches
            self._data[part] = [to_device(batch, device_of(context)) for batch in batches]
        return self._data[part]

    def state_dict(self) -> dict[str, Any]:
        """The last sharpness of each slice, and γ of the run; see `state_of`."""
        return state_of(self._memories)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state of `state_dict`; slices that it does not know start afresh."""
        take_up(self._memories, state)


def at_temperature_of(context: MeasureContext, config: SamplerConfig) -> SamplerConfig:
    """The same sampler, at the nβ of the probe."""
    if config.n_beta is not None or context.n_samples < 3:
        return config
    return config.model_copy(update={"n_beta": default_n_beta(context.n_samples)})


def on_data(context: MeasureContext, batches: Sequence[Any]) -> MeasureContext:
    """The same model on other data; n grows with the samples, a token loss' too."""
    terms_per_sample = context.n_samples / max(_num_samples(context.batches), 1)
    n_samples = round(terms_per_sample * _num_samples(batches))
    return replace(context, batches=tuple(batches), n_samples=n_samples)


def _num_samples(batches: Iterable[Any]) -> int:
    return sum(map(leading_size, batches))


def chosen_of(batch: Any, mask: Any, part: str) -> Any:
    """The samples of a batch that a mask chooses.

    Args:
        batch: A batch; every tensor has the samples first.
        mask: Boolean, shape (samples,).
        part: Name of the slice, for messages.

    Raises:
        RefusedError: It is no mask over the samples, or the batch cannot be cut.
    """
    size = leading_size(batch)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != (size,):
        got = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else repr(mask)
        raise RefusedError(
            f"the slice {part!r} gave {got}; it must give a boolean tensor of shape ({size},), one "
            "for each sample of the batch"
        )

    def cut(leaf: Any) -> Any:
        has_samples = isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == size
        return leaf[mask] if has_samples else leaf

    chosen = mapped(batch, cut)
    if leading_size(chosen) != int(mask.sum()):
        raise RefusedError(
            f"the slice {part!r}: a batch of type {type(batch).__name__} cannot be cut into "
            "samples; give the slice as data of its own"
        )
    return chosen
