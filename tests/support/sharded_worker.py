"""One of several processes that hold one model.

Run as `python sharded_worker.py RANK SIZE PORT FOLDER CASES`. Each case is a function of this file.
What it finds on this rank is written to FOLDER as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard
from torch.utils.checkpoint import checkpoint

from phasewatch.monitor import Watch
from phasewatch.monitor.core.errors import MeasurementError, RefusedError
from phasewatch.monitor.core.work import run_through
from phasewatch.monitor.isolation import guard, measure_context
from phasewatch.monitor.isolation.shards import shards_of
from phasewatch.monitor.sampling import (
    SamplerConfig,
    estimate_llc,
    estimate_refined_llc,
    measure_llc,
)
from phasewatch.monitor.sampling.engine import LoopEngine, evaluate
from phasewatch.monitor.sampling.posing import pose
from phasewatch.monitor.sampling.underdamped import Baoab

torch.set_num_threads(1)
warnings.filterwarnings("ignore", category=FutureWarning)  # names of collectives that FSDP uses

QUICK = SamplerConfig(num_chains=2, num_draws=12, max_draws=12, max_seconds=0.0, localization=300.0)
"""All processes share the machine's cores: draws enough to pass through every part of it."""


# ---- models


class Block(nn.Module):
    """Attention and a layer, with a residual, that may be computed again in the backward pass."""

    def __init__(self, again):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))
        self.again = again

    def forward(self, x):
        return checkpoint(self.run, x, use_reentrant=False) if self.again else self.run(x)

    def run(self, x):
        y = self.norm(x)
        return x + self.mlp(self.attention(y, y, y, need_weights=False)[0])


class Language(nn.Module):
    """Embedding and head are one weight; dropout and a buffer; a frozen scale."""

    def __init__(self, again=False):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.blocks = nn.ModuleList([Block(again), Block(again)])
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.scale = nn.Parameter(torch.tensor([0.9]), requires_grad=False)
        self.register_buffer("shift", torch.zeros(8))

    def forward(self, tokens):
        x = self.embedding(tokens) * self.scale + self.shift
        for block in self.blocks:
            x = block(x)
        return self.head(self.dropout(x))


