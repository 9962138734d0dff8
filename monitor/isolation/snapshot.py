"""A snapshot of what is alive, for the rare cases in which a copy is not enough.

A measurement works on copies. A function that closes over the live module, or a generator kept
in a class, can still reach what is alive. The snapshot sees it and puts it back, and reports
what it had to repair. Out of its reach: generators held in closures or by C extensions, and
state behind `__slots__`.
"""

from __future__ import annotations

import random
import re
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from phasewatch.monitor.isolation.fully_sharded import is_dtensor, local_of

MAX_BYTES = 256 * 2**20
"""Tensors and arrays beyond this total are watched by their version only, and not copied."""

MAX_OBJECTS = 100_000
"""The walk stops after this many objects."""

_ATOMIC = (int, float, complex, str, bytes, bool, type(None), type, torch.dtype, torch.device)
_FRAMEWORKS = frozenset(
    {"torch", "lightning", "pytorch_lightning", "lightning_fabric", "torchmetrics", "numpy"}
)
_NEUTRAL = frozenset({"abc", "builtins", "typing"})
_IN_DICTIONARY = re.compile(r"\._(?:modules|parameters|buffers)\['([^']*)'\]")
_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
_CONTAINERS = (list, dict, set, deque)


class LiveSnapshot:
    """The state of objects that must not change: attributes, containers, tensors, generators.

    The roots are followed through their attributes into containers, modules, datasets and objects
    of the packages that define the roots. Objects of other packages are left alone: a client with
    threads of its own may change while a measurement runs. `.grad` and `requires_grad` of
    parameters, attributes of the users' classes, and generators among the globals of the scripts
    that define those, are included.

    Args:
        roots: Modules, datasets, or other objects to watch.
        max_bytes: How much may be copied; see `MAX_BYTES`.
    """

    def __init__(self, roots: Iterable[Any], *, max_bytes: int = MAX_BYTES) -> None:
        self._bytes_left = max_bytes
        self._undo: list[tuple[str, Callable[[], bool]]] = []
        self._seen: dict[int, Any] = {}  # holds a reference, so that no id is used twice
        parameters: list[tuple[str, torch.Tensor]] = []
        classes: dict[type, None] = {}
        roots = list(roots)
        self._packages = {
            _package(cls) for root in roots for cls in type(root).__mro__ if _is_users(cls)
        }
        todo = [(type(root).__name__, root, True) for root in roots]
        while todo and len(self._seen) < MAX_OBJECTS:
            name, value, is_root = todo.pop()
            if isinstance(value, _ATOMIC) or id(value) in self._seen:
                continue
            self._seen[id(value)] = value
            if isinstance(value, nn.Parameter):
                parameters.append((name, value))
            elif isinstance(value, torch.Tensor):
                self._watch_tensor(name, value)
            elif isinstance(value, np.ndarray):
                self._watch_array(name, value)
            elif isinstance(value, _GENERATORS):
                self._watch_generator(name, value)
            elif isinstance(value, (*_CONTAINERS, tuple)):
                if not isinstance(value, tuple):
                    self._watch_container(name, value)
                todo.extend((f"{name}[{key!r}]", item, False) for key, item in _items(value))
            elif is_root or self._is_followed(value):
                self._watch_attributes(name, value)
                todo.extend((f"{name}.{key}", item, False) for key, item in _attributes(value))
                classes.update(dict.fromkeys(c for c in type(value).__mro__ if _is_users(c)))
        for name, value in parameters:  # last: what is copied first is what cannot be recomputed
            self._watch_tensor(name, value)
            self._watch_flags(name, value)
        self._watch_classes(classes)

    def restore(self) -> list[str]:
        """Put back what changed; may be called again.

        Returns:
            What had to be repaired, in words.
        """
        return [_IN_DICTIONARY.sub(r".\1", name) for name, undo in reversed(self._undo) if undo()]

    def _is_followed(self, value: Any) -> bool:
        if isinstance(value, (nn.Module, Dataset)):
            return True
        packages = {_package(cls) for cls in type(value).__mro__} - _NEUTRAL
        return hasattr(value, "__dict__") and bool(packages) and packages <= self._packages

    def _add(self, name: str, undo: Callable[[], bool]) -> None:
        self._undo.append((name, undo))

    def _watch_attributes(self, name: str, owner: Any) -> None:
        current = getattr(owner, "__dict__", None)
        if isinstance(current, dict):
            self._watch_container(f"attributes of {name}", current)

    def _watch_container(self, name: str, value: Any) -> None:
        saved = value.copy()

        def undo() -> bool:
            if _same_items(value, saved):
                return False
            value.clear()
            (value.extend if isinstance(value, (list, deque)) else value.update)(saved)
            return True

        self._add(name, undo)

    def _watch_tensor(self, name: str, tensor: torch.Tensor) -> None:
        if tensor.is_meta or tensor.layout != torch.strided or hasattr(tensor, "materialize"):
            return
        if is_dtensor(tensor):  # a shard: to compare the whole would wait for others
            tensor = local_of(tensor.detach())
        version, shape = _version(tensor), tensor.shape
        if not self._spend(tensor.nbytes):
            self._add(f"{name} (too large to be put back)", lambda: _version(tensor) != version)
            return
        saved = tensor.detach().clone()

        def undo() -> bool:
            if tensor.shape != shape:
                tensor.data = saved.clone()
                return True
            if _version(tensor) == version and _same_bits(tensor, saved):
                return False
            tensor.data.copy_(saved)
            return True

        self._add(name, undo)

    def _watch_array(self, name: str, array: np.ndarray[Any, Any]) -> None:
        if array.dtype.hasobject or not array.flags.writeable or not self._spend(array.nbytes):
            return
        saved = array.copy()

        def undo() -> bool:
            if array.tobytes() == saved.tobytes():
                return False
            array[...] = saved
            return True

        self._add(name, undo)

    def _watch_generator(self, name: str, generator: Any) -> None:
        read, write = _state_access(generator)
        saved = read()

        def undo() -> bool:
            if _same_state(read(), saved):
                return False
            write(saved)
            return True

        self._add(f"random generator {name}", undo)

    def _watch_flags(self, name: str, parameter: torch.Tensor) -> None:
        requires_grad, gradient = parameter.requires_grad, parameter.grad

        def undo() -> bool:
            if parameter.requires_grad == requires_grad and parameter.grad is gradient:
                return False
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient
            return True

        self._add(f"gradient of {name}", undo)

    def _watch_classes(self, classes: Iterable[type]) -> None:
        scripts: dict[str, None] = {}
        for cls in classes:
            scripts[cls.__module__] = None
            self._watch_class(cls)
        for script in scripts:
            for key, value in list(vars(sys.modules[script]).items()):
                if isinstance(value, _GENERATORS) and id(value) not in self._seen:
                    self._seen[id(value)] = value
                    self._watch_generator(f"{script}.{key}", value)

    def _watch_class(self, cls: type) -> None:
        saved = {key: value for key, value in vars(cls).items() if not key.startswith("__")}
        for key, value in saved.items():
            name = f"{cls.__name__}.{key}"
            if id(value) in self._seen:
                continue
            if isinstance(value, _GENERATORS):
                self._watch_generator(name, value)
            elif isinstance(value, _CONTAINERS):
                self._watch_container(name, value)
            elif isinstance(value, torch.Tensor):
                self._watch_tensor(name, value)
            else:
                continue
            self._seen[id(value)] = value

        def undo() -> bool:
            current = {key: value for key, value in vars(cls).items() if not key.startswith("__")}
            changed = [key for key, value in saved.items() if current.get(key, cls) is not value]
            added = [key for key in current if key not in saved and not key.startswith("_abc_")]
            for key in changed:
                setattr(cls, key, saved[key])
            for key in added:
                delattr(cls, key)
            return bool(changed or added)

        self._add(f"attributes of class {cls.__name__}", undo)

    def _spend(self, num_bytes: int) -> bool:
        if num_bytes > self._bytes_left:
            return False
        self._bytes_left -= num_bytes
        return True


