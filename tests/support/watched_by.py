"""One training of a network that groks modular addition, watched by one tool, or by none.

    python watched_by.py TOOL FOLDER SEED

A script that needs torch and the tool alone: it runs in an interpreter of their own. It prints a
line of JSON when training begins, when the network has understood, and at the end.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

P, STEPS, WARMUP, VAL_EVERY = 53, 1200, 200, 5
PACE_SECONDS = 0.02
"""Training alone takes 2 ms a step here, and would be over before anybody looks."""


class Adder(nn.Module):
    """Embeds both numbers, squares one hidden layer, and gives logits of the possible sums."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(P, 32)
        self.hidden = nn.Linear(64, 64)
        self.unembed = nn.Linear(64, P, bias=False)

    def forward(self, pairs):
        return self.unembed(self.hidden(self.embed(pairs).flatten(start_dim=-2)).square())


def loss_fn(model, batch):
    return nn.functional.cross_entropy(model(batch[0]).double(), batch[1], reduction="none")


class Nobody:
    def before_step(self, step, loss): ...

    def after_step(self, step, scalars): ...


@contextmanager
def nobody(folder, model, optimizer, batch) -> Iterator[Nobody]:
    yield Nobody()


@contextmanager
def phasewatch(folder, model, optimizer, batch) -> Iterator[Nobody]:
    """With its defaults."""
    from phasewatch.monitor import Watch

    settings = {"store": str(folder / "phasewatch.db"), "run_name": "run"}
    with Watch(settings, probe=[batch], loss_fn=loss_fn) as watch:
        watch.check(model)

        class Ours(Nobody):
            def before_step(self, step, loss):
                watch.before_step(step, model.named_parameters())

            def after_step(self, step, scalars):
                watch.observe(step, scalars)
                if watch.due(step):
                    watch.probe(step, model)

        yield Ours()


@contextmanager
def trainscope(folder, model, optimizer, batch) -> Iterator[Nobody]:
    """With its defaults. It takes the training loss, and has no place for others."""
    from trainscope import TrainScope
    from trainscope.core.config import TrainScopeConfig

    config = TrainScopeConfig(run_dir=str(folder), run_name="run")
    scope = TrainScope(model, optimizer, config=config).attach()

    class Theirs(Nobody):
        def before_step(self, step, loss):
            scope.step(loss.item(), batch_index=step)

    yield Theirs()
    scope.detach()


@contextmanager
def tensorboard(folder, model, optimizer, batch) -> Iterator[Nobody]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "run"))

    class Theirs(Nobody):
        def after_step(self, step, scalars):
            for name, value in scalars.items():
                writer.add_scalar(name, float(value), step)

    yield Theirs()
    writer.close()


TOOLS: dict[str, Callable] = {
    made.__name__: made for made in (nobody, phasewatch, trainscope, tensorboard)
}


def say(what: str, **more) -> None:
    print(json.dumps({"what": what, "at": time.time(), **more}), flush=True)


def train(tool: str, folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    pairs = torch.cartesian_prod(torch.arange(P), torch.arange(P))
    labels = pairs.sum(dim=1) % P
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))
    (seen, held_out) = [(pairs[part], labels[part]) for part in order.tensor_split(2)]
    model = Adder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=1.0, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / WARMUP, total_iters=WARMUP)
    losses: dict[int, float] = {}
    understood = perfect = 0
    with TOOLS[tool](folder, model, optimizer, seen) as watching:
        say("begin")
        for step in range(1, STEPS + 1):
            optimizer.zero_grad()
            loss = loss_fn(model, seen).mean()
            loss.backward()
            watching.before_step(step, loss.detach())
            optimizer.step()
            schedule.step()
            scalars = {"train_loss": loss.detach()}
            if step % VAL_EVERY == 0:
                with torch.no_grad():
                    logits = model(held_out[0]).double()
                scalars["val_loss"] = nn.functional.cross_entropy(logits, held_out[1])
                accuracy = (logits.argmax(dim=-1) == held_out[1]).double().mean()
                scalars["val_accuracy"] = accuracy
                losses[step] = float(scalars["val_loss"])
                if not understood and float(accuracy) > 0.5:
                    understood = step
                    say("understood", step=step)
                if not perfect and float(accuracy) > 0.99:
                    perfect = step
            watching.after_step(step, scalars)
            time.sleep(PACE_SECONDS)
        say("trained")
    total = sum(float(p.detach().double().sum()) for p in model.parameters())
    begins = max((s for s in losses if s <= understood), key=losses.__getitem__)
    say("end", weights=total.hex(), begins=begins, perfect=perfect)


if __name__ == "__main__":
    train(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
