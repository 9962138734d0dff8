"""Chains on shards: λ̂, time and memory of a rank, for a model in one process and in several.

Each process is started apart, on one thread, over gloo on this machine. λ̂ is that of a deep linear
net whose coefficient is known (13.5). Memory is that of a perceptron: the highest resident memory
of a rank while few draws are taken (`VmHWM`, reset after the model was made), less what was there
before. Its probe grows with the number of processes, so that each has the same part: equal times
would be perfect weak scaling. Linux only.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import math
import os
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from phasewatch.monitor.sampling import SamplerConfig, estimate_llc

GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
KNOWN = 13.5


def squares(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return 0.5 * (model(batch[0]) - batch[1]).square().sum(dim=1)


def linear_net() -> nn.Sequential:
    """6 → 4 → 6 without biases, of rank two."""
    net = nn.Sequential(nn.Linear(6, 4, bias=False), nn.Linear(4, 6, bias=False))
    with torch.no_grad():
        for layer in net:
            layer.weight.zero_()
            layer.weight[:2, :2] = torch.eye(2) * 1.1
    return net


def perceptron(num_parameters: int) -> nn.Sequential:
    """Eight layers of one size, without biases."""
    width = round(math.sqrt(num_parameters / 8))
    layers = [nn.Linear(width, width, bias=False) for _ in range(8)]
    return nn.Sequential(*itertools.chain.from_iterable((layer, nn.Tanh()) for layer in layers))


def spread(net: nn.Sequential, size: int) -> nn.Module:
    """The net as it is, or each layer over all processes."""
    if size == 1:
        return net
    mesh = init_device_mesh("cpu", (size,))
    for layer in net:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    return fully_shard(net, mesh=mesh)


def resident(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


def coefficient(size: int) -> dict[str, float | str]:
    """λ̂ of the linear net, and what it took."""
    generator = torch.Generator().manual_seed(1)
    net = linear_net()
    x = torch.randn(2000, 6, generator=generator)
    batch = (x, net(x).detach())
    config = SamplerConfig(num_draws=192, max_draws=192, max_seconds=0.0)
    begun = time.perf_counter()
    found = estimate_llc(spread(net, size), [batch], squares, n_samples=2000, config=config)
    return {
        "lambda_hat": found.lambda_hat,
        "stderr": found.lambda_stderr,
        "status": str(found.status),
        "seconds": time.perf_counter() - begun,
    }


def memory(size: int, num_parameters: int, rows: int) -> dict[str, float]:
    """What a rank takes beside its shards, and the time of a measurement of few draws."""
    net = perceptron(num_parameters)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(rows * size, net[0].in_features, generator=generator)
    batch = (x, net(x).detach())
    total = sum(p.numel() for p in net.parameters())
    net = spread(net, size)
    config = SamplerConfig(
        engine="loop", num_chains=2, num_draws=8, max_draws=8, localization=1e3, max_seconds=0.0
    )
    gc.collect()
    CLEAR.write_text("5")  # resets VmHWM to what is resident now
    before, begun = resident("VmRSS"), time.perf_counter()
    estimate_llc(net, [batch], squares, n_samples=len(x), config=config)
    taken = time.perf_counter() - begun
    return {"d": total, "bytes": resident("VmHWM") - before, "seconds": taken}


def work(rank: int, size: int, port: str, num_parameters: int, rows: int) -> None:
    """What one process finds, printed by the first."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    if size > 1:
        dist.init_process_group("gloo", rank=rank, world_size=size)
    torch.manual_seed(0)
    memory(size, 10_000, 8)  # what torch and arviz load at their first call
    found = {**coefficient(size), "memory": memory(size, num_parameters, rows)}
    if size > 1:
        dist.barrier()
        dist.destroy_process_group()
    if rank == 0:
        print(json.dumps(found))


def in_processes(size: int, num_parameters: int, rows: int) -> dict[str, object]:
    """The same in so many processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    numbers = [str(size), port, str(num_parameters), str(rows)]
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, "--work", str(rank), *numbers],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **GIVE_BACK, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(size)
    ]
    outputs = [worker.communicate()[0] for worker in workers]
    found: dict[str, object] = json.loads(outputs[0])
    return found


def main() -> None:
    """Print one line for each number of processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--parameters", type=float, default=2e6)
    parser.add_argument("--rows", type=int, default=32, help="probe samples of each process")
    parser.add_argument("--work", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        rank, size, port, num_parameters, rows = arguments.work
        work(int(rank), int(size), port, int(num_parameters), int(rows))
        return
    print(f"λ of the linear net is {KNOWN}; cores here: {os.cpu_count()}")
    print("ranks  λ̂               status        s   |         d   MiB a rank   MiB/S        s")
    for size in arguments.sizes:
        found = in_processes(size, int(arguments.parameters), arguments.rows)
        beside: dict[str, float] = found["memory"]  # type: ignore[assignment]
        print(
            f"{size:5d}  {found['lambda_hat']:5.2f} ± {found['stderr']:4.2f}   "
            f"{found['status']:12s} {found['seconds']:5.1f} | {beside['d']:9.0f} "
            f"{beside['bytes'] / 2**20:12.0f} {beside['bytes'] / (4 * beside['d']):7.1f} "
            f"{beside['seconds']:8.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
