"""Other threads that draw random numbers, and what to do beside them.

The generators of torch, numpy and `random` belong to the whole process. To seed them for a
measurement and to put them back afterwards is invisible only while nobody else draws: a thread that
prepares batches would get our numbers, and then the same ones again. So where such a thread lives,
the generators are left alone: what is measured draws from streams of its own in place of numpy's
and Python's, and a draw from torch's is refused before it happens.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset

from phasewatch.monitor.core.errors import RefusedError
from phasewatch.monitor.isolation.generators import own_streams

OWN_PREFIX = "phasewatch-"
"""What the names of our own threads begin with; none of them draws."""

QUIET_PACKAGES = frozenset(
    {
        *("torch", "lightning", "pytorch_lightning", "lightning_fabric", "tqdm", "rich", "wandb"),
        *("tensorboard", "mlflow", "comet_ml", "neptune", "clearml", "sentry_sdk", "IPython"),
        *("ipykernel", "zmq", "tornado", "debugpy", "_pydevd_bundle", "pydevd", "multiprocessing"),
        *("prometheus_client", "socketserver", "http", "logging", "grpc", "psutil", "ray", "hydra"),
        *("pytest_timeout", "xdist", "execnet", "urllib3", "traitlets"),
    }
)
"""Packages whose threads serve, log or copy: they draw from no generator that training uses."""

_POOL = ("concurrent.futures.thread", "_worker")
_WAITING = {("threading", "wait"), ("queue", "get"), ("concurrent.futures.thread", "_worker")}


def drawing_threads() -> list[str]:
    """Names of other threads that may draw random numbers while this one measures."""
    here = threading.get_ident()
    frames: dict[int, Any] | None = None
    found = []
    for thread in threading.enumerate():
        if thread.ident == here or thread.name.startswith(OWN_PREFIX):
            continue
        package = _module_of(thread).partition(".")[0]
        if package in QUIET_PACKAGES:
            continue
        if _module_of(thread) == _POOL[0]:
            frames = sys._current_frames() if frames is None else frames
            if _is_idle(frames.get(thread.ident or 0)):
                continue
        found.append(thread.name)
    return found


def _module_of(thread: threading.Thread) -> str:
    """The module that a thread's work is defined in."""
    target = getattr(thread, "_target", None)
    if target is None and type(thread) is not threading.Thread:
        return type(thread).__module__
    while isinstance(target, functools.partial):
        target = target.func
    return getattr(target, "__module__", None) or ""


def _is_idle(frame: Any) -> bool:
    """Whether a worker of a pool waits for something to do."""
    while frame is not None:
        place = (frame.f_globals.get("__name__", ""), frame.f_code.co_name)
        if place not in _WAITING and place[0] not in ("threading", "queue"):
            return False
        if place == _POOL:
            return True
        frame = frame.f_back
    return False


_here = threading.local()


def is_beside() -> bool:
    """Whether this thread measures beside others that may draw: no generator may be seeded now."""
    return getattr(_here, "depth", 0) > 0


class _Refusing(TorchDispatchMode):
    """Raises before an operation of this thread draws from a generator of the whole process.

    Args:
        why: From the operation's name to why not.
    """

    def __init__(self, why: Callable[[str], str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._why = why
        self._process = os.getpid()

    def __enter__(self) -> Any:
        _here.depth = getattr(_here, "depth", 0) + 1
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *args: Any) -> None:
        _here.depth -= 1
        super().__exit__(*args)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if os.getpid() != self._process:  # a fork has generators of its own
            return func(*args, **kwargs)
        if torch.Tag.nondeterministic_seeded in func.tags and _draws(func, args, kwargs):
            raise RefusedError(self._why(str(func)))
        return func(*args, **kwargs)


def _draws(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    arguments = func._schema.arguments
    given = {a.name: a.default_value for a in arguments if a.has_default_value()}
    given |= dict(zip((a.name for a in arguments), args, strict=False)) | kwargs
    if isinstance(given.get("generator"), torch.Generator):
        return False
    # Attention and dropout layers carry the tag also where nothing is dropped.
    if given.get("train") is False or given.get("training") is False:
        return False
    return not any(name in given and not given[name] for name in ("dropout_p", "dropout"))


def _why_not_measured(others: list[str], what: str) -> str:
    listed = ", ".join(others[:3]) + (" and others" if len(others) > 3 else "")
    return (
        f"what is measured draws random numbers ({what}), and so may another thread of this "
        f"process ({listed}), which would then get them twice. Give a loss that draws none "
        "(loss_fn=), or prepare batches in processes (num_workers) in place of threads"
    )


FETCH_SECONDS = 120
"""Longest wait for a sample of the child process: a lock held at the fork stays held there."""


def fetch_elsewhere(
    fetch: Callable[[list[int]], Any], groups: Sequence[list[int]], seed: int
) -> Iterator[Any]:
    """Fetch groups of samples in a child process, whose generators are its own.

    For datasets that draw, such as for augmentation, where another thread of this process may draw
    at the same time.

    Args:
        fetch: From the indices of a group to a batch.
        groups: The indices.
        seed: Seed of the child's generators.
    """
    loader: DataLoader[Any] = DataLoader(
        _Fetching(fetch),
        batch_size=None,
        sampler=groups,
        num_workers=1,
        generator=torch.Generator().manual_seed(seed),
        timeout=FETCH_SECONDS,
    )
    return iter(loader)


class _Fetching(Dataset[Any]):
    def __init__(self, fetch: Callable[[list[int]], Any]) -> None:
        self._fetch = fetch

    def __getitem__(self, indices: Any) -> Any:
        return self._fetch(indices)


@contextmanager
def beside(others: list[str], seed: int) -> Iterator[None]:
    """Measure beside threads that may draw, without a number lost or doubled for them.

    Args:
        others: Names of the threads.
        seed: Seed of the streams that stand for numpy's and Python's generators in here.

    Raises:
        RefusedError: Something would draw from torch's own generators; before it does.
    """
    with own_streams(seed), _Refusing(functools.partial(_why_not_measured, others)):
        yield


@contextmanager
def unfelt() -> Iterator[None]:
    """Run a part of the user's monitoring, such as a sink, so that training's numbers stay.

    Raises:
        RefusedError: It would draw from torch's own generators; before it does.
    """
    seed = int.from_bytes(os.urandom(4))
    with own_streams(seed), _Refusing(_why_not_called):
        yield


def _why_not_called(what: str) -> str:
    return (
        f"it draws random numbers ({what}) from the generator that training draws from; give it a "
        "torch.Generator of its own"
    )
