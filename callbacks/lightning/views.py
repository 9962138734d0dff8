"""What a muted copy sees in place of the trainer and what belongs to it.

Reading is lent where it is harmless, writing stays with the copy, and everything else is refused
with a message that says what to do instead.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from phasewatch.monitor.core.errors import RefusedError

WAY_OUT = "give the monitor a loss_fn=, or the module a method probe_loss(batch)"

_TRAINER_READABLE = frozenset(
    {
        "accumulate_grad_batches", "barebones", "callback_metrics", "check_val_every_n_epoch",
        "current_epoch", "datamodule", "default_root_dir", "device_ids",
        "estimated_stepping_batches", "evaluating", "fast_dev_run", "global_rank",
        "global_step", "gradient_clip_algorithm", "gradient_clip_val", "interrupted",
        "is_global_zero", "is_last_batch", "limit_train_batches", "limit_val_batches",
        "local_rank", "log_every_n_steps", "logged_metrics", "max_epochs", "max_steps",
        "max_time", "min_epochs", "min_steps", "node_rank", "num_devices", "num_nodes",
        "num_sanity_val_steps", "num_training_batches", "num_val_batches", "overfit_batches",
        "precision", "predicting", "progress_bar_metrics", "sanity_checking", "should_stop",
        "state", "testing", "training", "val_check_batch", "val_check_interval", "validating",
        "world_size",
    }
)  # fmt: skip
_STRATEGY_READABLE = frozenset(
    {"global_rank", "is_global_zero", "local_rank", "node_rank", "root_device", "world_size"}
)


class View:
    """Lends the named attributes of a live object; refuses its others.

    Args:
        live: The live object.
        name: What the copy calls it, for messages.
        readable: Attributes that may be read.
        own: Attributes that the view answers itself.
    """

    def __init__(
        self, live: Any, name: str, readable: frozenset[str], own: dict[str, Any] | None = None
    ) -> None:
        vars(self).update(own or {}, _view_of=(live, name, readable))

    def __getattr__(self, attribute: str) -> Any:
        live, name, readable = vars(self)["_view_of"]
        if attribute in readable:
            value = getattr(live, attribute)
            return dict(value) if isinstance(value, dict) else value
        if not hasattr(type(live), attribute) and attribute not in vars(live):
            raise AttributeError(f"{type(live).__name__!r} object has no attribute {attribute!r}")
        raise RefusedError(
            f"the training step uses {name}.{attribute}, which a copy must not; {WAY_OUT}"
        )


class Sink:
    """Takes any call and any attribute, and does nothing: a logger, an experiment, a callback."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *_: Any, **__: Any) -> Any:
        """Take anything."""
        return self

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __iter__(self) -> Iterator[Any]:
        return iter(())


class Sized:
    """A loader of which only the length is known."""

    def __init__(self, live: Any) -> None:
        self._live = live

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[Any]:
        raise RefusedError(f"the training step iterates over a loader of the trainer; {WAY_OUT}")


class InertOptimizer:
    """Shows the settings of an optimizer; steps nowhere."""

    def __init__(self, live: Any) -> None:
        self.param_groups = [
            {key: value for key, value in group.items() if key != "params"} | {"params": []}
            for group in live.param_groups
        ]
        self.defaults = dict(live.defaults)
        self.state: dict[Any, Any] = {}

    @property
    def optimizer(self) -> InertOptimizer:
        """The optimizer behind Lightning's wrapper: as inert."""
        return self

    def step(self, closure: Callable[[], Any] | None = None, **_: Any) -> Any:
        """Call the closure, as an optimizer would, and leave the weights alone."""
        return closure() if closure is not None else None

    def zero_grad(self, *_: Any, **__: Any) -> None:
        """Do nothing."""

    def toggle_model(self, *_: Any, **__: Any) -> contextlib.AbstractContextManager[None]:
        """Do nothing, as a context."""
        return contextlib.nullcontext()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise RefusedError(f"the training step uses optimizer.{name}; {WAY_OUT}")


class InertScheduler:
    """Shows the last learning rates; steps nowhere."""

    def __init__(self, live: Any) -> None:
        self.last_epoch = getattr(live, "last_epoch", 0)
        self._rates = list(getattr(live, "_last_lr", []))

    def step(self, *_: Any, **__: Any) -> None:
        """Do nothing."""

    def get_last_lr(self) -> list[float]:
        """Learning rates, as the live scheduler last set them."""
        return list(self._rates)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise RefusedError(f"the training step uses lr_scheduler.{name}; {WAY_OUT}")


def trainer_view(trainer: Any) -> View:
    """A trainer that a copy may look at, and not steer."""
    own: dict[str, Any] = {
        "logger": Sink() if trainer.loggers else None,
        "loggers": [Sink() for _ in trainer.loggers],
        "optimizers": [InertOptimizer(optimizer) for optimizer in trainer.optimizers],
        "strategy": strategy_view(trainer),
        "callbacks": [],
    }
    if trainer.train_dataloader is not None:
        own["train_dataloader"] = Sized(trainer.train_dataloader)
    return View(trainer, "trainer", _TRAINER_READABLE, own)


def strategy_view(trainer: Any) -> View:
    """A strategy of which a copy may read who and where it is."""
    return View(trainer.strategy, "trainer.strategy", _STRATEGY_READABLE)