def _package(cls: type) -> str:
    return cls.__module__.partition(".")[0]


def _is_users(cls: type) -> bool:
    return _package(cls) not in (_FRAMEWORKS | _NEUTRAL) and cls.__module__ in sys.modules


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    return iter(value.items()) if isinstance(value, dict) else enumerate(list(value))


def _attributes(owner: Any) -> Iterator[tuple[str, Any]]:
    return iter(list(getattr(owner, "__dict__", {}).items()))


def _same_items(value: Any, saved: Any) -> bool:
    if len(value) != len(saved):
        return False
    if isinstance(value, set):
        return bool(value == saved)
    if isinstance(value, dict):
        pairs = zip(value.items(), saved.items(), strict=True)
        return all(a is c and b is d for (a, b), (c, d) in pairs)
    return all(a is b for a, b in zip(value, saved, strict=True))


def _version(tensor: torch.Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _same_bits(tensor: torch.Tensor, saved: torch.Tensor) -> bool:
    # `.data` writes and numpy views do not move the version. Not done on an accelerator, where
    # each comparison waits for the device.
    if tensor.device.type != "cpu":
        return True
    return torch.equal(_words(tensor), _words(saved))


def _words(tensor: torch.Tensor) -> torch.Tensor:
    """The bits as integers, in which NaN equals itself; eight bytes at a time where they fit."""
    flat = tensor.detach().reshape(-1).contiguous()
    return flat.view(torch.int64 if flat.nbytes % 8 == 0 else torch.uint8)


def _state_access(generator: Any) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    if isinstance(generator, random.Random):
        return generator.getstate, generator.setstate
    if isinstance(generator, np.random.Generator):
        source = generator.bit_generator
        return (lambda: source.state), (lambda state: setattr(source, "state", state))
    if isinstance(generator, np.random.RandomState):
        return (lambda: generator.get_state(legacy=False)), generator.set_state
    return generator.get_state, generator.set_state


def _same_state(state: Any, saved: Any) -> bool:
    if isinstance(state, torch.Tensor):
        return torch.equal(state, saved)
    if isinstance(state, dict):
        return all(_same_state(state[key], saved[key]) for key in saved)
    if isinstance(state, np.ndarray):
        return bool(np.array_equal(state, saved))
    return bool(state == saved)