class Convolution(nn.Module):
    """With running statistics, and a plain parameter of its own."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv1d(3, 5, 3), nn.BatchNorm1d(5), nn.ReLU(), nn.Flatten())
        self.out = nn.Linear(15, 3)
        self.tilt = nn.Parameter(torch.randn(3))

    def forward(self, x):
        return self.out(self.net(x)) + self.tilt


def seeded(make, *arguments):
    torch.manual_seed(3)
    return make(*arguments)


def tokens_loss(model, batch):
    logits = model(batch[:, :-1])
    return nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), batch[:, 1:].flatten(), reduction="none"
    )


def squares(model, batch):
    return 0.5 * (model(batch[0]) - batch[1]).square().sum(dim=1)


def token_batches(number, rows=6):
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, 11, (rows, 6), generator=generator) for _ in range(number)]


def real_batches(number, rows=10):
    generator = torch.Generator().manual_seed(6)
    return [
        (torch.randn(rows, 3, 5, generator=generator), torch.randn(rows, 3, generator=generator))
        for _ in range(number)
    ]


def shard(model, mesh, **options):
    """Units are blocks or layers, and the rest."""
    units = getattr(model, "blocks", None) or [
        m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv1d))
    ]
    for unit in units:
        fully_shard(unit, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def regression():
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 2))  # λ = 6
    x = torch.randn(400, 5, generator=generator)
    return model, (x, model(x).detach())


# ---- cases


def flat(model):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return shard(model, mesh)


def llc(draws):
    """λ̂ of a small net, on shards and alone; the same numbers on all ranks."""
    model, batch = seeded(regression)
    config = SamplerConfig(
        num_chains=4, num_draws=int(draws), max_draws=int(draws), max_seconds=0.0
    )
    alone = estimate_llc(model, [batch], squares, n_samples=400, config=config)
    found = estimate_llc(flat(model), [batch], squares, n_samples=400, config=config)
    names = (
        "lambda_hat",
        "lambda_stderr",
        "init_loss",
        "sharpness",
        "nu_hat",
        "nu_stderr",
        "virial",
        "waic",
    )
    return {
        "alone": {name: getattr(alone, name) for name in names},
        "shared": {name: getattr(found, name) for name in names},
        "status": str(found.status),
        "reason": found.reason,
        "engine": found.engine,
    }


CASES_OF_GRADIENTS = {
    "language": (Language, tokens_loss, token_batches),
    "recomputed": (lambda: Language(again=True), tokens_loss, token_batches),
    "convolution": (Convolution, squares, real_batches),
}


def gradients(name):
    """Loss and gradient beside w* are those of one process, however batches are spread."""
    make, loss, batches_of = CASES_OF_GRADIENTS[name]
    size, gaps = dist.get_world_size(), {}
    for number in (1, size, size + 1):
        batches = batches_of(number)
        whole = seeded(make).eval()
        expected = whole_gradient(whole, loss, batches)
        options = {"ignored_params": {whole.tilt}} if name == "convolution" else {}
        mesh = init_device_mesh("cpu", (size,))
        gaps[number] = gap_of(shard(seeded(make), mesh), loss, batches, expected)
        if options:  # replicated, not sharded
            model = seeded(make)
            fully_shard(model, mesh=mesh, ignored_params={model.tilt})
            gaps[f"{number} replicated"] = gap_of(model, loss, batches, expected)
    if size == 4:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "shards"))
        gaps["hybrid"] = gap_of(shard(seeded(make), mesh), loss, batches, expected)
    if name == "language":
        mesh = init_device_mesh("cpu", (size,))
        sideways = shard(seeded(make), mesh, shard_placement_fn=by_columns)
        gaps["columns"] = gap_of(sideways, loss, batches, expected)
    return gaps


def by_columns(parameter):
    return Shard(1) if parameter.ndim == 2 else None


def whole_gradient(model, loss, batches):
    terms = torch.cat([loss(model, batch) for batch in batches])
    terms.mean().backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    return float(terms.mean().detach()), grads


def gap_of(model, loss, batches, expected):
    """The largest difference of loss and gradient, relative; of what lies here."""
    shards = shards_of(model)
    n = sum(len(loss_terms(batch)) for batch in batches)
    with guard(model, seed=0):
        context = measure_context(
            model, step=0, loss_fn=loss, batches=batches, n_samples=n, shards=shards
        )

        def steps():
            problem = pose(context)
            x = problem.displacements(1)
            found = [
                evaluate(LoopEngine(problem), problem, x, range(len(problem.batches)))
                for _ in range(2)  # as noted, and as played
            ]
            yield
            return problem, found

        problem, found = run_through(shards.joined(steps()))
    gap = max(abs(float(f.loss) - expected[0]) for f in found)
    for f in found:
        for name, part in problem.layout.cut(f.grad[0]).items():
            truth = shards.part(name, expected[1][name])
            gap = max([gap, *(part - truth).abs().tolist()])
    return gap


def loss_terms(batch):
    return batch[0] if isinstance(batch, tuple) else batch[:, 1:].flatten()


def low_precision(_):
    """bf16 in the units, as `MixedPrecisionPolicy` says: the copy computes as training does."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    model = seeded(Language)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    shard(model, mesh, mp_policy=policy).eval()
    (batch,) = token_batches(1)
    with torch.no_grad():
        truth = float(tokens_loss(model, batch).mean())
    # Tokens are not cast, so that the first weights decide.
    found = estimate_llc(model, [batch], tokens_loss, n_samples=30, config=QUICK)
    return {"live": truth, "measured": found.init_loss}


def parts(_):
    """Restrictions by name, by module and by mask."""
    model = seeded(Language)
    masks = {"embedding.weight": torch.arange(11)[:, None] < 3}
    flat(model)
    found = estimate_refined_llc(
        model,
        token_batches(1),
        tokens_loss,
        {"names": "blocks.0.*", "module": model.blocks[1].mlp, "mask": masks},
        n_samples=30,
        config=QUICK,
    )
    return {name: estimate.lambda_hat for name, estimate in found.items()}


