"""Stand-ins for live objects on a muted copy.

What may be read is lent, writing stays with the copy, and everything else is refused with a message
that says what to do instead. What is lent of a trainer, and of what hangs from it: see `lent`.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from functools import partial
from pathlib import PurePath
from typing import Any

import torch

from phasewatch.monitor.core.errors import RefusedError

WAY_OUT = "give the monitor a loss_fn=, or the module a method probe_loss(batch)"

_PLAIN = (
    int, float, complex, str, bytes, bool, type(None), type, enum.Enum, PurePath, slice, range,
    torch.device, torch.dtype, torch.Size, datetime.timedelta, datetime.datetime,
)  # fmt: skip


def is_plain(value: Any) -> bool:
    """Whether a value is data through and through: numbers, text, tensors, containers of them."""
    if isinstance(value, (*_PLAIN, torch.Tensor)):
        return True
    if isinstance(value, Mapping):
        return all(map(is_plain, value.values())) and all(map(is_plain, value))
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(is_plain, value))
    return False


def own(value: Any) -> Any:
    """A value for a copy to keep: what it does to containers and tensors reaches nobody else."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        kept = copy.copy(value)  # a defaultdict stays one
        kept.update({key: own(item) for key, item in value.items()})
        return kept
    if type(value) in (list, tuple, set):
        return type(value)(map(own, value))
    if is_dataclass(value) and not isinstance(value, type):
        return copy.deepcopy(value)
    return value


class View:
    """Lends what is named of a live object; refuses its other attributes.

    Args:
        live: The live object.
        name: What the copy calls it, for messages.
        readable: Attributes that may be read as they are; containers are copied.
        lent: Attributes that are made for the copy when it first asks for them.
        plain: Whether every public attribute that is plain data may be read, too.
    """

    def __init__(
        self,
        live: Any,
        name: str,
        readable: frozenset[str] = frozenset(),
        lent: Mapping[str, Callable[[], Any]] | None = None,
        *,
        plain: bool = False,
    ) -> None:
        vars(self).update(_view_of=(live, name, readable, dict(lent or {}), plain))

    def __getattr__(self, attribute: str) -> Any:
        if attribute == "_view_of" or attribute.startswith("__"):
            raise AttributeError(attribute)
        live, name, readable, lent, plain = vars(self)["_view_of"]
        if attribute in lent:
            value = vars(self)[attribute] = lent[attribute]()
            return value
        if attribute in readable:
            return own(getattr(live, attribute))
        if not hasattr(type(live), attribute) and attribute not in vars(live):
            raise AttributeError(f"{type(live).__name__!r} object has no attribute {attribute!r}")
        if plain and not attribute.startswith("_"):
            value = getattr(live, attribute)
            if is_plain(value):
                return own(value)
        raise RefusedError(
            f"the training step uses {name}.{attribute}, which a copy must not; {WAY_OUT}"
        )


class Disguised(View):
    """A view that `isinstance` takes for the live object."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(vars(self)["_view_of"][0])


class NullObject:
    """Takes any call and any attribute, and does nothing: a logger, an experiment, a bar."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *_: Any, **__: Any) -> Any:
        """Take anything."""
        return self

    def __getitem__(self, key: Any) -> Any:
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        return None

    def __enter__(self) -> NullObject:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __iter__(self) -> Iterator[Any]:
        return iter(())


class NullLogger(NullObject):
    """A logger that logs nothing, and says of the live one where and as what it logs."""

    _READABLE = frozenset({"log_dir", "name", "root_dir", "save_dir", "version"})

    def __init__(self, live: Any) -> None:
        vars(self)["_live"] = live

    def __getattr__(self, name: str) -> Any:
        live = vars(self)["_live"]
        if name in self._READABLE and hasattr(type(live), name):
            return getattr(live, name)
        return super().__getattr__(name)


