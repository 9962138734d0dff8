"""What is measured in a fit: the module's copies, the probe, the loss."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from phasewatch.callbacks.losses import ProbeLoss
from phasewatch.monitor.config import MonitorConfig
from phasewatch.monitor.errors import ConfigError, RefusedError
from phasewatch.monitor.isolation import measure_context
from phasewatch.monitor.probe import PassingProbe, Probe, build_probe, find_dataset, with_terms
from phasewatch.monitor.types import LossFn, MeasureContext

log = logging.getLogger("phasewatch")


class Subject:
    """The model of one fit, as the monitor sees it.

    Args:
        trainer: The live trainer.
        module: The live module.
        config: The run's configuration.
        loss_fn: The user's loss.
        probe: The user's probe data.
        val_probe: The user's validation probe data.
        n_samples: The user's number of loss terms.

    Attributes:
        passing: Collects the probe from passing batches, until it is complete; else None.
        reason: Why there is no loss to measure; empty when there is one.
    """

    def __init__(
        self,
        trainer: Any,
        module: nn.Module,
        *,
        config: MonitorConfig,
        loss_fn: LossFn | None = None,
        probe: Any = None,
        val_probe: Any = None,
        n_samples: int | None = None,
    ) -> None:
        self._trainer = trainer
        self._module = module
        self._config = config
        self._sources = (probe, val_probe)
        self._n_samples = n_samples
        self._given_loss = loss_fn
        self._probe: Probe | None = None
        self._val_batches: tuple[Any, ...] = ()
        self._loss: ProbeLoss | None = None
        self._was_passing = False
        self.passing: PassingProbe | None = None
        self.reason = ""

    def touched(self) -> list[Any]:
        """Live objects that building a probe reads from, and that must be as before."""
        loader = self._trainer.train_dataloader
        candidates = [*self._sources, loader, self._trainer.datamodule]
        found = [c.dataset if isinstance(c, DataLoader) else c for c in candidates]
        return [
            item
            for item in found
            if item is not None and not isinstance(item, (list, tuple, dict, torch.Tensor))
        ]

    def prepare(self, saved: Sequence[Any] | None = None) -> None:
        """Build loss and probe. Call it inside a guard that watches `touched()`.

        Args:
            saved: Batches of the probe of an earlier attempt, where they were kept.

        Raises:
            ConfigError: What the user gave as probe, or as loss, cannot be used.
        """
        try:
            self._loss = ProbeLoss(self._module, self._trainer, self._given_loss)
            self._build_probe(saved)
        except RefusedError as error:
            self._refuse(str(error), given=self._sources[0] is not None, what="probe")
        if self.passing is None:
            self.settle()

    def settle(self) -> None:
        """Look at the loss on the complete probe. Call it inside a guard.

        Raises:
            ConfigError: The user's loss or probe cannot be used.
        """
        if self.passing is not None:
            self._probe, self.passing = self.passing.probe(), None
        if self.reason or self._probe is None or self._loss is None:
            return
        try:
            terms, unit = self._loss.survey(self.context(0))
        except RefusedError as error:
            self._refuse(str(error), given=self._given_loss is not None, what="loss_fn")
        else:
            self._probe = with_terms(self._probe, self._n_samples or terms, unit)

    def context(self, step: int, epoch: int | None = None) -> MeasureContext:
        """Copy the live module as it is now. Call it inside a guard.

        Raises:
            RefusedError: It cannot be copied.
        """
        if self._config.probe.mode == "train":
            self._refuse_synchronised()
        stand_ins = self._loss.substitutes() if self._loss is not None else {}
        context = measure_context(
            self._module,
            step=step,
            epoch=epoch,
            mode=self._config.probe.mode,
            seed=self._config.seed,
            substitutes=stand_ins,
        )
        context = replace(context, learning_rate=self._learning_rate())
        if self._loss is not None:
            self._loss.attach(context.model, stand_ins)
        if self.reason or self._probe is None:
            return context
        return replace(
            context,
            loss_fn=self._loss,
            batches=self._probe.batches,
            val_batches=self._val_batches,
            n_samples=self._probe.n_samples,
            n_data=self._probe.n_data,
            sample_unit=self._probe.sample_unit,
        )

    def _learning_rate(self) -> float | None:
        """The largest of all parameter groups: where plain descent is closest to its edge."""
        optimizers = getattr(self._trainer, "optimizers", ())
        rates = [group.get("lr") for optimizer in optimizers for group in optimizer.param_groups]
        known = [float(rate) for rate in rates if rate is not None]
        return max(known, default=None)

    def context_to_check(self, step: int) -> MeasureContext:
        """The same, for asking what can be measured. Call it inside a guard.

        Where there is no loss, one that refuses says why to each observable that asks for it.
        """
        context = self.context(step)
        if not self.reason:
            return context
        return replace(context, loss_fn=_refusing(self.reason), batches=(None,))

    def batches_taken_in_passing(self) -> tuple[Any, ...]:
        """Batches that a resumed run could not find again."""
        return self._probe.batches if self._probe is not None and self._was_passing else ()

    def _build_probe(self, saved: Sequence[Any] | None) -> None:
        source, val_source = self._sources
        settings: dict[str, Any] = {"config": self._config.probe, "seed": self._config.seed}
        if val_source is not None:
            self._val_batches = build_probe(
                val_source, prepare=self._as_training_sees, **settings
            ).batches
        settings["n_samples"] = self._n_samples
        loader = self._trainer.train_dataloader
        if source is not None:
            self._probe = build_probe(source, prepare=self._as_training_sees, **settings)
        elif saved:
            self._was_passing = True
            moved = [self._trainer.strategy.batch_to_device(batch) for batch in saved]
            self._probe = build_probe(moved, **settings)
        elif find_dataset(loader) is not None:
            self._probe = self._from_loader(loader, settings)
        if self._probe is None:
            self._was_passing = True
            self.passing = PassingProbe(self._config.probe, self._n_samples)

    def _from_loader(self, loader: Any, settings: dict[str, Any]) -> Probe | None:
        try:
            return build_probe(loader, prepare=self._as_training_sees, **settings)
        except RefusedError:
            raise
        except ConfigError as error:  # about data the user did not choose as probe
            raise RefusedError(str(error)) from error
        except Exception as error:
            # What the training itself loads is good; what it loads by other means still passes by.
            log.info(
                "the probe is taken from passing batches: the dataset cannot be read by index "
                "(%s: %s)",
                type(error).__name__,
                error,
            )
            return None

    def _as_training_sees(self, batch: Any) -> Any:
        """What a loader's batch becomes on its way to the training step."""
        module: Any = self._module
        batch = self._trainer.precision_plugin.convert_input(batch)
        batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
        return self._trainer.strategy.batch_to_device(batch, dataloader_idx=0)

    def _refuse(self, reason: str, *, given: bool, what: str) -> None:
        if given:
            raise ConfigError(f"{what}: {reason}")
        self.reason = reason

    def _refuse_synchronised(self) -> None:
        if self._trainer.world_size > 1 and any(
            isinstance(module, nn.SyncBatchNorm) for module in self._module.modules()
        ):
            raise RefusedError(
                "SyncBatchNorm communicates in train mode, and only one process measures; "
                'set probe.mode to "eval"'
            )


def _refusing(reason: str) -> LossFn:
    def loss_fn(*_: Any) -> torch.Tensor:
        raise RefusedError(reason)

    return loss_fn
