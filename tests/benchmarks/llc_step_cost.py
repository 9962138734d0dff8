"""Cost of one chain step over a bare forward + backward pass of the same batch, one thread.

Three columns are measured in turn, again and again, and the medians of the ratios are printed:
the bare pass; our chain step with default settings (`Run.extend`: gradient, noise, integrator,
records; not the looks at the sharpness, seven in 128 draws); and, where `PHASEWATCH_PEER_PYTHON`
names an interpreter that has it, a chain step of devinterp 1.3.2. Times are CPU times of the one
thread, which other processes on the machine disturb least.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_CHAINS = 8
PEER = "PHASEWATCH_PEER_PYTHON"


class Transformer(nn.Module):
    """One layer on three tokens, 225 thousand parameters."""

    def __init__(self, vocabulary: int = 113, width: int = 128, heads: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary + 1, width)
        self.position = nn.Parameter(0.1 * torch.randn(3, width))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.merge = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.unembed = nn.Linear(width, vocabulary, bias=False)
        self.heads = heads

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.position
        batch, length, width = x.shape
        parts = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.merge(mixed.transpose(1, 2).reshape(batch, length, width))
        x = x + self.down(F.relu(self.up(x)))
        return self.unembed(x[:, -1])


def perceptron(*widths: int) -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def inputs(kind: str, size: int) -> tuple[Tensor, Tensor]:
    if kind == "transformer":
        return torch.randint(0, 113, (size, 3)), torch.randint(0, 113, (size,))
    width, classes = (784, 10) if "784" in kind else (16, 4)
    return torch.randn(size, width), torch.randint(0, classes, (size,))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "transformer": Transformer,
    "MLP 784-64-64-10": lambda: perceptron(784, 64, 64, 10),
    "MLP 16-16-16-4": lambda: perceptron(16, 16, 16, 4),
}
CASES = [(kind, size) for kind in MODELS for size in (64, 512)]


def case(index: int) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    kind, size = CASES[index]
    torch.manual_seed(0)
    return MODELS[kind](), inputs(kind, size)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def clocked(function: Callable[[], None]) -> float:
    started = time.process_time()
    function()
    return time.process_time() - started


def bare(index: int, repeats: int) -> Callable[[], float]:
    model, batch = case(index)

    def run() -> None:
        for _ in range(repeats):
            model.zero_grad(set_to_none=True)
            loss(model, batch).mean().backward()

    return lambda: clocked(run) / repeats


def ours(index: int, steps: int) -> tuple[Callable[[], float], str]:
    """Seconds a chain step, and the engine that was chosen."""
    from phasewatch.monitor.config.measuring import SamplerConfig
    from phasewatch.monitor.core.work import run_through
    from phasewatch.monitor.isolation import measure_context
    from phasewatch.monitor.sampling.chains import ChainGroup
    from phasewatch.monitor.sampling.engine_choice import Verdicts
    from phasewatch.monitor.sampling.landscape import Landscape
    from phasewatch.monitor.sampling.memory_budget import plan_memory
    from phasewatch.monitor.sampling.posing import pose
    from phasewatch.monitor.sampling.underdamped import Baoab

    model, batch = case(index)
    context = measure_context(model, step=0, loss_fn=loss, batches=[batch], n_samples=1024)
    problem = pose(context)
    plan = plan_memory(problem, SamplerConfig(num_chains=NUM_CHAINS))
    engine = run_through(Verdicts().engine_for(problem, plan))
    n_beta = 1024 / math.log(1024)
    run = ChainGroup(
        Landscape(problem, engine, n_beta=n_beta, localization=1.0, mask=None, control=False),
        Baoab(n_beta, 1.0),
        generator=context.generator,
        adaptive=True,
        num_chains=NUM_CHAINS,
    )
    with engine.session():
        run_through(run.prepare())
        run_through(run.extend(40))  # past the early sharpness checks; the next is at draw 64
        run.adaptive = False

    def measured() -> float:
        with engine.session():
            return (
                clocked(lambda: run_through(run.extend(len(run.record) + steps)))
                / steps
                / NUM_CHAINS
            )

    return measured, engine.name


def peer_server(index: int, steps: int) -> None:
    """Runs under the peer's interpreter: one line in, one time out."""
    from devinterp.optim import SGLD
    from devinterp.slt.llc import LLCEstimator
    from devinterp.slt.sampler import sample
    from torch.utils.data import DataLoader, TensorDataset

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    kind, size = CASES[index]
    model, _ = case(index)
    data = TensorDataset(*inputs(kind, max(2048, 4 * size)))
    loader = DataLoader(data, batch_size=size, shuffle=True)

    def evaluate(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    def run() -> None:
        n_beta = 1024 / math.log(1024)
        estimator = LLCEstimator(NUM_CHAINS, steps, nbeta=n_beta, init_loss=torch.tensor(1.0))
        sample(
            model,
            loader,
            [estimator],
            evaluate=evaluate,
            sampling_method=SGLD,
            optimizer_kwargs={"lr": 1e-6, "nbeta": n_beta, "localization": 1.0},
            num_draws=steps,
            num_chains=NUM_CHAINS,
            seed=0,
            verbose=False,
        )

    for _ in sys.stdin:
        print(clocked(run) / steps / NUM_CHAINS, flush=True)


class Peer:
    """devinterp in a process of its own, asked in turn with the others."""

    def __init__(self, interpreter: str, index: int, steps: int) -> None:
        command = [interpreter, __file__, "--peer", str(index), "--steps", str(steps)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the peer's process ended; its message stands above")
        return float(line)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


def rounds(index: int, pairs: int, interpreter: str | None) -> Iterator[tuple[float, ...]]:
    """(bare, ours, peer or nan) in seconds, alternating."""
    steps = 4 if CASES[index][0] == "transformer" else 16
    bare_pass = bare(index, 2 * steps)
    our_step, engine = ours(index, steps)
    print(f"{CASES[index][0]:18s} {CASES[index][1]:4d}  {engine:5s}", end=" ", flush=True)
    peer = Peer(interpreter, index, steps) if interpreter else None
    try:
        for _ in range(pairs):
            before = bare_pass()
            step = our_step()
            around = (before + bare_pass()) / 2
            yield around, step, peer() if peer else math.nan
    finally:
        if peer:
            peer.close()


def main() -> None:
    """Print one line for each case, and the geometric means."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--chains", type=int, default=NUM_CHAINS)
    parser.add_argument("--peer", type=int)
    parser.add_argument("--steps", type=int, default=8)
    arguments = parser.parse_args()
    globals()["NUM_CHAINS"] = arguments.chains
    if arguments.peer is not None:
        peer_server(arguments.peer, arguments.steps)
        return
    interpreter = os.environ.get(PEER)
    if not interpreter:
        print(f"devinterp is skipped: set {PEER} to an interpreter that has devinterp 1.3.2")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        compare(arguments.pairs, interpreter)
    finally:
        torch.set_num_threads(threads)


def compare(pairs: int, interpreter: str | None) -> None:
    print(f"{NUM_CHAINS} chains, one thread, medians of {pairs} alternating rounds (CPU time)")
    print(f"{'model':18s} batch engine  bare ms  ours ms  ours/bare  devinterp/bare")
    ratios: list[list[float]] = [[], []]
    for index in range(len(CASES)):
        times = list(zip(*rounds(index, pairs, interpreter), strict=True))
        middle = [statistics.median(column) for column in times]
        pair = [
            statistics.median(t / b for t, b in zip(column, times[0], strict=True))
            for column in times[1:]
        ]
        for collected, ratio in zip(ratios, pair, strict=True):
            collected.append(ratio)
        print(
            f"{middle[0] * 1e3:8.3f} {middle[1] * 1e3:8.3f} {pair[0]:10.2f} {pair[1]:15.2f}",
            flush=True,
        )
    means = [math.exp(statistics.fmean(map(math.log, column))) for column in ratios]
    print(
        f"ours: worst {max(ratios[0]):.2f}, geometric mean {means[0]:.2f}; devinterp: geometric "
        f"mean {means[1]:.2f}, {means[1] / means[0]:.1f} times ours"
        if interpreter
        else f"ours: worst {max(ratios[0]):.2f}, geometric mean {means[0]:.2f}"
    )


if __name__ == "__main__":
    main()
