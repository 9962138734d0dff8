"""What the monitor adds to a training step: nothing due, logged points, drains, budget mode.

Windows with and without the monitor alternate in one process on one thread. Printed are the
median difference and the interval between the 5th and 95th percentile of its bootstrap.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from phasewatch.callbacks import TransitionMonitor
from phasewatch.monitor import Watch

STREAMS = ("train_loss", "val_loss", "accuracy", "entropy", "perplexity")
PAIRS = 96


def interval(differences: list[float]) -> tuple[float, float, float]:
    """Median and bootstrap interval (5 % to 95 %) of the median."""
    rng = np.random.default_rng(0)
    values = np.asarray(differences)
    medians = np.median(rng.choice(values, (2000, len(values))), axis=1)
    return float(np.median(values)), *(float(q) for q in np.quantile(medians, (0.05, 0.95)))


def alternate(on: Callable[[], float], off: Callable[[], float], pairs: int) -> list[float]:
    """Differences on − off of alternating windows, the order swapped from pair to pair."""
    differences = []
    for pair in range(pairs):
        if pair % 2:
            with_monitor, without = on(), off()
        else:
            without, with_monitor = off(), on()
        differences.append(with_monitor - without)
    return differences


class Tiny(pl.LightningModule):
    """The smallest module that trains."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        """Mean squared error."""
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class HookTimer(pl.Callback):
    """Calls hooks in a tight loop in the middle of a fit, where the trainer is alive."""

    def __init__(self, monitor: pl.Callback, calls: int) -> None:
        self.monitor = monitor
        self.calls = calls
        self.differences: list[float] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        """Time the hooks of one step, once the first steps are over."""
        if batch_idx != 3:
            return
        progress = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress
        counter = progress.optimizer.step.total
        optimizer = trainer.optimizers[0]

        def window(callback: pl.Callback) -> float:
            watch = getattr(self.monitor, "watch", None)
            if watch is not None:
                watch.drain()
            begin = time.perf_counter()
            for _ in range(self.calls):
                callback.on_train_batch_start(trainer, module, batch, batch_idx)
                callback.on_before_optimizer_step(trainer, module, optimizer)
                counter.completed += 1
                callback.on_train_batch_end(trainer, module, outputs, batch, batch_idx)
            return 1e6 * (time.perf_counter() - begin) / self.calls

        empty = pl.Callback()
        kept = counter.completed
        self.differences = alternate(lambda: window(self.monitor), lambda: window(empty), 40)
        counter.completed = kept
        trainer.should_stop = True


def nothing_due(folder: Path) -> None:
    """Microseconds a step of all our hooks when no measurement is due, over empty hooks."""
    monitor = TransitionMonitor(
        {"store": str(folder / "a.db"), "exporter": {"enabled": False}}, every_n_steps=10**9
    )
    timer = HookTimer(monitor, calls=250)
    data = TensorDataset(torch.randn(64, 4))
    trainer = pl.Trainer(
        max_epochs=1,
        callbacks=[monitor, timer],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=10**9,
    )
    trainer.fit(Tiny(), DataLoader(data, batch_size=4))
    median, low, high = interval(timer.differences)
    print(f"nothing due: {median:.2f} µs a step [{low:.2f}, {high:.2f}] (goal: under 4)")


def step_of(seconds: float) -> Callable[[], torch.Tensor]:
    """A step of real work that takes about so long here."""
    size = 64
    while True:
        a = torch.randn(size, size)
        times = []
        for _ in range(9):
            begin = time.perf_counter()
            for _ in range(8):
                a @ a
            times.append(time.perf_counter() - begin)
        if statistics.median(times) >= seconds:
            return lambda: [a @ a for _ in range(8)][-1].sum()
        size = int(size * 1.1) + 1


def drains(folder: Path, steps: int) -> None:
    """Share of a 2 ms step that observing five streams takes, drains and detectors included."""
    work = step_of(2e-3)
    watch = Watch(
        {"store": str(folder / "b.db"), "exporter": {"enabled": False}, "every_n_steps": 10**9}
    )
    rng = np.random.default_rng(0)
    count = 0

    def window(observed: bool) -> float:
        nonlocal count
        noise = 1.0 + 0.05 * rng.standard_normal((steps, len(STREAMS)))
        logged = [
            dict(zip(STREAMS, map(torch.tensor, row), strict=True)) for row in noise
        ]  # a loop that logs has them anyway
        time.sleep(0.2)  # let the writer finish the window before
        begin = time.perf_counter()
        for scalars in logged:
            work()
            if observed:
                count += 1
                watch.observe(count, scalars)
        if observed:
            watch.drain()
        return (time.perf_counter() - begin) / steps

    with watch:
        window(True)
        bare = statistics.median(window(False) for _ in range(3))
        differences = alternate(lambda: window(True), lambda: window(False), PAIRS)
    median, low, high = (value / bare for value in interval(differences))
    print(
        f"drains of five streams: {median:.2%} of a {1e3 * bare:.2f} ms step "
        f"[{low:.2%}, {high:.2%}] (goal: at most 2 %)"
    )


def points(folder: Path, num_streams: int, seconds: float) -> None:
    """What a point costs that is logged at each step of three milliseconds, at the default budget.

    The step leaves the processor free, as one on an accelerator does, so that what the training
    thread and the others take is told from it on a machine that is not quiet, too.
    """
    step_seconds, steps = 3e-3, 512  # two hand-overs a window
    watch = Watch(
        {"store": str(folder / f"points{num_streams}.db"), "exporter": {"enabled": False}}
    )
    names = [f"metric{index}" for index in range(num_streams)]
    rng = np.random.default_rng(0)
    count = 0

    def window(observed: bool) -> tuple[float, float, float]:
        """Seconds a step: processor of the training thread, of all threads, and wall."""
        nonlocal count
        noise = torch.tensor(1.0 + 0.05 * rng.standard_normal((steps, num_streams)))
        logged = [dict(zip(names, row.unbind(), strict=True)) for row in noise]
        settle()
        every, own, wall = time.process_time(), time.thread_time(), time.perf_counter()
        for scalars in logged:
            time.sleep(step_seconds)
            if observed:
                count += 1
                watch.observe(count, scalars)
        own, wall = time.thread_time() - own, time.perf_counter() - wall
        settle()
        return own / steps, (time.process_time() - every) / steps, wall / steps

    def settle() -> None:
        watch.drain()
        assert watch.store is not None
        watch.store.flush()

    with watch:
        begin = time.perf_counter()
        while time.perf_counter() - begin < seconds:
            window(True)  # detectors are made, and the level of thinning is found
        thinned, logged_before = watch.health.thinned_points, count
        on, off = zip(*((window(True), window(False)) for _ in range(5)), strict=True)
        thinned = (watch.health.thinned_points - thinned) / (count - logged_before) / num_streams
        dropped = watch.health.store_dropped
    (own, every, wall), bare = np.median(on, axis=0), np.median(off, axis=0)
    own, every, wall = own - bare[0], every - bare[1], wall - bare[2]
    print(
        f"{num_streams} streams at each step: {1e6 * own / num_streams:.2f} µs a point on the "
        f"training thread (goal: under 1), {1e6 * every / num_streams:.2f} µs on all; "
        f"{own / step_seconds:.2%} of a 3 ms step (goal: under 3 %), wall {wall / step_seconds:.2%}"
        f"; {thinned:.0%} not looked at by detectors, {dropped} rows lost from the store"
    )


def budget_mode(folder: Path, seconds: float) -> None:
    """How the overhead budget is obeyed and used, with the default observables."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    x = torch.randn(1024, 16)
    y = x[:, :4]

    def loss_fn(module: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return 0.5 * (module(batch[0]) - batch[1]).square().sum(dim=1)

    ratios: list[float] = []
    watch = Watch(
        {"store": str(folder / "c.db"), "exporter": {"enabled": False}},
        probe=[(x, y)],
        loss_fn=loss_fn,
    )
    with watch:
        begin = time.perf_counter()
        step = 0
        while time.perf_counter() - begin < seconds:
            step += 1
            loss = loss_fn(model, (x, y)).mean()
            optimizer.zero_grad()
            loss.backward()
            watch.before_step(step, model.named_parameters())
            optimizer.step()
            watch.observe(step, {"train_loss": loss.detach()})
            if watch.due(step):
                watch.probe(step, model)
            if step > 1:
                ratios.append(watch._planner.overhead_ratio)
        counts = dict(watch.health.measurements)
    settled = ratios[len(ratios) // 20 :]
    print(
        f"budget 5 %: highest ratio after the first measurement {max(settled):.2%} "
        f"(goal: at most 6 %), at the end {ratios[-1]:.2%} (goal: at least 2.5 %); {counts}"
    )


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=256, help="steps a window")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the budget run")
    parser.add_argument(
        "--points", type=float, default=20.0, help="seconds before points are timed"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        nothing_due(Path(folder))
        for num_streams in (5, 50, 300):
            points(Path(folder), num_streams, arguments.points)
        drains(Path(folder), arguments.steps)
        budget_mode(Path(folder), arguments.seconds)


if __name__ == "__main__":
    main()
