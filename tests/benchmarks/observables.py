"""What a measurement of each observable takes: time and memory, at three sizes of model.

Each observable is measured in a real fit on its case (`support/observable_cases.py`). Chains are as
long as the sampler's defaults make them where nothing asks for more draws. Of the measurements

- the first is run under torch's profiler, which sees each block that torch's allocator gives and
  takes back, and under tracemalloc, which sees those of numpy and Python: their peaks together,
  beyond what there was at the start, are the memory. No other figure is exact for some kilobytes:
  the resident size moves by pages, and keeps what was freed. Chains are cut to their shortest
  there, because their memory does not grow with the draws;
- the rest are timed, and the median is taken: processor time, which does not mind other work on the
  machine, and wall time. Chains are warm then.

What an observable says it takes (`work`: forwards, gradients, Hessian products, passes over the
weights) is put into seconds by timing one of each on the same context, and held to the median: the
column "said" is what was said over what was measured. Below a millisecond the calls themselves
take most of the time, which nobody predicts.

A pass is a forward and backward pass of a training batch of 64 samples, in processor time. Not
counted is what all that is measured at a step has in common: the copy of the model, the guard, and
the look at gradients and weights before the optimizer steps.

With `--write` the figures become `monitor/observables/costs.json`, which `phasewatch observables`
shows; those of observables that were not measured this time are kept.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import logging
import math
import os
import statistics
import sys
import tempfile
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import lightning.pytorch as pl
import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader

from phasewatch.callbacks import TransitionMonitor
from phasewatch.monitor import observables as registry
from phasewatch.monitor.config.monitor import MonitorConfig
from phasewatch.monitor.core.context import MeasureContext, SharedWork
from phasewatch.monitor.core.contracts import Observable
from phasewatch.monitor.core.work import Cost, Work
from phasewatch.monitor.observables import costs
from phasewatch.monitor.observables.curvature.krylov import hessian_of
from phasewatch.monitor.observables.evaluation import at_weights
from phasewatch.monitor.observables.weights.norms import l2_norm
from phasewatch.monitor.sampling.engine import evaluate
from phasewatch.monitor.sampling.engine_choice import working_loop
from support.observable_cases import SIZES, ObservableCase, every_case

RESULT = Path(registry.__file__).parent / costs.TABLE

BATCH = 64
MOST_TIMED, ENOUGH_SECONDS = 7, 3.0
"""Timed measurements: so many, or fewer that took so long together."""

MEMORY_EVENT = "[memory]"


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keep away what the profiler's C++ writes to the error stream."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def peak_bytes(call: Callable[[], Any]) -> int:
    """Most bytes allocated at a time in a call, beyond what there was before."""
    with silenced(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        tracemalloc.start()
        try:
            call()
            _, python_peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == MEMORY_EVENT]
    total = torch_peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        total += event.nbytes()
        torch_peak = max(torch_peak, total)
    return torch_peak + python_peak


class Metered:
    """An observable whose measurements are metered."""

    def __init__(self, observable: Observable) -> None:
        self._observable = observable
        self.bytes: int | None = None
        self.spent: list[tuple[float, float]] = []  # processor and wall time
        self.said: list[float] = []  # processor time, predicted

    def __getattr__(self, name: str) -> Any:
        return getattr(self._observable, name)

    @property
    def done(self) -> bool:
        """Whether enough was measured."""
        total = sum(cpu for cpu, _ in self.spent)
        return len(self.spent) >= MOST_TIMED or total > ENOUGH_SECONDS

    def measure(self, context: MeasureContext) -> Any:
        """Memory at the first time, then times."""
        if self.bytes is None:
            if getattr(self._observable, "cost", None) is Cost.SAMPLING:
                context = replace(context, deadline_seconds=0.0)
            found: list[Any] = []
            self.bytes = peak_bytes(lambda: found.append(self._observable.measure(context)))
            return found[0]
        if hasattr(self._observable, "work"):
            self.said.append(predicted_seconds(context, self._observable.work(context)))
        wall, cpu = time.perf_counter(), time.process_time()
        result = self._observable.measure(context)
        self.spent.append((time.process_time() - cpu, time.perf_counter() - wall))
        return result


def predicted_seconds(context: MeasureContext, work: Work) -> float:
    """Processor time of so much work, by timing one evaluation of each kind."""
    alone = replace(context, shared=SharedWork())
    units: dict[str, Callable[[], Any]] = {
        "weight_passes": lambda: l2_norm(context.params.values())
    }
    if work.forwards:
        units["forwards"] = lambda: all_losses(alone)
    if work.gradients or work.hessian_products:
        hessian = hessian_of(alone)
        problem, loop = hessian.problem, working_loop(hessian.problem)
        vector = problem.center()
        hessian(vector)  # finds out how
        still, indices = problem.displacements(1), range(len(problem.batches))
        units["gradients"] = lambda: evaluate(loop, problem, still, indices)
        units["hessian_products"] = lambda: hessian(vector)
    return sum(getattr(work, kind) * fastest(call) for kind, call in units.items())


def all_losses(context: MeasureContext) -> None:
    """A forward pass over the probe."""
    assert context.loss_fn is not None
    with torch.no_grad():
        for batch in context.batches:
            at_weights(context, context.loss_fn, batch)


def fastest(call: Callable[[], Any], times: int = 3) -> float:
    """Processor time of a call, the least of some."""
    spent = []
    for _ in range(times):
        begin = time.process_time()
        call()
        spent.append(time.process_time() - begin)
    return min(spent)


class StopWhenDone(pl.Callback):
    """Ends the fit."""

    def __init__(self, metered: Metered) -> None:
        self._metered = metered

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """After the monitor's own."""
        trainer.should_stop = trainer.should_stop or self._metered.done


