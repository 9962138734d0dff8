"""One of two processes that train together: `python ddp_worker.py RANK SIZE PORT FOLDER MODES`.

Each mode is trained twice, without and with a monitor, and compared on this rank; what was found is
written to FOLDER as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path

rank, size, port, folder, modes = sys.argv[1:6]
os.environ |= {
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": port,
    "WORLD_SIZE": size,
    "RANK": rank,
    "LOCAL_RANK": rank,
    "NODE_RANK": "0",
}
sys.path.insert(0, str(Path(__file__).parents[1]))

import lightning.pytorch as pl  # noqa: E402
import torch  # noqa: E402
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy  # noqa: E402
from torch.distributed.fsdp import fully_shard  # noqa: E402

from phasewatch.callbacks.shared.processes import collective_timeout_seconds  # noqa: E402
from phasewatch.monitor.core.estimates import Observation  # noqa: E402
from phasewatch.monitor.core.work import Cost, Work  # noqa: E402
from phasewatch.monitor.observables.curvature.noise_scale import GradientNoiseScale  # noqa: E402
from support.bitwise import differences  # noqa: E402
from support.observers import Rude, make_monitor  # noqa: E402
from support.scripted import Fall  # noqa: E402
from support.training import record  # noqa: E402
from support.zoo import find  # noqa: E402
from support.zoo_layers import DropoutBatchNorm  # noqa: E402
from support.zoo_modules import Plain  # noqa: E402

torch.set_num_threads(1)


TIMEOUT_SECONDS = 10.0
"""Of the process group where measurements are slow: one in a single piece would exceed it."""

EVALUATION_SECONDS = 0.025
SLOW = {
    "slow by a cadence": {"every_n_steps": 2},
    "slow within a budget": {"every_n_steps": None, "overhead": 0.5},
    "slow in one piece": {"every_n_steps": 2, "observables": ["weight_norm", "stubborn"]},
}
SLOW_SAMPLER = {"num_chains": 2, "num_draws": 512, "max_draws": 512, "engine": "loop"}


class Evaluations:
    """The probe loss, slow, and counted by step: what rank 0 does while the other waits."""

    def __init__(self):
        self.by_step = Counter()
        self.trainer = None

    def __call__(self, model, batch):
        self.by_step[0 if self.trainer is None else self.trainer.global_step] += 1
        time.sleep(EVALUATION_SECONDS)
        return model.loss(batch)


class Timeout(pl.Callback):
    """Reads the time after which the processes give each other up."""

    def __init__(self, found):
        self.found = found

    def on_train_start(self, trainer, module):
        self.found.append(collective_timeout_seconds())


class Follow(pl.Callback):
    """Tells the evaluations which step it is."""

    def __init__(self, evaluations):
        self.evaluations = evaluations

    def setup(self, trainer, module, stage):
        self.evaluations.trainer = trainer


class Stubborn:
    """Takes longer than the processes wait, and cannot be taken in steps."""

    name, unit, cost = "stubborn", "1", Cost.SAMPLING

    def work(self, context):
        return Work(forwards=1000)

    def measure(self, context):
        for _ in range(1000):
            context.loss_fn(context.model, context.batches[0])
        return Observation(name=self.name, step=context.step, value=1.0)


KEEPING = ("checkpoints are kept", "no room for checkpoints", "a disk that fails")


@contextmanager
def broken_disk():
    """The first process alone cannot write."""
    real = DDPStrategy.save_checkpoint

    def save(self, *args, **kwargs):
        if rank == "0":
            raise OSError(28, "No space left on device")
        return real(self, *args, **kwargs)

    DDPStrategy.save_checkpoint = save
    try:
        yield
    finally:
        DDPStrategy.save_checkpoint = real


class CountingSink:
    """Counts what it is told."""

    def __init__(self):
        self.count = 0

    def emit(self, observation):
        self.count += 1

    def notify(self, transition):
        self.count += 1

    def flush(self):
        pass

    def close(self):
        pass


class Sharded(Plain):
    """Its parameters are spread over the processes."""

    def __init__(self):
        super().__init__()
        self.is_sharded = False

    def configure_model(self):
        if not self.is_sharded:
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])
            self.is_sharded = True


def strategy(mode):
    if mode == "sharded parameters":
        return ModelParallelStrategy(
            data_parallel_size=2,
            tensor_parallel_size=1,
            process_group_backend="gloo",
            timeout=timedelta(seconds=40),
        )
    options = {
        "find_unused_parameters": {"find_unused_parameters": True},
        "static graph": {"static_graph": True},
    }.get(mode, {})
    seconds = TIMEOUT_SECONDS if mode in SLOW else 40
    return DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=seconds), **options)


def observables(mode):
    if mode == "raises on rank 0":
        return ["weight_norm", Rude("middle")]
    if mode == "raises late on rank 0":
        return ["weight_norm", Rude("late")]
    if mode == "accumulated":
        return ["weight_norm", GradientNoiseScale(source="training")]
    return None


def run(mode):
    sink, made, evaluations = CountingSink(), [], Evaluations()
    timeouts = []
    own = Path(folder) / mode.replace(" ", "-")
    own.mkdir(exist_ok=True)

    def monitors():
        # The third batch of an epoch is a step of its own: its noise cannot be seen.
        every = 1 if mode == "accumulated" else 2
        options = {"observables": observables(mode), "every_n_steps": every}
        if mode in SLOW:
            options |= {"sampler": SLOW_SAMPLER, "loss_fn": evaluations, **SLOW[mode]}
            if "stubborn" in (options["observables"] or ()):
                options["observables"] = ["weight_norm", Stubborn()]
        if mode in KEEPING:
            options |= {"detectors": {"train_loss": Fall(3)}, "every_n_steps": 1}
        monitor = make_monitor(own, sinks=[sink], **options)
        if mode in KEEPING:
            around = {"keep": 2, "every_n_steps": 1}
            monitor._config = monitor.config.replace(checkpoint_on="suspected", around=around)
            if mode == "no room for checkpoints" and rank == "0":
                monitor._config = monitor.config.replace(
                    around=around | {"folder": str(own / "store.db")}
                )
        made.append(monitor)
        return made

    def train(**more):
        return record(
            Sharded if mode == "sharded parameters" else DropoutBatchNorm,
            find("multilayer perceptron").loaders,
            own,
            strategy=strategy(mode),
            devices=2,
            accumulate_grad_batches=2 if mode == "accumulated" else 1,
            callbacks=lambda: [Follow(evaluations), Timeout(timeouts)],
            **more,
        )

    clean, watched = train(), None
    with broken_disk() if mode == "a disk that fails" else nullcontext():
        watched = train(monitors=monitors)
    watch = made[0].watch
    return {
        "differences": differences(clean, watched),
        "steps": clean.num_steps,
        "measurements": dict(watch.health.measurements) if watch else {},
        "failures": dict(watch.health.measurement_failures) if watch else {},
        "skipped": dict(watch.health.skip_reasons) if watch else {},
        "emitted": sink.count,
        "state": str(watch.health.state) if watch else "",
        "written": watch.health.checkpoints_written if watch else 0,
        "kept": [c for t in watch.transitions for c in t.checkpoints] if watch else [],
        "evaluations": dict(evaluations.by_step),
        "timeouts": timeouts,
        "weights": repr(watched.final["weights"]["net.0.weight"]),
    }


results = {mode: run(mode) for mode in modes.split(",")}
(Path(folder) / f"rank{rank}.json").write_text(json.dumps(results))
torch.distributed.barrier()
torch.distributed.destroy_process_group()