def digest(model, optimizer):
    """Bits of everything that training goes on from."""
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    local = [p.to_local() if hasattr(p, "to_local") else p for p in trained]
    grads = [p.grad for p in trained]
    grads = [g.to_local() if hasattr(g, "to_local") else g for g in grads if g is not None]
    states = [
        value.to_local() if hasattr(value, "to_local") else value
        for state in optimizer.state.values()
        for value in state.values()
    ]
    tensors = [*local, *grads, *model.buffers(), *states, torch.get_rng_state()]
    held = [[type(p).__name__, list(p.shape)] for p in model.parameters()]
    return [held, *(t.detach().reshape(-1).tolist() for t in tensors if t.numel())]


def train(make, loss, batches, between, steps=4):
    """Train with what happens `between` the steps, and give the bits of each step."""
    model = flat(seeded(make))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    torch.manual_seed(100 + dist.get_rank())
    bits = []
    for step in range(steps):
        model.train()
        for micro in range(2):
            model.set_requires_gradient_sync(micro == 1)
            loss(model, batches[(2 * step + micro) % len(batches)]).mean().backward()
            between(model, f"{step} micro {micro}")
        optimizer.step()
        between(model, f"{step} stepped")
        if step % 2:
            model.eval()
            with torch.no_grad():
                loss(model, batches[0])
            between(model, f"{step} evaluated")
        bits.append(digest(model, optimizer))
        optimizer.zero_grad()
    return bits


def untouched(name):
    """Training is equal bit for bit: also with gradients kept, and with weights left gathered."""
    make, loss, batches_of = CASES_OF_GRADIENTS[name]
    batches, measured = batches_of(3), []

    def measure(model, _):
        measured.append(estimate_llc(model, batches, loss, n_samples=60, config=QUICK).lambda_hat)

    clean = train(make, loss, batches, lambda *_: None, steps=2)
    watched = train(make, loss, batches, measure, steps=2)
    return {"equal": clean == watched, "measured": len(measured), "values": measured}


class Failing:
    """A loss that raises on one rank, at one evaluation of those that are counted."""

    def __init__(self, error, rank, at):
        self.error, self.at, self.count = error, at, 0
        self.fails_here = dist.get_rank() == rank

    def __call__(self, model, batch):
        losses = tokens_loss(model, batch)
        self.count += 1
        if self.fails_here and self.count == self.at:
            raise self.error
        return losses


def failures(_):
    """One rank fails, at whatever place: all raise the same, none waits, and training goes on."""
    batches = token_batches(2)
    errors = {
        "loss, first evaluation": Failing(ValueError("broken"), 1, 1),
        "loss, in the middle": Failing(ValueError("broken"), 1, 40),
        "loss, on the first rank": Failing(ValueError("broken"), 0, 40),
        "refused": Failing(RefusedError("not like this"), 1, 40),
        "interrupted": Failing(KeyboardInterrupt(), 1, 40),
    }
    told = {}

    def measured(model, key, loss=tokens_loss):
        try:
            estimate_llc(model, batches, loss, n_samples=60, config=QUICK)
        except BaseException as error:
            told[key] = [type(error).__name__, str(error)]
        else:
            told[key] = ["", ""]

    def between(model, where):
        if where == "0 stepped":
            for key, loss in errors.items():
                measured(model, key, loss)
            measured_with_layer(model, "inside a layer")
            measured_with_sampler(model, "in the sampler")
            measured(model, "afterwards")

    def measured_with_layer(model, key):
        layer = model.blocks[0].mlp[0]
        calls = []

        def raising(*_):
            calls.append(1)
            if dist.get_rank() == 1 and len(calls) == 50:
                raise ValueError("in a layer")

        handle = layer.register_forward_hook(raising)
        measured(model, key)
        handle.remove()

    def measured_with_sampler(model, key):
        real = Baoab.advance

        def raising(self, *arguments):
            raise MemoryError("no room")

        if dist.get_rank() == 1:
            Baoab.advance = raising
        measured(model, key)
        Baoab.advance = real

    clean = train(Language, tokens_loss, batches, lambda *_: None, steps=2)
    watched = train(Language, tokens_loss, batches, between, steps=2)
    return {"told": told, "equal": clean == watched}


