"""What is measured in a fit: the module's copies, the probe, the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from phasewatch.callbacks.lightning.lent import Lent
from phasewatch.callbacks.lightning.losses import ProbeLoss
from phasewatch.callbacks.shared.subject import Subject
from phasewatch.monitor.run.watch import Watch


class FitSubject(Subject):
    """The model of one fit, as the monitor sees it.

    Args:
        trainer: The live trainer.
        module: The live module.
        watch: The run's watch.
        settings: What the user gave: loss_fn, probe, val_probe, n_samples.
    """

    def __init__(self, trainer: Any, module: nn.Module, *, watch: Watch, **settings: Any) -> None:
        super().__init__(module, watch=watch, **settings)
        self._trainer = trainer

    def _make_loss(self) -> ProbeLoss:
        return ProbeLoss(self._module, self._trainer, self._given_loss)

    def _loader(self) -> Any:
        return self._trainer.train_dataloader

    def _optimizers(self) -> Sequence[Any]:
        return getattr(self._trainer, "optimizers", ())

    def _as_training_sees(self, batch: Any) -> Any:
        module: Any = self._module
        batch = self._trainer.precision_plugin.convert_input(batch)
        batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
        return self._to_device(batch)

    def _to_device(self, batch: Any) -> Any:
        return self._trainer.strategy.batch_to_device(batch, dataloader_idx=0)

    def _world_size(self) -> int:
        return int(self._trainer.world_size)

    def _live_objects(self) -> Sequence[Any]:
        datamodule = self._trainer.datamodule
        return () if datamodule is None else (datamodule,)

    def _live_substitutes(self) -> Mapping[int, object]:
        return Lent(self._trainer).substitutes()
