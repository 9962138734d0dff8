"""Records everything a training run is made of, and says where two runs differ by a bit.

A `Record` holds what every hook saw (generators, global modes, batches, losses, weights, gradients,
optimizer state, plain attributes) and what was left at the end. Two records are compared entry by
entry: the first difference in time is the one that names the culprit.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from support.pictures import attributes, freeze, generators, modes, optimizers, weights


@dataclass
class Record:
    """Everything one run was made of.

    Attributes:
        events: (hook, what was seen there), in time order.
        final: What was left after the run, by field.
        error: What `fit` raised, if anything.
    """

    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    final: dict[str, Any] = field(default_factory=dict)
    error: BaseException | None = None

    @property
    def num_steps(self) -> int:
        return int(self.final["global_step"])


def differences(first: Record, second: Record, *, ignore: Iterable[str] = ()) -> list[str]:
    """Every difference of two runs, the earliest first; empty if they are equal bit for bit."""
    found: list[str] = []
    for number, ((hook, seen), (other_hook, other_seen)) in enumerate(
        zip(first.events, second.events, strict=False)
    ):
        if hook != other_hook:
            found.append(f"event {number}: {hook} against {other_hook}")
            break
        found += [f"event {number} {hook}: {text}" for text in _diff(seen, other_seen, ignore)]
    if len(first.events) != len(second.events):
        found.append(f"number of events: {len(first.events)} against {len(second.events)}")
    found += [f"at the end: {text}" for text in _diff(first.final, second.final, ignore)]
    if repr(first.error) != repr(second.error):
        found.append(f"raised: {first.error!r} against {second.error!r}")
    return found


def _diff(first: Any, second: Any, ignore: Iterable[str], path: str = "") -> list[str]:
    if isinstance(first, dict) and isinstance(second, dict):
        found: list[str] = []
        for key in [*first, *(key for key in second if key not in first)]:
            if key in ignore:
                continue
            here = f"{path}.{key}" if path else str(key)
            if key not in first or key not in second:
                found.append(f"{here}: only in the {'first' if key in first else 'second'} run")
            else:
                found += _diff(first[key], second[key], ignore, here)
        return found
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        return [
            text
            for number, (one, other) in enumerate(zip(first, second, strict=True))
            for text in _diff(one, other, ignore, f"{path}[{number}]")
        ]
    return [] if first == second else [f"{path}: {first!r} against {second!r}"]


def seed_everything(seed: int = 7) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)


def make_recorder(pl: ModuleType, record: Record) -> Any:
    """A callback of namespace `pl` that writes into `record`. Give it last in the list.

    It reads no metrics while training runs: reading them could hide that the monitor does.
    """

    owned: dict[str, nn.Parameter] = {}

    def see(hook: str, trainer: Any, **more: Any) -> None:
        seen = {"generators": generators(), "modes": modes(), "global_step": trainer.global_step}
        record.events.append((hook, seen | more))

    def whole(trainer: Any, module: Any) -> dict[str, Any]:
        return {
            "weights": weights(module),
            "attributes": attributes(module),
            "optimizers": optimizers(trainer),
            "current_hook": module._current_fx_name,
            "should_stop": trainer.should_stop,
            "replaced": _replaced(owned, module),
        }

    class Recorder(pl.callbacks.Callback):  # type: ignore[name-defined, misc]
        def on_train_start(self, trainer, module):
            owned.update(module.named_parameters())
            see("on_train_start", trainer, **whole(trainer, module))

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            more = {"batch": freeze(batch), "batch_idx": batch_idx}
            see("on_train_batch_start", trainer, **more, **whole(trainer, module))

        def on_before_optimizer_step(self, trainer, module, optimizer):
            see("on_before_optimizer_step", trainer, weights=weights(module))

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            more = {"outputs": freeze(outputs), "batch": freeze(batch)}
            see("on_train_batch_end", trainer, **more, **whole(trainer, module))

        def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
            see("on_validation_batch_start", trainer, batch=freeze(batch))

        def on_validation_batch_end(
            self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0
        ):
            see("on_validation_batch_end", trainer, outputs=freeze(outputs))

        def on_exception(self, trainer, module, exception):
            see("on_exception", trainer, kind=type(exception).__name__)

    def plain(hook: str) -> Callable[..., None]:
        return lambda self, trainer, module, *rest, **more: see(hook, trainer)

    for hook in (
        "on_fit_start", "on_sanity_check_start", "on_sanity_check_end",
        "on_train_epoch_start", "on_train_epoch_end", "on_validation_start", "on_validation_end",
        "on_train_end", "on_fit_end", "teardown",
    ):  # fmt: skip
        setattr(Recorder, hook, plain(hook))
    return Recorder()


def _replaced(owned: Mapping[str, nn.Parameter], module: nn.Module) -> list[str]:
    """Names of parameters that are not the objects training started with."""
    return [name for name, p in module.named_parameters() if owned.get(name) is not p]


def make_logger(pl: ModuleType) -> Any:
    """A logger of namespace `pl` that keeps its records in memory."""

    class MemoryLogger(pl.loggers.logger.Logger):  # type: ignore[name-defined, misc]
        def __init__(self):
            super().__init__()
            self.records = []

        name = "memory"
        version = 0

        def log_metrics(self, metrics, step=None):
            self.records.append((step, freeze(dict(metrics))))

        def log_hyperparams(self, params, *args, **kwargs):
            self.records.append(("hyperparams", freeze(dict(params))))

    return MemoryLogger()


def finish(record: Record, trainer: Any, module: nn.Module, watched: Mapping[str, Any]) -> None:
    """Write down what is left after a run."""
    record.final = {
        "weights": weights(module),
        "attributes": attributes(module),
        "optimizers": optimizers(trainer),
        "generators": generators(),
        "modes": modes(),
        "logged": _logged(trainer.logger),
        "callback_metrics": freeze(dict(trainer.callback_metrics)),
        "logged_metrics": freeze(dict(trainer.logged_metrics)),
        "global_step": trainer.global_step,
        "current_epoch": trainer.current_epoch,
        "state": str(trainer.state.status),
        "watched": {name: freeze(value) for name, value in watched.items()},
    }


def _logged(logger: Any) -> list[Any]:
    records = getattr(logger, "records", None)
    if not isinstance(records, list):
        return []
    # What the monitor logs has names of its own: everything else must be as it would be without.
    return [
        list(entry) for entry in records if not all(n.startswith("phasewatch/") for n in entry[1])
    ]


def quietly(function: Callable[[], Any]) -> Any:
    """Call without Lightning's advice about workers, loggers and intervals becoming errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function()