def different_probes(_):
    """Each rank must give the same probe."""
    model = flat(seeded(Language))
    batch = token_batches(1)[0] + (dist.get_rank() == 1)
    try:
        estimate_llc(model, [batch % 11], tokens_loss, n_samples=30, config=QUICK)
    except MeasurementError as error:
        return {"error": [type(error).__name__, str(error)]}
    return {"error": None}


def deadline(_):
    """The processes end at the same draw, though one of them is slow."""
    model = flat(seeded(Language))

    def slow(copy, batch):
        time.sleep(0.01 * dist.get_rank())
        return tokens_loss(copy, batch)

    config = QUICK.model_copy(update={"num_draws": 4000, "max_draws": 4000})
    shards = shards_of(model)
    with guard(model, seed=0):
        context = measure_context(
            model,
            step=0,
            loss_fn=slow,
            batches=token_batches(1),
            n_samples=30,
            shards=shards,
        )
        found = measure_llc(replace(context, deadline_seconds=2.0 + dist.get_rank()), config)
    return {"draws": found.num_draws + found.num_burnin, "lambda_hat": found.lambda_hat}


def noisy(_):
    """A loss that draws."""
    model = flat(seeded(Language))

    def drawing(copy, batch):
        return tokens_loss(copy, batch) + 0.01 * torch.rand(())

    config = QUICK.model_copy(update={"noise_draws": 2})
    found = estimate_llc(model, token_batches(1), drawing, n_samples=30, config=config)
    return {"noise": found.noise, "lambda_hat": found.lambda_hat}


def schemes(_):
    """Every scheme, minibatches, and chains in place."""
    model = flat(seeded(Language))
    found = {}
    for change in (
        {"scheme": "sgld"},
        {"scheme": "rmsprop_sgld"},
        {"scheme": "lm", "batch_size": 1},
        {"engine": "inplace"},
    ):
        config = QUICK.model_copy(update=change)
        estimate = estimate_llc(model, token_batches(4), tokens_loss, n_samples=120, config=config)
        found[str(change)] = [estimate.lambda_hat, estimate.engine, estimate.sampler]
    return found


def watched(_):
    """A plain loop with a watch on the first rank, as the docs show it."""
    batches, rank = token_batches(2), dist.get_rank()
    folder = Path(sys.argv[4])
    settings = {"store": str(folder / "runs.db"), "exporter": {"enabled": False}}
    told, norms = {}, []

    def loop(watch):
        def between(model, where):
            if not where.endswith("stepped"):
                return
            step = int(where[0]) + 1
            with watch.spending() if watch else nullcontext():
                estimate = estimate_llc(model, batches, tokens_loss, n_samples=60, config=QUICK)
            told[step] = estimate.lambda_hat
            grads = [p.grad for p in model.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(grads).full_tensor()
            norms.append(float(norm))
            if watch:
                if step == 1:
                    watch.check(model)
                watch.observe(step, {"train_loss": 1.0, "gradient_norm": norm})
                watch.observe_estimate(step, estimate)

        return train(Language, tokens_loss, batches, between, steps=2)

    clean = train(Language, tokens_loss, batches, lambda *_: None, steps=2)
    found = {}
    with Watch(settings) if rank == 0 else nullcontext() as watch:
        bits = loop(watch)
        if watch:
            steps, values, _ = watch.history("llc", include_unconverged=True)
            found = {
                "steps": steps.tolist(),
                "values": values.tolist(),
                "norms_kept": watch.history("gradient_norm")[1].tolist(),
                "refused": dict(watch.health.skip_reasons),
                "failures": sum(watch.health.measurement_failures.values()),
            }
    return {"equal": bits == clean, "told": list(told.values()), "norms": norms, **found}


def main():
    rank, size, port, folder, cases = sys.argv[1:6]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    dist.init_process_group(
        "gloo", rank=int(rank), world_size=int(size), timeout=timedelta(seconds=40)
    )
    results = {}
    for case in cases.split(","):
        name, _, argument = case.partition(":")
        results[case] = globals()[name](argument)
    (Path(folder) / f"rank{rank}.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
