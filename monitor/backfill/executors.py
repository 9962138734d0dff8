"""What runs blocks of checkpoints as tasks: an executor, by a short name or from a factory."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor

from phasewatch.monitor.core.errors import ConfigError, UnknownNameError
from phasewatch.monitor.sampling.factory import find_function


def _processes(num_workers: int | None) -> Executor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(num_workers, mp_context=context)


def _ray(num_workers: int | None) -> Executor:
    from phasewatch.monitor.backfill.ray_executor import RayExecutor

    return RayExecutor(num_workers)


NAMED: dict[str, Callable[[int | None], Executor]] = {"processes": _processes, "ray": _ray}
"""Executors with a name of their own, by their number of workers; None is one for each core."""


def executor_of(name: str, num_workers: int | None = None) -> Executor:
    """The executor of a name; whoever asks for it shuts it down.

    Args:
        name: `processes`, `ray`, or `module:factory`: a function without arguments that returns a
            `concurrent.futures.Executor`, as dask's `Client.get_executor`.
        num_workers: Workers of one with a short name; None is one for each core.

    Raises:
        ConfigError: There is no such name or factory, it raises, or it returns something else.
        MissingPackageError: Its package is not installed.
    """
    if num_workers is not None and num_workers < 1:
        raise ConfigError(f"jobs is {num_workers}; give a number of at least 1")
    if name in NAMED:
        return NAMED[name](num_workers)
    if ":" not in name:
        raise UnknownNameError(
            "executor", name, NAMED, "Or give module:factory, a function that returns an Executor"
        )
    if num_workers is not None:
        raise ConfigError(
            f"jobs is {num_workers} beside the executor of {name!r}, whose factory says how many "
            "workers it has; leave --jobs out"
        )
    try:
        made = find_function(name)()
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"executor factory {name!r} raised {type(error).__name__}: {error}; it takes no "
            "arguments and returns a concurrent.futures.Executor"
        ) from error
    if not isinstance(made, Executor):
        raise ConfigError(
            f"executor factory {name!r} returned a {type(made).__name__}; it must return a "
            "concurrent.futures.Executor"
        )
    return made
