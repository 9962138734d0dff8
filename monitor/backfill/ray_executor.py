"""Ray as a `concurrent.futures.Executor`: `pip install "phasewatch[ray]"`."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future
from concurrent.futures import wait as wait_for
from typing import Any, ParamSpec, TypeVar

from phasewatch.monitor.core.errors import ConfigError, MissingPackageError

LOOPBACK_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""At 0 a cluster listens on 127.0.0.1 alone, on Linux too. Ray reads it when it is imported."""

LOCAL = {LOOPBACK_ONLY: "0", "RAY_USAGE_STATS_ENABLED": "0"}
"""Environment of a cluster of this machine: none listens to others, nothing is told to its makers.
What the user has set stays."""

_P = ParamSpec("_P")
_T = TypeVar("_T")


class RayExecutor(Executor):
    """Runs functions as tasks of a Ray cluster: the one that is there, or one of this machine.

    Taken is the cluster that this process is in already, or that `RAY_ADDRESS` names; without
    either a local one is started, which listens on 127.0.0.1 and ends with the executor.

    Args:
        num_workers: Tasks at a time on a local cluster; None is one for each core.

    Raises:
        ConfigError: A number of workers was given, and the cluster has its own; or a local one
            would listen to other machines.
        MissingPackageError: Ray is not installed.

    Source:
        https://docs.ray.io/en/latest/ray-core/tasks.html
    """

    def __init__(self, num_workers: int | None = None) -> None:
        is_local = "RAY_ADDRESS" not in os.environ
        is_late = "ray" in sys.modules and LOOPBACK_ONLY not in os.environ
        if is_local and not is_late:
            os.environ.update({**LOCAL, **os.environ})
        try:
            import ray
        except ImportError as error:
            raise MissingPackageError("ray", "the executor 'ray'") from error
        self._ray: Any = ray
        self._futures: set[Future[Any]] = set()
        self._is_over = False
        self._is_own = not ray.is_initialized()
        if num_workers is not None and not (self._is_own and is_local):
            raise ConfigError(
                f"jobs is {num_workers}, and there is a Ray cluster already, which has its own "
                "number of workers; leave jobs out"
            )
        if not self._is_own:
            return
        if not is_local:
            ray.init(log_to_driver=False)
            return
        if is_late:
            raise ConfigError(
                "Ray was imported before it could be told to stay on this machine; make the "
                f"executor before that, set {LOOPBACK_ONLY}=0, or call ray.init yourself"
            )
        # Workers find the modules that this process finds, as those of multiprocessing do.
        path = os.pathsep.join(entry for entry in sys.path if entry)
        ray.init(
            num_cpus=num_workers,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
            runtime_env={"env_vars": {"PYTHONPATH": path}},
        )

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Run `fn(*args, **kwargs)` on one core of the cluster; it raises what `fn` raises."""
        if self._is_over:
            raise RuntimeError("cannot schedule new futures after shutdown")
        # Ray itself takes no builtins and no methods.
        reference = self._ray.remote(_call).remote(fn, *args, **kwargs)
        future: Future[_T] = Future()
        self._futures.add(future)

        def arrive(task: Future[_T]) -> None:
            self._futures.discard(future)
            if not future.set_running_or_notify_cancel():
                return
            error = task.exception()
            if error is None:
                future.set_result(task.result())
            else:
                # Ray wraps what the function raised in an error of its own.
                future.set_exception(getattr(error, "cause", None) or error)

        def leave(left: Future[_T]) -> None:
            if left.cancelled():
                self._ray.cancel(reference)

        future.add_done_callback(leave)
        reference.future().add_done_callback(arrive)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let go of the cluster, and end it if it was started here.

        Args:
            wait: Whether to wait until what was submitted is done.
            cancel_futures: Whether what was submitted, and is not done, is given up.
        """
        self._is_over = True
        if cancel_futures:
            for future in list(self._futures):
                future.cancel()
        if wait:
            wait_for(list(self._futures))
        if self._is_own and self._ray.is_initialized():
            self._ray.shutdown()


def _call(fn: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    return fn(*args, **kwargs)
