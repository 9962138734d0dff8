"""Where the loss of a probe comes from.

In this order: `loss_fn=`; a method `probe_loss(batch)` on the module; its own `training_step`, on a
muted copy.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from phasewatch.callbacks.lightning.lent import Lent
from phasewatch.callbacks.lightning.muted import (
    BackwardRecorder,
    Resettable,
    StepEnded,
    mute,
    mute_metrics,
)
from phasewatch.callbacks.shared.views import WAY_OUT
from phasewatch.monitor.core.context import LossFn, MeasureContext
from phasewatch.monitor.core.errors import RefusedError
from phasewatch.monitor.isolation.batches import clone_batch, same_batch
from phasewatch.monitor.isolation.places import told_with_place
from phasewatch.monitor.isolation.rng import RngState
from phasewatch.monitor.observables.evaluation import at_weights
from phasewatch.monitor.sampling.probe_loss import averaged, is_sum_and_count
from phasewatch.monitor.sampling.terms import SAMPLES, counted

log = logging.getLogger("phasewatch")

SURVEY_SEEDS = (1, 2)


class ProbeLoss:
    """The loss of a LightningModule on a probe batch: `loss(model, batch)`, in nats.

    Args:
        module: The live module; asked only what it offers, and what its parameters are called.
        trainer: The live trainer; its precision is used around each evaluation.
        loss_fn: The user's loss, if given.

    Attributes:
        source: "loss_fn", "probe_loss" or "training_step".
    """

    def __init__(self, module: nn.Module, trainer: Any, loss_fn: LossFn | None = None) -> None:
        self._trainer = trainer
        self._module = module
        self._manual = not getattr(module, "automatic_optimization", True)
        self._recorder = BackwardRecorder()
        self._lent: Lent | None = None
        self._takes_batch_idx = False
        self._clones = False
        self._seeds: RngState | None = None
        self._mutes_metrics = False
        if loss_fn is not None:
            self.source, self._call = "loss_fn", loss_fn
        elif callable(getattr(module, "probe_loss", None)):
            self.source, self._call = "probe_loss", _probe_loss
        else:
            self.source, self._call = "training_step", self._training_step
            self._takes_batch_idx = takes_batch_idx(module)

    def substitutes(self) -> dict[int, object]:
        """Stand-ins for the live objects a copy must not get hold of."""
        self._lent = Lent(self._trainer)
        return self._lent.substitutes()

    def attach(self, copied: nn.Module) -> AttachedLoss:
        """Mute a fresh copy, made with the latest `substitutes()`.

        Returns:
            The loss of that copy.
        """
        lent = self._lent or Lent(self._trainer)
        lent.to(copied, self._module)
        mute(copied, self._trainer, lent, self._recorder)
        if self._mutes_metrics:
            mute_metrics(copied)
        return AttachedLoss(self, Resettable(copied))

    def evaluate(self, model: nn.Module, batch: Any, resettable: Resettable | None) -> Any:
        """Evaluate the loss; the copy and the batch are afterwards as before.

        Args:
            model: The copy that stands in for the module.
            batch: One probe batch, as the training step sees it.
            resettable: State of the copy that is put back after each call; None puts back nothing.

        Raises:
            RefusedError: The step gives no loss, or asks for what a copy must not have.
        """
        if self._seeds is not None:
            self._seeds.seed(SURVEY_SEEDS[0])
        return self.evaluate_unfrozen(model, batch, resettable)

    @property
    def draws(self) -> bool:
        """Whether the loss draws random numbers."""
        return self._seeds is not None

    def evaluate_unfrozen(self, model: nn.Module, batch: Any, resettable: Resettable | None) -> Any:
        """As `evaluate`, with whatever random numbers come next, as training sees it.

        Args:
            model: The copy.
            batch: One probe batch.
            resettable: State of the copy that is put back; None puts back nothing.
        """
        if self._clones:
            batch = clone_batch(batch)
        self._recorder.losses = []
        try:
            with self._trainer.precision_plugin.train_step_context():
                return _as_loss(self._call(model, batch), self.source)
        finally:
            self._recorder.losses = []
            if resettable is not None:
                resettable.restore()

    def survey(self, context: MeasureContext) -> tuple[int, str]:
        """Look at the loss once on the whole probe, and adapt to what is found.

        A step that changes its batch gets a copy each time; one that draws random numbers gets the
        same ones each time; metrics that the loss does not depend on are not computed.

        Returns:
            Number of terms the loss averages over, and what one is. Of per-sample losses their
            count; of a mean what its batches tell (graphs, labels that are not ignored), else
            `context.n_samples`.

        Raises:
            RefusedError: There is no loss to measure, for the reason given.
        """
        first, loss = context.batches[0], context.loss_fn
        assert isinstance(loss, AttachedLoss)  # noqa: S101  (contexts come from `attach`)
        self._recorder.ends_step = False
        try:
            alone = self._trainer.world_size == 1
            with nullcontext() if alone else RefusingCollectives():  # type: ignore[no-untyped-call]
                losses = self._look(context, loss, first)
        except RefusedError:
            raise
        except Exception as error:
            way_out = "" if self.source == "loss_fn" else f"; {WAY_OUT}"
            raise RefusedError(
                f"{self.source} failed on a probe batch ({told_with_place(error)}){way_out}"
            ) from error
        self._recorder.ends_step = self._manual
        given = [_terms_given(found) for found in losses]
        if given[0] is not None:
            number = sum(filter(None, given))
            return number, context.sample_unit if number == context.n_samples else "term"
        number, count = counted(context.batches)
        if count == SAMPLES:
            return context.n_samples, context.sample_unit
        return number, count.unit

    def _look(self, context: MeasureContext, attached: AttachedLoss, first: Any) -> list[Any]:
        given = clone_batch(first)
        loss = _evaluated(context, attached, given, SURVEY_SEEDS[0])
        self._clones = not same_batch(given, first)
        if not _same(loss, _evaluated(context, attached, first, SURVEY_SEEDS[1])):
            devices = {tensor.device for tensor in context.params.values()}
            self._seeds = RngState(device for device in devices if device.type != "cpu")
        if undo := mute_metrics(context.model):
            resettable, attached.resettable = attached.resettable, None
            try:
                muted = _evaluated(context, attached, first, SURVEY_SEEDS[0])
                self._mutes_metrics = _same(loss, muted)
            except Exception as error:
                # The step needs what its metrics say: they stay, and are reset after each look.
                log.debug("the step does not run without its metrics: %s", error)
                self._mutes_metrics = False
            if self._mutes_metrics:
                resettable = Resettable(context.model)
            else:
                undo()
            attached.resettable = resettable
        rest = [_evaluated(context, attached, b, SURVEY_SEEDS[0]) for b in context.batches[1:]]
        return [loss, *rest]

    def _training_step(self, model: Any, batch: Any) -> Any:
        arguments = (batch, 0) if self._takes_batch_idx else (batch,)
        try:
            result = model.training_step(*arguments)
        except StepEnded:
            return self._recorder.losses[0]
        if self._recorder.losses:
            return _only(self._recorder.losses)
        return result


class AttachedLoss:
    """The loss of one copy: `loss(model, batch)`, in nats.

    Args:
        loss: How it is evaluated.
        resettable: Puts the copy's plain attributes back after each evaluation.
    """

    def __init__(self, loss: ProbeLoss, resettable: Resettable | None) -> None:
        self._loss = loss
        self.resettable = resettable

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        """Evaluate the loss; the copy and the batch are afterwards as before.

        Raises:
            RefusedError: The step gives no loss, or asks for what a copy must not have.
        """
        return self._loss.evaluate(model, batch, self.resettable)

    @property
    def unfrozen(self) -> LossFn | None:
        """The loss as training sees it, where it draws random numbers; else None."""
        return self._unfrozen if self._loss.draws else None

    def _unfrozen(self, model: nn.Module, batch: Any) -> Any:
        return self._loss.evaluate_unfrozen(model, batch, self.resettable)


def _evaluated(context: MeasureContext, loss: AttachedLoss, batch: Any, seed: int) -> Any:
    """What the loss gives, without a graph: a tensor, or a sum and a count."""
    RngState().seed(seed)
    found = at_weights(context, loss, batch)
    if is_sum_and_count(found):
        return found[0].detach(), found[1]
    return found.detach()


def _terms_given(found: Any) -> int | None:
    """How many terms the loss itself tells that it has; None for a mean."""
    if is_sum_and_count(found):
        return int(found[1])
    return len(found) if found.ndim else None


def _probe_loss(model: Any, batch: Any) -> Any:
    return model.probe_loss(batch)


def _same(first: Any, second: Any) -> bool:
    a, b = averaged(first), averaged(second)
    return a.shape == b.shape and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))


def _only(losses: Sequence[torch.Tensor]) -> torch.Tensor:
    first = losses[0]
    for other in losses[1:]:
        if first.shape != other.shape or not torch.equal(first.detach(), other.detach()):
            raise RefusedError(
                f"the training step optimizes {len(losses)} different losses, and which of them is "
                f"the model's is not for the monitor to say; {WAY_OUT}"
            )
    return first


def _as_loss(result: Any, source: str) -> Any:
    if isinstance(result, dict):
        result = result.get("loss")
    if is_sum_and_count(result):
        return result
    if result is None:
        raise RefusedError(f"{source} gave no loss for a probe batch; {WAY_OUT}")
    if not isinstance(result, torch.Tensor):
        raise RefusedError(
            f"{source} gave a {type(result).__name__}; it must give a tensor of per-sample losses "
            "or their mean"
        )
    if result.ndim > 1 or not result.is_floating_point():
        raise RefusedError(
            f"{source} gave a tensor of shape {tuple(result.shape)} and {result.dtype}; it must be "
            "floating point, of shape () or (batch,)"
        )
    return result


def takes_batch_idx(module: Any) -> bool:
    """Whether Lightning passes `batch_idx` to this module's `training_step`.

    Raises:
        RefusedError: The step takes the loader's iterator, which must not be advanced.
    """
    step = inspect.unwrap(type(module).training_step)
    spec = inspect.getfullargspec(step)
    names = spec.args[1:]
    if "dataloader_iter" in names:
        raise RefusedError(f"training_step takes the loader's iterator; {WAY_OUT}")
    return "batch_idx" in names or spec.varargs is not None or len(names) >= 2


class RefusingCollectives(TorchDispatchMode):
    """Refuses communication between processes: one of them measures alone, and would wait."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator that stays in this process."""
        if func.namespace in ("c10d", "_c10d_functional"):
            raise RefusedError(
                f"the loss communicates between processes ({func.name()}), and only one of them "
                "measures; give the monitor a loss_fn= that does not"
            )
        return func(*args, **(kwargs or {}))
