"""A copy of a LightningModule whose training step can run without anybody hearing of it."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from phasewatch.callbacks.lightning.lent import Lent, same
from phasewatch.callbacks.shared.views import WAY_OUT
from phasewatch.monitor.core.errors import RefusedError

_SILENT = (
    "log", "log_dict", "print", "clip_gradients", "configure_gradient_clipping", "toggle_optimizer",
    "untoggle_optimizer", "lr_scheduler_step", "optimizer_zero_grad", "write_prediction",
)  # fmt: skip
_REFUSED = ("backward", "optimizer_step", "all_gather", "save_hyperparameters")


class StepEnded(BaseException):
    """Ends a training step at its first `manual_backward`; no `except Exception` may hold it."""


class BackwardRecorder:
    """Stands for `manual_backward`: keeps the losses it is given.

    Attributes:
        losses: Losses of the current evaluation, in order.
        ends_step: Whether the first one ends the step.
    """

    def __init__(self) -> None:
        self.losses: list[torch.Tensor] = []
        self.ends_step = False

    def __call__(self, loss: torch.Tensor, *_: Any, **__: Any) -> None:
        """Record a loss."""
        self.losses.append(loss)
        if self.ends_step:
            raise StepEnded


def is_lightning(module: object) -> bool:
    """Whether this is a LightningModule, of either namespace."""
    return any(
        cls.__name__ == "LightningModule"
        and cls.__module__.startswith(("lightning.pytorch", "pytorch_lightning"))
        for cls in type(module).__mro__
    )


def mute(copied: nn.Module, trainer: Any, lent: Lent, recorder: BackwardRecorder) -> None:
    """Silence a copy: nothing it logs, prints, steps or asks for reaches the trainer.

    The methods are hidden by instance attributes. A generated subclass would do the same, and
    would also run the user's `__init_subclass__` and change what `type(self)` is.

    Args:
        copied: The copy.
        trainer: The live trainer; read now, not kept by the copy.
        lent: What the copy sees of it.
        recorder: Takes the place of `manual_backward`.
    """
    schedulers = lent.schedulers
    for module in copied.modules():
        if is_lightning(module):
            own = vars(module)
            own["_trainer"] = lent.trainer
            own["_metric_attributes"] = None  # keyed by the identities of the live metrics
            own.update(dict.fromkeys(_SILENT, _nothing))
            own.update({name: _refuse(name) for name in _REFUSED})
            own["toggled_optimizer"] = _nothing_around
            own["manual_backward"] = recorder
            own["optimizers"] = lambda *_, **__: _one_or_all(lent.optimizers)
            own["lr_schedulers"] = lambda: _one_or_all(schedulers) if schedulers else None
            if trainer.world_size == 1:
                own["all_gather"] = same


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _nothing_around(*_: Any, **__: Any) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


def _one_or_all(items: list[Any]) -> Any:
    return items[0] if len(items) == 1 else items


def _refuse(name: str) -> Callable[..., Any]:
    def refused(*_: Any, **__: Any) -> None:
        raise RefusedError(f"the training step calls self.{name}, which a copy must not; {WAY_OUT}")

    return refused


class Resettable:
    """Puts the plain attributes of a copy back after each evaluation.

    A step may keep what it computed (a running mean, the state of a metric). Carried over, it
    would make the loss depend on its own past, and under vmap it would be a tensor of a level that
    is gone. Modules of `torch.nn` keep nothing of that kind and are left out.

    Args:
        copied: The copy.
    """

    def __init__(self, copied: nn.Module) -> None:
        self._saved: list[tuple[dict[str, Any], dict[str, Any], list[tuple[Any, Any]]]] = []
        for module in copied.modules():
            if type(module).__module__.startswith("torch.nn.modules"):
                continue
            attributes = vars(module)
            contents = [(value, value.copy()) for value in _containers(attributes)]
            self._saved.append((attributes, dict(attributes), contents))

    def restore(self) -> None:
        """Put back what changed."""
        for attributes, saved, contents in self._saved:
            if len(attributes) != len(saved) or any(
                attributes.get(key, saved) is not value for key, value in saved.items()
            ):
                attributes.clear()
                attributes.update(saved)
            for container, items in contents:
                if len(container) != len(items) or not _same_items(container, items):
                    container.clear()
                    add = container.extend if isinstance(container, (list, deque)) else None
                    (add or container.update)(items)


def _containers(attributes: dict[str, Any]) -> Iterator[Any]:
    for name, value in attributes.items():
        if name not in ("_parameters", "_buffers", "_modules") and isinstance(
            value, (list, dict, set, deque)
        ):
            yield value


def _same_items(container: Any, items: Any) -> bool:
    if isinstance(container, set):
        return bool(container == items)
    if isinstance(container, dict):
        return all(container.get(key, items) is value for key, value in items.items())
    return all(a is b for a, b in zip(container, items, strict=True))


def mute_metrics(copied: nn.Module) -> Callable[[], None] | None:
    """Let the torchmetrics of a copy compute nothing: they answer zero.

    Returns:
        What undoes it; None when there are no metrics.
    """
    saved = [
        (vars(module), dict(vars(module)))
        for module in copied.modules()
        if any(cls.__module__.startswith("torchmetrics.") for cls in type(module).__mro__)
    ]
    for own, _ in saved:
        own["forward"] = own["compute"] = _zero
        own["update"] = own["reset"] = _nothing

    def undo() -> None:
        for own, before in saved:
            own.clear()
            own.update(before)

    return undo if saved else None


def _zero(*_: Any, **__: Any) -> torch.Tensor:
    return torch.zeros(())
