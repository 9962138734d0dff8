"""What is measured under a `transformers.Trainer`: its model, its collated batches, its loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from phasewatch.callbacks.huggingface.losses import TrainerLoss
from phasewatch.callbacks.shared.subject import Subject
from phasewatch.monitor.core.errors import RefusedError
from phasewatch.monitor.isolation.batches import tensors_in
from phasewatch.monitor.run.watch import Watch

NO_TENSORS = (
    "a batch holds no tensor: what the Trainer takes its loss of is made while it trains, as of "
    "completions that the model generates (GRPO), and is no loss on fixed data. To measure on data "
    "of your own give the callback probe=, batches of tokens, and loss_fn="
)


class TrainerSubject(Subject):
    """The model of one training, as the monitor sees it.

    Args:
        trainer: The live trainer; None where it is not known.
        module: The live model, unwrapped.
        watch: The run's watch.
        args: The trainer's arguments.
        loader: The trainer's loader of training data.
        optimizer: The trainer's optimizer.
        settings: What the user gave: loss_fn, probe, val_probe, n_samples.
    """

    def __init__(
        self,
        trainer: Any,
        module: nn.Module,
        *,
        watch: Watch,
        args: Any,
        loader: Any,
        optimizer: Any,
        **settings: Any,
    ) -> None:
        super().__init__(module, watch=watch, **settings)
        self._trainer = trainer
        self._args = args
        self._train_loader = loader
        self._optimizer = optimizer

    def _make_loss(self) -> TrainerLoss:
        return TrainerLoss(self._module, self._trainer, self._given_loss)

    def _loader(self) -> Any:
        return self._train_loader

    def _optimizers(self) -> Sequence[Any]:
        return () if self._optimizer is None else (self._optimizer,)

    def _as_training_sees(self, batch: Any) -> Any:
        if self._given_loss is None and next(iter(tensors_in(batch)), None) is None:
            raise RefusedError(NO_TENSORS)
        return self._to_device(batch)

    def _to_device(self, batch: Any) -> Any:
        return moved(batch, self._args.device)

    def _world_size(self) -> int:
        return int(self._args.world_size)


def moved(batch: Any, device: torch.device) -> Any:
    """A nested batch on a device; what a collator returns in place of a dict becomes one."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: moved(value, device) for key, value in batch.items()}
    if type(batch) in (list, tuple):
        return type(batch)(moved(value, device) for value in batch)
    return batch
