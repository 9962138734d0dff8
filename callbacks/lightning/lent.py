"""What a muted copy may read of the trainer, and of what hangs from it.

Everything here is made when the copy asks for it: most copies ask for little.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from phasewatch.callbacks.shared.views import (
    Disguised,
    InertOptimizer,
    InertScheduler,
    NullLogger,
    NullObject,
    Sized,
    View,
)

_TRAINER = frozenset(
    {
        "accelerator", "accumulate_grad_batches", "barebones", "callback_metrics",
        "check_val_every_n_epoch", "ckpt_path", "current_epoch", "datamodule", "default_root_dir",
        "device_ids", "distributed_sampler_kwargs", "enable_validation",
        "estimated_stepping_batches", "evaluating", "fast_dev_run", "global_rank", "global_step",
        "gradient_clip_algorithm", "gradient_clip_val", "interrupted", "is_global_zero",
        "is_last_batch", "limit_predict_batches", "limit_test_batches", "limit_train_batches",
        "limit_val_batches", "local_rank", "log_every_n_steps", "logged_metrics", "max_epochs",
        "max_steps", "min_epochs", "min_steps", "node_rank", "num_devices",
        "num_nodes", "num_predict_batches", "num_sanity_val_batches", "num_sanity_val_steps",
        "num_test_batches", "num_training_batches", "num_val_batches", "overfit_batches",
        "precision", "predicting", "progress_bar_metrics", "received_sigterm",
        "reload_dataloaders_every_n_epochs", "sanity_checking", "should_stop", "state", "testing",
        "training", "val_check_batch", "val_check_interval", "validating", "world_size",
    }
)  # fmt: skip
_STRATEGY = frozenset(
    {
        "accelerator", "global_rank", "handles_gradient_accumulation", "is_global_zero",
        "local_rank", "node_rank", "parallel_devices", "root_device", "strategy_name",
        "world_size",
    }
)  # fmt: skip
_FIT_LOOP = frozenset(
    {
        "batch_idx", "done", "epoch_progress", "is_resuming", "max_batches", "max_epochs",
        "max_steps", "min_epochs", "min_steps", "restarting", "total_batch_idx",
    }
)  # fmt: skip
_EPOCH_LOOP = frozenset(
    {
        "_batches_that_stepped", "batch_idx", "batch_progress", "done", "global_step",
        "is_resuming", "max_steps", "min_steps", "restarting", "scheduler_progress",
        "total_batch_idx",
    }
)  # fmt: skip


class Lent:
    """What one copy is lent.

    Args:
        trainer: The live trainer.

    Attributes:
        trainer: The trainer, as the copy sees it.
        strategy: Its strategy.
    """

    def __init__(self, trainer: Any) -> None:
        self._live = trainer
        self._copy: weakref.ref[nn.Module] | None = None
        self._names: dict[int, str] = {}
        self.optimizers = [
            InertOptimizer(optimizer, self._stand_in) for optimizer in trainer.optimizers
        ]
        self.schedulers = [
            InertScheduler(config.scheduler, self._optimizer_of(config.scheduler))
            for config in trainer.lr_scheduler_configs
        ]
        self.strategy = self._strategy()
        self.trainer = self._trainer()

    def to(self, copied: nn.Module, live: nn.Module) -> None:
        """Say which copy it is: the trainer's model is itself, the optimizers' weights its own."""
        self._copy = weakref.ref(copied)
        self._names = {id(parameter): name for name, parameter in live.named_parameters()}

    def substitutes(self) -> dict[int, object]:
        """What stands for each live object that a module may refer to, by its identity."""
        live = self._live
        found: dict[int, object] = {id(live): self.trainer, id(live.strategy): self.strategy}
        found |= {id(logger): NullLogger(logger) for logger in live.loggers}
        found |= {id(callback): self._callback(callback) for callback in live.callbacks}
        wrapped = getattr(live.strategy, "_lightning_optimizers", [])
        for optimizers in (live.optimizers, wrapped):
            pairs = zip(optimizers, self.optimizers, strict=False)
            found |= {id(optimizer): view for optimizer, view in pairs}
        configs = zip(live.lr_scheduler_configs, self.schedulers, strict=True)
        found |= {id(config.scheduler): view for config, view in configs}
        for name in ("train_dataloader", "val_dataloaders"):
            loader = getattr(live, name)
            if loader is not None:
                found[id(loader)] = getattr(self.trainer, name)
        if live.datamodule is not None:
            found[id(live.datamodule)] = live.datamodule
        return found

    def _stand_in(self, parameter: torch.Tensor) -> Any:
        """A live parameter, as it is on the copy at this moment."""
        name, found = self._names.get(id(parameter)), self._module()
        if name is None or found is None:
            return parameter.detach().clone()
        for part in name.split("."):
            found = getattr(found, part)
        return found

    def _module(self) -> Any:
        return None if self._copy is None else self._copy()

    def _optimizer_of(self, scheduler: Any) -> InertOptimizer | None:
        live = getattr(scheduler, "optimizer", None)
        pairs = zip(self._live.optimizers, self.optimizers, strict=True)
        return next((view for optimizer, view in pairs if optimizer is live), None)

    def _trainer(self) -> View:
        live = self._live
        loops = {
            f"{name}_loop": partial(self._loop, f"{name}_loop")
            for name in ("validate", "test", "predict")
        }
        lent: dict[str, Callable[[], Any]] = loops | {
            "callbacks": partial(self._callbacks_named, "callbacks"),
            "fit_loop": self._fit_loop,
            "lightning_module": self._module,
            "log_dir": self._log_dir,
            "logger": lambda: NullLogger(live.logger) if live.logger is not None else None,
            "loggers": lambda: [NullLogger(logger) for logger in live.loggers],
            "lr_scheduler_configs": self._scheduler_configs,
            "model": self._module,
            "optimizers": lambda: self.optimizers,
            "precision_plugin": lambda: View(live.precision_plugin, "precision_plugin", plain=True),
            "print": lambda: _nothing,
            "profiler": NullObject,
            "progress_bar_callback": lambda: NullObject() if live.progress_bar_callback else None,
            "strategy": lambda: self.strategy,
        }
        for name in ("checkpoint_callback", "early_stopping_callback"):
            lent[name] = partial(self._callback_named, name)
            lent[f"{name}s"] = partial(self._callbacks_named, f"{name}s")
        for name in ("train", "val", "test", "predict"):
            name = f"{name}_dataloader" + ("s" if name != "train" else "")
            lent[name] = partial(self._loader, name)
        return View(live, "trainer", _TRAINER, lent)

    def _strategy(self) -> View:
        live = self._live.strategy
        lent: dict[str, Callable[[], Any]] = {
            "batch_to_device": lambda: live.batch_to_device,
            "lightning_module": self._module,
            "lr_scheduler_configs": self._scheduler_configs,
            "model": self._module,
            "optimizers": lambda: self.optimizers,
        }
        if self._live.world_size == 1:  # among several processes these would wait for the others
            names = ("all_gather", "broadcast", "reduce", "reduce_boolean_decision")
            lent |= dict.fromkeys(names, lambda: same) | {"barrier": lambda: _nothing}
        return View(live, "trainer.strategy", _STRATEGY, lent)

    def _fit_loop(self) -> View:
        live = self._live.fit_loop
        epoch = {"epoch_loop": lambda: View(live.epoch_loop, "trainer.fit_loop.epoch_loop",
                                            _EPOCH_LOOP, self._optimization())}  # fmt: skip
        return View(live, "trainer.fit_loop", _FIT_LOOP, epoch)

    def _optimization(self) -> Mapping[str, Callable[[], Any]]:
        live = self._live.fit_loop.epoch_loop
        progress = {
            "automatic_optimization": frozenset({"optim_progress"}),
            "manual_optimization": frozenset({"optim_step_progress"}),
        }
        where = "trainer.fit_loop.epoch_loop"
        return {
            name: partial(View, getattr(live, name), f"{where}.{name}", readable)
            for name, readable in progress.items()
        }

    def _loop(self, name: str) -> View:
        return View(getattr(self._live, name), f"trainer.{name}", frozenset({"batch_progress"}))

    def _scheduler_configs(self) -> list[Any]:
        return [
            SimpleNamespace(**{**vars(config), "scheduler": scheduler})
            for config, scheduler in zip(
                self._live.lr_scheduler_configs, self.schedulers, strict=True
            )
        ]

    def _log_dir(self) -> str | None:
        """As the trainer says it, without asking other processes: the first one's counts."""
        loggers = self._live.loggers
        if not loggers:
            return str(self._live.default_root_dir)
        tells = type(loggers[0]).__name__ in ("TensorBoardLogger", "CSVLogger")
        where = loggers[0].log_dir if tells else loggers[0].save_dir
        return None if where is None else str(where)

    def _loader(self, name: str) -> Any:
        return sized(getattr(self._live, name), f"trainer.{name}")

    def _callback(self, live: Any) -> Any:
        if live is None:
            return None
        return Disguised(live, type(live).__name__, plain=True)

    def _callback_named(self, name: str) -> Any:
        return self._callback(getattr(self._live, name))

    def _callbacks_named(self, name: str) -> list[Any]:
        return [self._callback(callback) for callback in getattr(self._live, name)]


def sized(loader: Any, name: str) -> Any:
    """A loader, or a nest of them, to look at from outside."""
    if loader is None:
        return None
    if isinstance(loader, Mapping):
        return {key: sized(item, f"{name}[{key!r}]") for key, item in loader.items()}
    if isinstance(loader, (list, tuple)):
        return [sized(item, f"{name}[{place}]") for place, item in enumerate(loader)]
    return Sized(loader, name)


def same(data: Any, *_: Any, **__: Any) -> Any:
    """What one process alone gathers, reduces or is sent."""
    return data


def _nothing(*_: Any, **__: Any) -> None:
    return None
