"""One of two processes that train together. Run as `python ddp_worker.py RANK PORT FOLDER MODES`.

Each mode is trained twice, without and with a monitor, and compared on this rank; what was found is
written to FOLDER as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import timedelta
from pathlib import Path

rank, port, folder, modes = sys.argv[1:5]
os.environ |= {
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": port,
    "WORLD_SIZE": "2",
    "RANK": rank,
    "LOCAL_RANK": rank,
    "NODE_RANK": "0",
}
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch  # noqa: E402
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy  # noqa: E402
from torch.distributed.fsdp import fully_shard  # noqa: E402

from phasewatch.monitor.observables.curvature.noise_scale import GradientNoiseScale  # noqa: E402
from support.bitwise import differences  # noqa: E402
from support.observers import Rude, make_monitor  # noqa: E402
from support.training import record  # noqa: E402
from support.zoo import find  # noqa: E402
from support.zoo_layers import DropoutBatchNorm  # noqa: E402
from support.zoo_modules import Plain  # noqa: E402

torch.set_num_threads(1)


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
    return DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=40), **options)


def observables(mode):
    if mode == "raises on rank 0":
        return ["weight_norm", Rude("middle")]
    if mode == "raises late on rank 0":
        return ["weight_norm", Rude("late")]
    if mode == "accumulated":
        return ["weight_norm", GradientNoiseScale(source="training")]
    return None


def run(mode):
    sink, made = CountingSink(), []
    own = Path(folder) / mode.replace(" ", "-")
    own.mkdir(exist_ok=True)

    def monitors():
        # The third batch of an epoch is a step of its own: its noise cannot be seen.
        every = 1 if mode == "accumulated" else 2
        options = {"observables": observables(mode), "every_n_steps": every}
        made.append(make_monitor(own, sinks=[sink], **options))
        return made

    def train(**more):
        return record(
            Sharded if mode == "sharded parameters" else DropoutBatchNorm,
            find("multilayer perceptron").loaders,
            own,
            strategy=strategy(mode),
            devices=2,
            accumulate_grad_batches=2 if mode == "accumulated" else 1,
            **more,
        )

    clean, watched = train(), train(monitors=monitors)
    watch = made[0].watch
    return {
        "differences": differences(clean, watched),
        "steps": clean.num_steps,
        "measurements": dict(watch.health.measurements) if watch else {},
        "failures": dict(watch.health.measurement_failures) if watch else {},
        "skipped": dict(watch.health.skip_reasons) if watch else {},
        "emitted": sink.count,
        "state": str(watch.health.state) if watch else "",
        "weights": repr(watched.final["weights"]["net.0.weight"]),
    }


results = {mode: run(mode) for mode in modes.split(",")}
(Path(folder) / f"rank{rank}.json").write_text(json.dumps(results))
torch.distributed.barrier()
torch.distributed.destroy_process_group()
