"""Metrics the module logs, read where reading starts no computation and no communication.

Values on single steps are at hand when a batch ends. Values of an epoch are read after Lightning
has reduced them for all ranks, at the next hook: asked for earlier by one rank alone, they would
start a collective that the other ranks do not join.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

TRAIN_LOSS = "train_loss"


class LoggedMetrics:
    """Tells which logged values are new, and of which step.

    Attributes:
        own_train_loss: Whether `train_loss` is known from the steps' outputs; the module's metric
            of that name is then left out.
    """

    def __init__(self) -> None:
        self.own_train_loss = False
        self._seen: dict[str, Any] = {}
        self._held: dict[str, torch.Tensor] = {}
        self._addresses: dict[str, int] = {}
        self._names: tuple[str, ...] = ()
        self._chosen: list[str] = []
        self._left_out = False

    def of_step(self, trainer: Any) -> dict[str, Any]:
        """Values logged on the step that just ended; those left from an earlier one are not."""
        connector = getattr(trainer, "_logger_connector", None)
        if _results(trainer) is None or connector is None:
            return {}
        values = self._kept(connector.metrics["callback"])
        # A value that was not logged again is the same memory, which is held here: no other
        # tensor can have it.
        addresses = {name: value.data_ptr() for name, value in values.items()}
        before, self._addresses, self._held = self._addresses, addresses, values
        return {name: v for name, v in values.items() if before.get(name) != addresses[name]}

    def before_validation(self, trainer: Any) -> None:
        """Remember what was there, so that what validation logs is told from it."""
        self._seen = dict(_reduced(trainer))

    def of_validation(self, trainer: Any) -> dict[str, Any]:
        """Values that the validation which just ended has logged."""
        return self._kept(self._fresh(trainer))

    def of_epoch(self, trainer: Any) -> dict[str, Any]:
        """Values over the training epoch that was reduced last."""
        results = _results(trainer)
        names = {
            item.meta.forked_name(on_step=False)
            for item in (results or {}).values()
            if item.meta.on_epoch
        }
        fresh = self._fresh(trainer)
        return self._kept({name: value for name, value in fresh.items() if name in names})

    def skip(self, trainer: Any) -> None:
        """Take what is there as old."""
        self._seen = dict(_reduced(trainer))

    def _fresh(self, trainer: Any) -> dict[str, Any]:
        values = dict(_reduced(trainer))
        fresh = {name: v for name, v in values.items() if v is not self._seen.get(name)}
        self._seen = values
        return fresh

    def _kept(self, values: Mapping[str, Any]) -> dict[str, Any]:
        names = tuple(values)
        if names != self._names or self.own_train_loss is not self._left_out:
            self._names, self._left_out = names, self.own_train_loss
            own = (TRAIN_LOSS, f"{TRAIN_LOSS}_step") if self.own_train_loss else ()
            self._chosen = [n for n in names if n not in own and not _is_fork(n, values)]
        return {
            name: value
            for name in self._chosen
            if isinstance(value := values[name], torch.Tensor) and value.numel() == 1
        }


def held(values: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What values are now, while the trainer may go on adding to the same tensors.

    Where reading waits for no device they are read; the others are copied, in one go each device.
    """
    kept: dict[str, Any] = {}
    copied: dict[tuple[torch.device, torch.dtype], list[str]] = {}
    for name, value in values.items():
        if value.is_cpu:
            kept[name] = value.item()
        else:
            kept[name] = None  # keeps its place
            copied.setdefault((value.device, value.dtype), []).append(name)
    for names in copied.values():
        together = torch.stack([values[name].detach().reshape(()) for name in names])
        kept.update(zip(names, together.unbind(), strict=True))
    return kept


def _is_fork(name: str, values: Iterable[str]) -> bool:
    """Whether this is a second name of a value that is there under its first."""
    return any(
        name.endswith(suffix) and name.removesuffix(suffix) in values
        for suffix in ("_step", "_epoch")
    )


def _results(trainer: Any) -> Any:
    return getattr(getattr(trainer, "fit_loop", None), "_results", None)


def _reduced(trainer: Any) -> Mapping[str, Any]:
    """Metrics as last reduced. The public property would reduce again what is being gathered."""
    connector = getattr(trainer, "_logger_connector", None)
    values = getattr(connector, "_callback_metrics", None)
    return values if values is not None else {}
