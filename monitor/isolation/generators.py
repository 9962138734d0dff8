"""The global generators of numpy and `random`, apart for some threads.

Both belong to the whole process. Where another thread may draw from them at any moment, a thread
can neither seed them nor put them back unseen. So a thread that must not be felt is given streams
of its own, which look like the global ones to it: for `random` another object is asked, and for
numpy its own state is put in for the time of each draw, under the lock that numpy draws under.

Not seen are `random.random` and `random.getrandbits` where somebody has imported these functions
themselves before (`from random import random`).
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from phasewatch.monitor.core.errors import RefusedError

_SHARED = cast(random.Random, random.seed.__self__)  # type: ignore[attr-defined]
_RANDOM_FUNCTIONS = ("random", "getrandbits", "seed", "getstate", "setstate")
"""Those of the module that do not ask the shared object's class again."""

_NUMPY_FUNCTIONS = ("seed", "set_state")
"""These change what numpy keeps beside the generator, without its lock."""


@dataclass
class _Streams:
    """What one thread draws from in place of the global generators."""

    seed: int
    process: int = field(default_factory=os.getpid)
    python: random.Random = field(init=False)
    numpy: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.python = random.Random(self.seed)  # noqa: S311 - it stands in for the shared one
        bits = _bit_generator()(self.seed % 2**32)  # the kind that the user has put there
        self.numpy = np.random.RandomState(bits).get_state(legacy=False)


def _bit_generator() -> Any:
    """The class of numpy's global bit generator."""
    found: Any = type(np.random.mtrand._rand._bit_generator)
    return getattr(found, "stands_for", found)


_apart: dict[int, _Streams] = {}
_changing = threading.Lock()
_undo: list[Callable[[], None]] = []


@contextlib.contextmanager
def own_streams(seed: int) -> Iterator[None]:
    """Let this thread draw from streams of its own; others go on with the global ones.

    Args:
        seed: Seed of the streams.
    """
    thread = threading.get_ident()
    with _changing:
        before = _apart.get(thread)
        if not _apart:
            _undo[:] = [_part_python(), _part_numpy()]
        _apart[thread] = _Streams(seed)
    try:
        yield
    finally:
        with _changing:
            if before is not None:
                _apart[thread] = before
            else:
                del _apart[thread]
            if not _apart:
                for undo in _undo:
                    undo()
                _undo.clear()


def reseed(seed: int) -> None:
    """Seed this thread's own streams anew, if it has any.

    Args:
        seed: Seed of the streams.
    """
    thread = threading.get_ident()
    if thread in _apart:
        _apart[thread] = _Streams(seed)


def _streams() -> _Streams | None:
    """The streams of this thread, if it has its own; a fork has generators of its own."""
    streams = _apart.get(threading.get_ident())
    return streams if streams is not None and streams.process == os.getpid() else None


class _Parted(random.Random):
    """What the shared object of `random` becomes: each thread's draws go to its own stream."""

    def random(self) -> float:
        own = _streams()
        return super().random() if own is None else own.python.random()

    def getrandbits(self, k: int, /) -> int:
        own = _streams()
        return super().getrandbits(k) if own is None else own.python.getrandbits(k)

    def seed(self, a: Any = None, version: int = 2) -> None:
        own = _streams()
        super().seed(a, version) if own is None else own.python.seed(a, version)

    def getstate(self) -> tuple[Any, ...]:
        own = _streams()
        return super().getstate() if own is None else own.python.getstate()

    def setstate(self, state: tuple[Any, ...]) -> None:
        own = _streams()
        super().setstate(state) if own is None else own.python.setstate(state)

    @property
    def gauss_next(self) -> float | None:
        """The second number of a pair, kept for the next call of `gauss`."""
        own = _streams()
        kept = vars(self) if own is None else vars(own.python)
        return cast("float | None", kept.get("gauss_next"))

    @gauss_next.setter
    def gauss_next(self, value: float | None) -> None:
        own = _streams()
        (vars(self) if own is None else vars(own.python))["gauss_next"] = value


def _part_python() -> Callable[[], None]:
    before = type(_SHARED), {name: getattr(random, name) for name in _RANDOM_FUNCTIONS}
    _SHARED.__class__ = _Parted
    for name in _RANDOM_FUNCTIONS:
        setattr(random, name, getattr(_SHARED, name))

    def undo() -> None:
        kind, functions = before
        for name, function in functions.items():
            setattr(random, name, function)
        _SHARED.__class__ = kind

    return undo


class _Turn:
    """The lock of numpy's global generator; for a thread apart, its state is in while it is held.

    Args:
        lock: The generator's own lock.
    """

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self._holder: int | None = None
        self._depth = 0
        self._others: dict[str, Any] | None = None

    def __enter__(self) -> None:
        thread = threading.get_ident()
        if self._holder != thread:
            self._lock.acquire()
            self._holder = thread
        self._depth += 1
        own = _streams()
        if own is not None and self._depth == 1:
            try:
                others = _numpy_state()
                np.random.mtrand._rand.set_state(own.numpy)
                self._others = others
            except BaseException:
                self.__exit__()
                raise

    def __exit__(self, *_: object) -> None:
        own, others = _streams(), self._others
        if own is not None and others is not None and self._depth == 1:
            own.numpy = _numpy_state()
            np.random.mtrand._rand.set_state(others)
            self._others = None
        self._depth -= 1
        if not self._depth:
            self._holder = None
            self._lock.release()

    def acquire(self, *_: Any) -> bool:
        self.__enter__()
        return True

    def release(self) -> None:
        self.__exit__()


def _numpy_state() -> dict[str, Any]:
    return np.random.mtrand._rand.get_state(legacy=False)


def _stand_in(real: Any) -> Any:
    """A bit generator that is another one, but for its lock."""

    class StandIn(type(real)):  # type: ignore[misc]
        stands_for = type(real)
        capsule = property(lambda _: real.capsule)
        lock = _Turn(real.lock)
        state = property(
            lambda _: real.state, lambda _, state: type(real).state.__set__(real, state)
        )

        def _legacy_seeding(self, seed: Any) -> None:
            real._legacy_seeding(seed)

    return StandIn(0)


def _part_numpy() -> Callable[[], None]:
    if not hasattr(np.random, "set_bit_generator"):  # numpy below 1.24
        return lambda: None
    real = np.random.get_bit_generator()  # type: ignore[attr-defined]
    ours = _stand_in(real)
    functions = {name: getattr(np.random, name) for name in _NUMPY_FUNCTIONS}

    def put(generator: Any) -> None:
        with real.lock:  # nobody draws meanwhile; a second number of a pair is kept
            state = _numpy_state()
            np.random.set_bit_generator(generator)  # type: ignore[attr-defined]
            np.random.mtrand._rand.set_state(state)

    def guarded(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if _streams() is not None:
                raise RefusedError(
                    f"what is measured calls np.random.{name}, and another thread of this process "
                    "may draw from the same generator; give a loss that does not seed (loss_fn=)"
                )
            return functions[name](*args, **kwargs)

        return call

    put(ours)
    for name in functions:
        setattr(np.random, name, guarded(name))

    def undo() -> None:
        for name, function in functions.items():
            setattr(np.random, name, function)
        if np.random.get_bit_generator() is ours:  # type: ignore[attr-defined]
            put(real)

    return undo
