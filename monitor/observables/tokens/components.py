"""One loss for each component of a task: a digit, a position, a class, a slice of the data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.errors import ConfigError, RefusedError
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.meaning import LOSS, on_both
from phasewatch.monitor.core.work import Cost, Steps, Work, run_through
from phasewatch.monitor.isolation.batches import leading_size
from phasewatch.monitor.observables.evaluation import listed
from phasewatch.monitor.observables.tokens.losses import (
    LossesFn,
    Per,
    batches_of,
    evaluated,
    forwards_of_losses,
    losses_of,
    source_of,
)
from phasewatch.monitor.observables.weights.norms import MAX_GROUPS, OTHER, observed
from phasewatch.monitor.observables.work import of_probe

log = logging.getLogger("phasewatch")

POSITION, CLASS = "position", "class"

TARGETS = ("labels", "label", "targets", "target", "y")
"""Keys under which a batch that is a mapping holds its classes."""

Slices = Callable[[Any], Mapping[str, Tensor] | Tensor]
"""`slices(batch)`: a mask for each slice, by name, or a number for each sample or token."""


_Sums = dict[str | int, tuple[float, int]]
"""Sum of the losses and their number, by component."""

_Part = tuple[str | int, float, int, bool]
"""A component, the sum of its losses, their number, and whether they took an evaluation."""


class ComponentLoss:
    """Mean loss over each component of the task, as a stream of its own with its own detector.

    L_k = Σ_{i ∈ k} ℓ_i / |k| over the probe's samples or tokens i that belong to component k, in
    nats, as "loss_<label>_<k>". What a model learns one piece at a time is one fall a piece here,
    where the mean over all of them bends a little.

    The streams carry no standard error. The probe is fixed, so that L_k is exact for it, and what
    it would be on other data does not scatter from step to step. With one, a stream would go to the
    detector of sparse noisy estimates in place of that of losses, which takes logarithms, allows
    for ordinary decay and sees a change in few points.

    Components beyond the first `MAX_GROUPS` share the stream "loss_<label>_other".

    Args:
        by: What makes a component. "position": column k of losses of shape (B, T), counted from 0.
            A list of names: the same, the columns being called so. "class": the integer targets of
            the batch, which is (inputs, targets) or has a key such as "labels". Any other name or
            number: the integers that the batch holds under that key, of shape (B,) or (B, T). A
            function of the batch: such integers, or boolean masks of the losses' shape, by name.
        losses: `losses(model, batch)` of shape (B, T), or (B,) unless by position. Default: the
            module's `probe_token_losses(batch)`; else the probe loss, for whole samples at least:
            one that is averaged is taken of each component's samples alone.
        label: Middle of the streams' names. Default: the name in `by`, nothing for given names.
        validation: Measure on the validation probe; streams then begin with "val_".
        name: Name of the observable, to have several.

    Raises:
        ConfigError: A name is empty, double or holds a "/".

    Source: Nanda et al. 2023, arXiv 2301.05217, appendix on 5-digit addition.

    Example:
        >>> import torch
        >>> from phasewatch.monitor.observables.once import measure_once
        >>> model, batch = torch.nn.Linear(1, 1), (torch.zeros(4, 1), torch.tensor([0, 0, 1, 1]))
        >>> losses = lambda model, batch: torch.tensor([1.0, 1.0, 2.0, 3.0])
        >>> half = ComponentLoss(losses=losses, by=lambda batch: batch[1])
        >>> [(o.name, o.value) for o in measure_once(half, model, [batch])]
        [('loss_0', 1.0), ('loss_1', 2.5)]
    """

    unit = "nats"
    cost = Cost.FORWARD
    needs = "losses per token or sample, or an averaged loss; `by` for other than positions"
    source = "Nanda et al. 2023, arXiv 2301.05217, appendix"
    streams: ClassVar = on_both("loss_position_*", LOSS)

    def __init__(
        self,
        by: str | int | Sequence[str] | Slices = POSITION,
        *,
        losses: LossesFn | None = None,
        label: str | None = None,
        validation: bool = False,
        name: str = "component_loss",
    ) -> None:
        self.name = name
        self._losses = losses
        self._validation = validation
        self._names = None if isinstance(by, (str, int)) or callable(by) else list(by)
        self._by = POSITION if self._names is not None else by
        if label is None:
            label = str(by) if isinstance(by, (str, int)) else ""
        for part in (*(self._names or ()), label):
            _check_name(name, part)
        if self._names is not None and len({*self._names, ""}) <= len(self._names):
            raise ConfigError(f"{name}: the names {self._names} must differ and not be empty")
        self._label = f"{label}_" if label else ""
        self._told = False
        self._known_slices: tuple[Sequence[Any], list[dict[str | int, Tensor]]] | None = None

    def check(self, context: MeasureContext) -> None:
        """Refuse before the first step what cannot be measured.

        Raises:
            RefusedError: There are no such losses, or the batch does not hold what `by` names.
        """
        self.measure(context)

    def work(self, context: MeasureContext) -> Work:
        """A forward pass over the data, unless the losses of this turn are known already.

        Where the loss is averaged, another over what is in the slices. Before it is known whether
        it is, the probe loss counts as averaged, and losses per token do not.

        Raises:
            RefusedError: There are no such losses.
        """
        per: Per = "token" if self._by == POSITION else "batch"
        function, _ = source_of(context, self.name, self._losses, per)
        forwards = forwards_of_losses(context, function, validation=self._validation)
        if self._by == POSITION or not self._averaged(context, function):
            return Work(forwards=forwards)
        batches = batches_of(context, self.name, validation=self._validation)
        sliced = sum(
            leading_size(batch) * float(mask.double().mean())
            for batch, masks in zip(batches, self._sliced(batches), strict=True)
            for mask in masks.values()
        )
        return Work(forwards=forwards + of_probe(context, sliced))

    def _averaged(self, context: MeasureContext, function: LossesFn) -> bool:
        """Whether the loss of a batch is one number; before it was taken, whether it may be."""
        validation = self._validation
        if forwards_of_losses(context, function, validation=validation):
            return function is context.loss_fn
        given = losses_of(context, self.name, self._losses, validation=validation, per="batch")
        return given[0].ndim == 0

    def measure(self, context: MeasureContext) -> list[Observation]:
        """The mean loss of each component.

        Raises:
            RefusedError: There are no such losses, or the batch does not hold what `by` names.
        """
        return run_through(self.measure_in_steps(context))

    def measure_in_steps(self, context: MeasureContext) -> Steps[list[Observation]]:
        """The same; where the loss is averaged, one slice of a batch a step."""
        sums: _Sums = {}
        parts = self._columns if self._by == POSITION else self._slices
        for component, total, count, evaluated_alone in parts(context):
            known_total, known_count = sums.get(component, (0.0, 0))
            sums[component] = (known_total + total, known_count + count)
            if evaluated_alone:
                yield
        prefix = f"{'val_' if self._validation else ''}loss_{self._label}"
        return [
            observed(context, f"{prefix}{component}", self.unit, total / count)
            for component, (total, count) in self._bounded(sums).items()
        ]

    def _bounded(self, sums: _Sums) -> _Sums:
        """Components in order; those beyond `MAX_GROUPS` as one more, which is said once."""
        empty = [component for component, (_, count) in sums.items() if count == 0]
        if empty:
            raise RefusedError(
                f"{self.name}: no sample of the probe is in {listed(map(str, empty))}; leave such "
                "slices out, or give a larger probe"
            )
        order = list(sums) if any(isinstance(c, str) for c in sums) else sorted(sums)
        kept, rest = order[:MAX_GROUPS], order[MAX_GROUPS:]
        bounded = {component: sums[component] for component in kept}
        if rest:
            bounded[OTHER] = (sum(sums[c][0] for c in rest), sum(sums[c][1] for c in rest))
            if not self._told:
                self._told = True
                log.warning(
                    "%s: %d components, of which the first %d have a stream each; the other %d "
                    "share one",
                    *(self.name, len(order), len(kept), len(rest)),
                )
        return bounded

    def _columns(self, context: MeasureContext) -> Iterator[_Part]:
        """Each column of losses of shape (B, T)."""
        for losses in losses_of(
            context, self.name, self._losses, validation=self._validation, per="token"
        ):
            width = losses.shape[1]
            names: Sequence[str | int] = range(width) if self._names is None else self._names
            if len(names) != width:
                raise RefusedError(
                    f"{self.name}: there are {len(names)} names, {self._names}, for losses of "
                    f"{width} tokens a sequence; give one name for each"
                )
            for name, total in zip(names, losses.sum(dim=0).tolist(), strict=True):
                yield name, total, len(losses), False

    def _slices(self, context: MeasureContext) -> Iterator[_Part]:
        """Each slice of each batch."""
        batches = batches_of(context, self.name, validation=self._validation)
        sliced = self._sliced(batches)  # first: it costs nothing to be refused
        given = losses_of(
            context, self.name, self._losses, validation=self._validation, per="batch"
        )
        for batch, masks, losses in zip(batches, sliced, given, strict=True):
            for name, mask in masks.items():
                count = int(mask.sum())
                if losses.ndim == 0 and mask.ndim == 1:
                    mean = self._alone(context, batch, mask) if count else 0.0
                    yield name, mean * count, count, True
                    continue
                if mask.shape != losses.shape[: mask.ndim]:
                    raise RefusedError(
                        f"{self.name}: slice {name!r} has shape {tuple(mask.shape)}, and the "
                        f"losses have {tuple(losses.shape)}; there must be a loss for each entry. "
                        "Give the module a method probe_token_losses(batch), or losses="
                    )
                chosen = losses[mask]
                yield name, float(chosen.sum()), chosen.numel(), False

    def _sliced(self, batches: Sequence[Any]) -> list[dict[str | int, Tensor]]:
        """The slices of each batch, found once for the same data."""
        if self._known_slices is None or self._known_slices[0] is not batches:
            self._known_slices = (batches, [self._masks(batch) for batch in batches])
        return self._known_slices[1]

    def _alone(self, context: MeasureContext, batch: Any, mask: Tensor) -> float:
        """The averaged loss of some samples of a batch."""
        function, source = source_of(context, self.name, self._losses, "batch")

        def cut(leaf: Any) -> Any:
            whole = not isinstance(leaf, Tensor) or leaf.ndim == 0 or len(leaf) != len(mask)
            return leaf if whole else leaf[mask.to(leaf.device)]

        alone = tree_map(cut, batch)
        return float(evaluated(context, function, alone, f"{self.name}: {source}"))

    def _masks(self, batch: Any) -> dict[str | int, Tensor]:
        """Boolean masks of shape (B,) or (B, T), by slice."""
        found = self._by(batch) if callable(self._by) else self._held(batch)
        if isinstance(found, Mapping):
            for name, mask in found.items():
                _check_name(self.name, str(name))
                if not isinstance(mask, Tensor) or mask.dtype is not torch.bool or not mask.ndim:
                    raise RefusedError(
                        f"{self.name}: slice {name!r} is {_kind(mask)}; it must be a boolean "
                        "mask of shape (B,) or (B, T)"
                    )
            return {str(name): mask.cpu() for name, mask in found.items()}
        whole = isinstance(found, Tensor) and not (found.is_floating_point() or found.is_complex())
        if not whole or not 1 <= found.ndim <= 2:
            what = "the function" if callable(self._by) else f"{self._by!r} in the batch"
            raise RefusedError(
                f"{self.name}: {what} gives {_kind(found)}; it must give integers of shape (B,) or "
                "(B, T)"
            )
        numbers = found.cpu()
        return {int(value): numbers == value for value in numbers.unique()}

    def _held(self, batch: Any) -> Any:
        """What the batch holds under the key."""
        keys: Sequence[Any] = [self._by]
        if self._by == CLASS:
            keys = TARGETS if isinstance(batch, Mapping) else [1]
        for key in keys:
            try:
                return batch[key]
            except (KeyError, IndexError, TypeError):
                continue
        has = listed(map(str, batch)) if isinstance(batch, Mapping) else _kind(batch)
        raise RefusedError(
            f"{self.name}: looked for {' or '.join(map(repr, keys))} in the batch; it is or has "
            f"{has}. Give by= another key, or a function of the batch"
        )


def _kind(found: Any) -> str:
    if isinstance(found, Tensor):
        return f"{found.dtype} of shape {tuple(found.shape)}"
    if isinstance(found, (tuple, list)):
        return f"a {type(found).__name__} of {len(found)}"
    return type(found).__name__


def _check_name(what: str, part: str) -> None:
    if "/" in part:
        raise ConfigError(
            f"{what}: {part!r} holds a '/': it would be a part of another stream, and not watched"
        )