class Sized(View):
    """A loader of which the length and the settings are known, and the data set's attributes."""

    def __init__(self, live: Any, name: str) -> None:
        inner = {p: partial(self._part, p) for p in ("dataset", "sampler", "batch_sampler")}
        super().__init__(live, name, lent=inner, plain=True)

    def _part(self, part: str) -> Any:
        live, name, *_ = vars(self)["_view_of"]
        value = getattr(live, part)
        return None if value is None else DataView(value, f"{name}.{part}")

    def __len__(self) -> int:
        return len(vars(self)["_view_of"][0])

    def __iter__(self) -> Iterator[Any]:
        raise RefusedError(f"the training step iterates over a loader of the trainer; {WAY_OUT}")


class DataView(Disguised):
    """A data set: its length, and the attributes that are data, which are not copied."""

    def __getattr__(self, attribute: str) -> Any:
        if not attribute.startswith("_"):
            live, name, *_ = vars(self)["_view_of"]
            value = getattr(live, attribute, self)
            if value is not self and not callable(value):
                return value if is_plain(value) else DataView(value, f"{name}.{attribute}")
        return super().__getattr__(attribute)

    def __len__(self) -> int:
        return len(vars(self)["_view_of"][0])

    def __getitem__(self, _: Any) -> Any:
        # Reading may draw random numbers, fill a cache, or count.
        name = vars(self)["_view_of"][1]
        raise RefusedError(f"the training step reads items of {name}; {WAY_OUT}")

    def __iter__(self) -> Iterator[Any]:
        self[0]
        raise AssertionError


class ParameterState(Mapping[Any, dict[str, Any]]):
    """An optimizer's state by parameter, in clones that are made when they are asked for.

    Args:
        live: The live state, by live parameter.
        parameters: Of the live optimizer, in order.
        stand_in: What a live parameter is on the copy at this moment.
    """

    def __init__(
        self, live: Mapping[Any, Any], parameters: Sequence[Any], stand_in: Callable[[Any], Any]
    ) -> None:
        self._live = live
        self._parameters = [p for p in parameters if p in live]
        self._stand_in = stand_in

    def __len__(self) -> int:
        return len(self._parameters)

    def __iter__(self) -> Iterator[Any]:
        return map(self._stand_in, self._parameters)

    def __getitem__(self, key: Any) -> dict[str, Any]:
        for parameter in self._parameters:
            if key is parameter or key is self._stand_in(parameter):
                return {name: own(value) for name, value in self._live[parameter].items()}
        raise KeyError(key)


class Parameters(Sequence[Any]):
    """An optimizer's parameters as they are on the copy: swapped at each evaluation.

    Args:
        live: Of the live optimizer, in order.
        stand_in: What a live parameter is on the copy at this moment.
    """

    def __init__(self, live: Sequence[Any], stand_in: Callable[[Any], Any]) -> None:
        self._live = live
        self._stand_in = stand_in

    def __len__(self) -> int:
        return len(self._live)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._stand_in(parameter) for parameter in self._live[index]]
        return self._stand_in(self._live[index])


class InertOptimizer(Disguised):
    """Shows the settings and the state of an optimizer; steps nowhere.

    Args:
        live: The live optimizer, or Lightning's wrapper of one.
        stand_in: What a live parameter is on the copy at this moment.
    """

    def __init__(self, live: Any, stand_in: Callable[[Any], Any]) -> None:
        super().__init__(live, "optimizer")
        groups = live.param_groups
        everything = [parameter for group in groups for parameter in group["params"]]
        vars(self).update(
            param_groups=[
                {key: own(value) for key, value in group.items() if key != "params"}
                | {"params": Parameters(group["params"], stand_in)}
                for group in groups
            ],
            defaults=dict(live.defaults),
            state=ParameterState(live.state, everything, stand_in),
        )

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


class InertScheduler(Disguised):
    """Shows the settings of a scheduler and its last learning rates; steps nowhere.

    Args:
        live: The live scheduler.
        optimizer: The optimizer it belongs to, as the copy sees it.
    """

    def __init__(self, live: Any, optimizer: Any = None) -> None:
        super().__init__(live, "lr_scheduler", plain=True)
        vars(self).update(optimizer=optimizer)

    def step(self, *_: Any, **__: Any) -> None:
        """Do nothing."""

    def get_last_lr(self) -> list[float]:
        """Learning rates, as the live scheduler last set them."""
        return list(getattr(vars(self)["_view_of"][0], "_last_lr", []))
