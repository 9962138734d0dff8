"""A stand-in for the live Trainer, on which a `compute_loss` of the user's runs for a probe."""

from __future__ import annotations

import inspect
from types import FunctionType, MethodType
from typing import Any

from torch import nn

from phasewatch.callbacks.shared.views import Disguised, NullObject, View, is_plain, own
from phasewatch.monitor.core.errors import RefusedError

SILENT = frozenset({"log", "log_metrics", "save_metrics", "store_flos"})
"""Methods of a Trainer that do nothing on a copy."""

LENT = frozenset({"compute_loss_func", "label_smoother"})
"""What a Trainer computes its loss with; called, never changed."""


class TrainerView(Disguised):
    """Runs a Trainer's own methods on a copy of its model; what they write stays here.

    Args:
        live: The live trainer.
        model: The copy that stands for its model.
    """

    def __init__(self, live: Any, model: nn.Module) -> None:
        accelerator = View(
            live.accelerator,
            "self.accelerator",
            lent={
                "unwrap_model": lambda: _same,
                "gather": lambda: _same,
                "gather_for_metrics": lambda: _same,
                "reduce": lambda: _same,
            },
            plain=True,
        )
        super().__init__(
            live,
            "self",
            lent={
                "model": lambda: model,
                "model_wrapped": lambda: model,
                "accelerator": lambda: accelerator,
                "args": lambda: View(live.args, "self.args", plain=True),
                "state": lambda: View(live.state, "self.state", plain=True),
                "control": lambda: NullObject(),
                **{name: (lambda name=name: getattr(live, name, None)) for name in LENT},  # type: ignore[misc]
            },
            plain=True,
        )

    def __getattr__(self, attribute: str) -> Any:
        live = vars(self)["_view_of"][0]
        if attribute in SILENT:
            return _nothing
        if attribute in vars(self)["_view_of"][3]:
            return super().__getattr__(attribute)
        found = inspect.getattr_static(type(live), attribute, None)
        if isinstance(found, FunctionType) and attribute not in vars(live):
            return MethodType(found, self)
        if isinstance(found, staticmethod):
            return found.__func__
        if isinstance(found, property) and found.fget is not None:
            return found.fget(self)
        value = vars(live).get(attribute)
        if isinstance(value, nn.Module):
            return _lent_module(attribute, value)
        if isinstance(value, FunctionType):
            return value
        if isinstance(value, dict) and not attribute.startswith("__"):
            kept = vars(self)[attribute] = own(value)
            return kept
        if attribute in vars(live) and not attribute.startswith("__") and is_plain(value):
            return own(value)  # counters and settings, private ones too
        return super().__getattr__(attribute)


def _lent_module(name: str, module: nn.Module) -> nn.Module:
    """A loss, or a teacher: as it is, where calling it changes nothing."""
    if any(parameter.requires_grad for parameter in module.parameters()):
        raise RefusedError(
            f"compute_loss uses self.{name}, a module that is trained beside the model; "
            "give the callback a loss_fn="
        )
    if any(child.training for child in module.modules()) and any(True for _ in module.buffers()):
        raise RefusedError(
            f"compute_loss uses self.{name}, a module in train mode with buffers that a call may "
            "change; put it into eval mode, or give the callback a loss_fn="
        )
    return module


def _same(value: Any, *_: Any, **__: Any) -> Any:
    return value


def _nothing(*_: Any, **__: Any) -> None:
    return None
