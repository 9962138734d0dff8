"""One training on a CPU clock, with a monitor or without. Run as
`python overhead_run.py MODEL SECONDS STEPS OBSERVABLES LIMIT`: OBSERVABLES is "none", "default" or
"all"; STEPS 0 trains until SECONDS of CPU time are used; at LIMIT seconds of them the process is
ended. What it took is printed as one line of JSON.
"""

from __future__ import annotations

# What waits for other threads must go on waiting by the clock on the wall: it takes its clock now.
import asyncio  # noqa: F401
import concurrent.futures  # noqa: F401
import multiprocessing.connection  # noqa: F401
import queue  # noqa: F401
import subprocess  # noqa: F401
import threading  # noqa: F401
import time

cpu, own_thread = time.process_time, time.thread_time
time.perf_counter = time.monotonic = cpu

import functools  # noqa: E402
import json  # noqa: E402
import logging  # noqa: E402
import resource  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import warnings  # noqa: E402
from collections import Counter  # noqa: E402
from pathlib import Path  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1]))

import lightning.pytorch as pl  # noqa: E402
import torch  # noqa: E402

from support.overhead_models import FURTHER, MODELS  # noqa: E402

WARM_STEPS = 3
"""Steps before the cost of a step is taken."""

TABLE_LINES = 4
"""The table of what a run will see is the first message of so many lines."""


class Stopwatch(pl.Callback):
    """Stops a training when its CPU time is used up, and knows what a step takes."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.began = cpu()
        self.warm: tuple[int, float] | None = None
        self.step_seconds = 0.0
        self.monitor: pl.Callback | None = None
        self.predicted: dict[str, float] | None = None

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        """Note what was predicted before the first step."""
        if self.predicted is None:
            self.predicted = {} if self.monitor is None else predictions(self.monitor.watch)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        """Look at the clock."""
        now, step = cpu(), trainer.global_step
        if self.warm is None:
            if step >= WARM_STEPS:
                self.warm = step, now
        else:
            self.step_seconds = (now - self.warm[1]) / (step - self.warm[0])
        if now - self.began >= self.seconds and step > WARM_STEPS:
            trainer.should_stop = True


EMPTY_CALLS = 2000
"""Calls of a hook that does nothing, by which the cost of looking at the clock is taken."""


class Hooks:
    """Times the hooks of a callback, in the training's own thread.

    A look at a CPU clock takes 2 µs, twenty times one at the usual clock: what the timing itself
    costs is taken off again.

    Args:
        callback: Its hooks are wrapped.
    """

    def __init__(self, callback: pl.Callback) -> None:
        self._seconds = 0.0
        self._num_calls = 0
        self._inside = False
        empty = self._timed(lambda: None)
        for _ in range(EMPTY_CALLS):
            empty()
        self._empty_seconds = self._seconds / EMPTY_CALLS
        self._seconds, self._num_calls = 0.0, 0
        for name in dir(callback):
            if name.startswith("on_") or name in ("setup", "teardown", "state_dict"):
                setattr(callback, name, self._timed(getattr(callback, name)))

    @property
    def seconds(self) -> float:
        """CPU seconds in the hooks."""
        return self._seconds - self._num_calls * self._empty_seconds

    def _timed(self, hook):
        @functools.wraps(hook)
        def timed(*args, **kwargs):
            if self._inside:
                return hook(*args, **kwargs)
            self._inside, began = True, own_thread()
            try:
                return hook(*args, **kwargs)
            finally:
                self._inside = False
                self._seconds += own_thread() - began
                self._num_calls += 1

        return timed


class Messages(logging.Handler):
    """Notes when the table of what the run will see was told."""

    def __init__(self) -> None:
        super().__init__()
        self.began = cpu()
        self.table_seconds: float | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Look at one message."""
        if self.table_seconds is None and record.getMessage().count("\n") >= TABLE_LINES - 1:
            self.table_seconds = round(cpu() - self.began, 2)


def children() -> float:
    """CPU seconds of the processes that were started and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def predictions(watch) -> dict[str, float]:
    """Predicted seconds of one measurement, by observable, where it is known."""
    rows = watch.forecast()
    return {row.name: row.seconds for row in rows if row.seconds is not None}


def run(model: str, seconds: float, steps: int, observables: str, **settings) -> dict[str, object]:
    """Train once.

    Args:
        model: Its name.
        seconds: CPU seconds after which to stop, when `steps` is 0.
        steps: Steps to train.
        observables: "none", "default" or "all".
        **settings: Further arguments of the monitor.
    """
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    pl.seed_everything(0, verbose=False)
    module, loader = (MODELS | FURTHER)[model]()
    stopwatch, messages = Stopwatch(seconds if not steps else float("inf")), Messages()
    callbacks: list[pl.Callback] = [stopwatch]
    monitor = hooks = None
    began = cpu()
    with tempfile.TemporaryDirectory() as folder:
        if observables != "none":
            from phasewatch.callbacks import TransitionMonitor

            log = logging.getLogger("phasewatch")
            log.setLevel(logging.INFO)
            log.addHandler(messages)
            chosen = {} if observables == "default" else {"observables": observables}
            monitor = TransitionMonitor(store="run.db", exporter=False, **chosen, **settings)
            hooks = Hooks(monitor)
            callbacks.append(monitor)
            stopwatch.monitor = monitor
        imported = cpu() - began
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=-1,
            max_steps=steps or 10**9,
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        # Only now: what is known of a stopped clock would not be known of a fit.
        messages.began = stopwatch.began = began = cpu()
        in_thread, in_children = own_thread(), children()
        trainer.fit(module, loader)
        total, in_thread = cpu() - began, own_thread() - in_thread
        in_children = children() - in_children
        found: dict[str, object] = {
            "model": model,
            "parameters": sum(p.numel() for p in module.parameters()),
            "steps": trainer.global_step,
            "cpu_seconds": total + in_children,
            "side_seconds": round(total - in_thread + in_children, 3),
            "step_seconds": stopwatch.step_seconds,
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        if monitor is None or hooks is None:
            return found
        found["monitor_seconds"] = hooks.seconds + total - in_thread + in_children
        found["import_seconds"] = round(imported, 2)
        found["table_seconds"] = messages.table_seconds
        return (
            found
            | seen(monitor, Path(folder) / "run.db")
            | {"predicted_seconds": stopwatch.predicted}
        )


def seen(monitor, path: Path) -> dict[str, object]:
    """What the monitor measured and says of itself."""
    from phasewatch.monitor.store.store import Store

    watch = monitor.watch
    with Store(f"sqlite:///{path}") as store:
        estimates = store.observations(watch.run_id, "llc") if "llc" in store.names(
            watch.run_id) else []  # fmt: skip
    durations = watch.health.durations
    measured = Counter(watch.health.measurements)
    return {
        "reported_ratio": watch.health.overhead_ratio,
        "llc": len(estimates),
        "llc_ok": sum(o.status is not None and o.status.value == "ok" for o in estimates),
        "first_llc_step": estimates[0].step if estimates else None,
        "measured": {name: n for name, n in sorted(measured.items()) if n},
        "mean_seconds": {n: durations[n].sum_seconds / k for n, k in measured.items() if k},
        "skipped": dict(watch.health.skip_reasons),
        "failures": {n: k for n, k in watch.health.measurement_failures.items() if k},
    }


if __name__ == "__main__":
    name, seconds, steps, observables, limit = sys.argv[1:6]
    resource.setrlimit(resource.RLIMIT_CPU, (int(limit), resource.RLIM_INFINITY))
    print(json.dumps(run(name, float(seconds), int(steps), observables)), flush=True)
