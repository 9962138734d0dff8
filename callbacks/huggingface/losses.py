"""Where the loss of a probe comes from under a `transformers.Trainer`.

In this order: `loss_fn=`; a method `probe_loss(batch)` on the model; the Trainer's `compute_loss`,
where it is not the plain one; the model's own forward, which gives its loss.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from phasewatch.callbacks.huggingface.trainer_view import TrainerView
from phasewatch.monitor.core.context import LossFn, MeasureContext
from phasewatch.monitor.core.errors import RefusedError
from phasewatch.monitor.isolation.places import told_with_place
from phasewatch.monitor.observables.evaluation import at_weights
from phasewatch.monitor.sampling.probe_loss import averaged, is_sum_and_count
from phasewatch.monitor.sampling.terms import SAMPLES, Count, candidates, counted

WAY_OUT = "give the callback a loss_fn="

ROUNDING = 1e-3
"""Relative difference that rounding may make between a sum over its count and the mean."""


class TrainerLoss:
    """The loss of a Trainer's model on a probe batch: `loss(model, batch)`, in nats.

    A language model averages over its tokens, without those that the labels leave out. Its loss is
    asked for as a sum, with the number of tokens beside it, wherever the model can give one and the
    two agree with the mean.

    Args:
        module: The live model; asked only what it offers.
        trainer: The live trainer; None where it is not known.
        loss_fn: The user's loss, if given.

    Attributes:
        source: "loss_fn", "probe_loss", "compute_loss" or "forward".
    """

    def __init__(self, module: nn.Module, trainer: Any, loss_fn: LossFn | None = None) -> None:
        self._trainer = trainer
        self._count: Count | None = None
        self._view: TrainerView | None = None
        self._takes_num_items = _takes_num_items(module)
        self._given = loss_fn
        if loss_fn is not None:
            self.source = "loss_fn"
        elif callable(getattr(module, "probe_loss", None)):
            self.source = "probe_loss"
        elif trainer is not None and _has_own_loss(trainer):
            self.source = "compute_loss"
        else:
            self.source = "forward"

    def substitutes(self) -> Mapping[int, object]:
        """Nothing: a model of transformers refers to no trainer."""
        return {}

    def attach(self, copied: nn.Module) -> LossFn:
        """The loss of a fresh copy."""
        config = getattr(copied, "config", None)
        if getattr(config, "use_cache", False) is True:
            config.use_cache = False  # type: ignore[union-attr]  # keys and values nobody reads
        if self.source == "compute_loss":
            self._view = TrainerView(self._trainer, copied)
        return self

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        """Evaluate the loss: losses, their mean, or their sum and their number.

        Raises:
            RefusedError: There is no loss, or it asks for what a copy must not have.
        """
        if self._given is not None:
            return self._given(model, batch)
        if self.source == "probe_loss":
            return model.probe_loss(batch)  # type: ignore[operator]
        if self._count is not None and (number := self._count.of(batch)):
            return self._evaluated(model, batch, num_items_in_batch=1), number
        return self._evaluated(model, batch)

    def _evaluated(self, model: nn.Module, batch: Any, **more: Any) -> torch.Tensor:
        if not isinstance(batch, Mapping):
            raise RefusedError(
                f"a batch is a {type(batch).__name__}, and the Trainer's model takes its inputs by "
                f"name; {WAY_OUT}"
            )
        if self._view is not None:
            vars(self._view)["model"] = vars(self._view)["model_wrapped"] = model
            found = type(self._trainer).compute_loss(self._view, model, dict(batch), **more)
        else:
            outputs = model(**batch, **more)
            found = outputs.get("loss") if isinstance(outputs, dict) else outputs[0]
        if not isinstance(found, torch.Tensor) or found.ndim > 1:
            raise RefusedError(f"{self.source} gave no loss for a probe batch; {WAY_OUT}")
        return found

    def survey(self, context: MeasureContext) -> tuple[int, str]:
        """Look at the loss once on the whole probe, and at what it averages over.

        Returns:
            Number of terms the loss averages over, and what one is.

        Raises:
            RefusedError: There is no loss to measure, for the reason given.
        """
        self._count = None
        try:
            means = [at_weights(context, self, batch) for batch in context.batches]
            if self.source in ("forward", "compute_loss") and self._takes_num_items:
                self._count = self._tried_count(context, means)
        except RefusedError:
            raise
        except Exception as error:
            raise RefusedError(
                f"{self.source} failed on a probe batch ({told_with_place(error)}); {WAY_OUT}"
            ) from error
        if self._count is not None:
            return sum(self._count.of(batch) or 0 for batch in context.batches), "token"
        if is_sum_and_count(means[0]):
            return int(sum(mean[1] for mean in means)), "term"
        if means[0].ndim:
            return sum(len(mean) for mean in means), "term"
        number, count = counted(context.batches)
        if count == SAMPLES:
            return context.n_samples, context.sample_unit
        return number, count.unit

    def _tried_count(self, context: MeasureContext, means: list[Any]) -> Count | None:
        """The way of counting by which the sum of losses over their number is their mean."""
        labels = [count for count in candidates(context.batches) if count.unit == "token"]
        if not labels or any(is_sum_and_count(mean) or mean.ndim for mean in means):
            return None
        sums = []
        for batch in context.batches:
            one = at_weights(context, _with_one_item(self), batch)
            sums.append(float(averaged(one)))
        for count in labels:
            numbers = [count.of(batch) or 0 for batch in context.batches]
            if all(
                abs(total - number * float(mean)) <= min(ROUNDING * abs(total), 0.5 * abs(mean))
                for total, number, mean in zip(sums, numbers, means, strict=True)
            ):
                return count
        return None


def _with_one_item(loss: TrainerLoss) -> LossFn:
    def summed(model: nn.Module, batch: Any) -> torch.Tensor:
        return loss._evaluated(model, batch, num_items_in_batch=1)

    return summed


def _has_own_loss(trainer: Any) -> bool:
    """Whether this Trainer's loss is another than what the model's forward gives."""
    plain = sys.modules["transformers"].Trainer
    return (
        type(trainer).compute_loss is not plain.compute_loss
        or getattr(trainer, "label_smoother", None) is not None
        or getattr(trainer, "compute_loss_func", None) is not None
    )


def _takes_num_items(module: nn.Module) -> bool:
    """Whether the model's forward hands further arguments on to its loss."""
    base: Any = module
    if hasattr(module, "get_base_model"):  # an adapter of PEFT hands everything to its base model
        base = module.get_base_model()  # type: ignore[operator]
    parameters = inspect.signature(type(base).forward).parameters
    kinds = [parameter.kind for parameter in parameters.values()]
    return "num_items_in_batch" in parameters or inspect.Parameter.VAR_KEYWORD in kinds