def pass_seconds(module: Any, batch: Any) -> float:
    """Processor time of a forward and backward pass, median."""
    spent: list[float] = []
    while len(spent) < 5 or (len(spent) < 50 and sum(spent) < 1.0):
        begin = time.process_time()
        loss = module.training_step(batch, 0)
        (loss["loss"] if isinstance(loss, dict) else loss).backward()
        spent.append(time.process_time() - begin)
        module.zero_grad()
    return statistics.median(spent[1:])


def meter(case: ObservableCase, size: int, folder: Path) -> dict[str, float]:
    """Figures of one observable at one size."""
    torch.manual_seed(0)
    config = MonitorConfig.load(
        {
            "store": str(folder / "costs.db"),
            "exporter": {"enabled": False},
            "every_n_steps": 1,
            "sampler": {"max_draws": 0},
        }
    )
    measured = case.measured(size)
    made = registry.create(measured, config) if isinstance(measured, str) else measured
    if hasattr(made, "_config"):  # cases keep the chains of tests short
        made._config = config.sampler
    metered = Metered(made)
    monitor = TransitionMonitor(config, **({"observables": [metered]} | dict(case.monitor)))
    dataset = case.dataset(size)
    loader = DataLoader(dataset, batch_size=min(BATCH, len(dataset)), shuffle=True)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=-1,
        max_steps=4 * MOST_TIMED,
        callbacks=[monitor, StopWhenDone(metered)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(folder),
    )
    module = case.module(size)
    trainer.fit(module, loader)
    assert monitor.watch is not None
    if metered.bytes is None or not metered.spent:
        raise SystemExit(f"{case.name} cannot be measured: {monitor.watch.health}")
    bare = case.module(size)
    one_pass = pass_seconds(bare, next(iter(loader)))
    cpu, wall = (statistics.median(times) for times in zip(*metered.spent, strict=True))
    return {
        "parameters": sum(p.numel() for p in bare.parameters()),
        "cpu_seconds": cpu,
        "seconds": wall,
        "passes": cpu / one_pass,
        "said": statistics.median(metered.said) / cpu if metered.said else math.nan,
        "bytes": metered.bytes,
    }


def rounded(value: float) -> float:
    """Three figures of what is measured: more would change with every run."""
    if isinstance(value, int) or value <= 0.0:
        return value
    return round(value, 2 - math.floor(math.log10(value)))


def write(found: dict[str, list[dict[str, float]]]) -> None:
    """Replace the shipped figures of what was measured."""
    known: dict[str, Any] = {}
    if RESULT.exists():
        known = json.loads(RESULT.read_text(encoding="utf-8"))["observables"]
    for name, rows in found.items():
        shipped = [key for key in rows[0] if key != "said"]
        known[name] = {key: [rounded(row[key]) for row in rows] for key in shipped}
    head = {
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__.partition("+")[0],
        "threads": torch.get_num_threads(),
    }
    entries = (f'"{n}": {json.dumps(known[n])}' for n in sorted(known.keys() & registry.BUILTIN))
    body = ",\n".join(entries)  # a line for each: a difference can be read
    text = f'{json.dumps(head)[:-1]}, "observables": {{\n{body}\n}}}}\n'
    RESULT.write_text(text, encoding="utf-8")


def main() -> None:
    """Measure, and print a row for each observable and size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these observables alone")
    parser.add_argument(
        "--sizes", nargs="+", choices=SIZES, default=SIZES[:2], help="default: the two smaller"
    )
    parser.add_argument("--write", action="store_true", help="all sizes, into costs.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    cases = [c for c in every_case() if not options.only or c.name in options.only]
    sizes = SIZES if options.write else [s for s in SIZES if s in options.sizes]
    table = Table("observable", "cost", "parameters", "CPU", "wall", "passes", "said", "memory")
    entries = {entry.name: entry for entry in registry.catalogue()}
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            for size in sizes:
                row = meter(case, SIZES.index(size), Path(folder))
                found.setdefault(case.name, []).append(row)
                table.add_row(
                    case.name,
                    entries[case.name].cost.value,
                    f"{row['parameters']:,}",
                    costs.in_words([row["cpu_seconds"]], costs.DURATIONS),
                    costs.in_words([row["seconds"]], costs.DURATIONS),
                    f"{row['passes']:.2g}" if row["passes"] < 10 else f"{row['passes']:,.0f}",
                    "–" if math.isnan(row["said"]) else f"{row['said']:.2g}",
                    costs.in_words([row["bytes"]], costs.SIZES),
                )
            if options.write:
                write({case.name: found[case.name]})
    console = Console()
    console.width = max(console.width, 100)
    console.print(table)


if __name__ == "__main__":
    main()
