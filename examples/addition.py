"""Watch a small transformer learn to add numbers of five digits: one digit of the sum at a time.

    python examples/addition.py

Nanda et al. 2023 (arXiv 2301.05217, appendix) saw in 5-digit addition that the loss of each digit
of the sum has a phase change of its own, which the mean over the digits blurs.

So it is here: each digit rests at ln 10 = 2.3 nats, falls within some hundred steps, and goes on
falling slowly while carries are learnt. `ComponentLoss` gives each digit a stream and a detector of
its own, and each raises one alarm. The step from which a digit's loss is below one nat, and that of
its alarm, for seeds 0, 1 and 2:

    digit 5, the carry   20, 20, 30        none
    digit 4              190, 190, 180     none
    digit 3              710, 650, 360     700, 640, 340
    digit 2              820, 740, 370     810, 730, 350
    digit 1              860, 850, 440     860, 820, 440
    digit 0, the units   1190, 970, 460    1190, 960, 430

The first two have no alarm: they fall from the first steps on, and no detector knows yet what was
usual. Falls that overlap are one transition, with the alarm of each digit in its evidence: there
are 2, 2 and 1. The training weighs each digit half as much as the one above it: with equal weights
the last four digits came within ten steps of each other. What the streams show is not weighted.

It takes some 35 seconds of CPU time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from common import Panel, conclude, first_crossing, quieten, read_options
from torch import Tensor, nn

from phasewatch.monitor import Watch
from phasewatch.monitor.observables.tokens.components import ComponentLoss

PLUS, EQUALS = 10, 11
KNOWN = 1.0
"""A digit whose loss is below so many nats is known, but for carries; chance is ln 10 = 2.3."""


@dataclass(frozen=True)
class Task:
    """What is trained, and how closely it is watched."""

    digits: int = 5
    width: int = 64
    heads: int = 4
    batch: int = 64
    learning_rate: float = 4e-3
    warmup: int = 200
    falloff: float = 0.5
    steps: int = 2000
    probe: int = 256
    every: int = 10


FAST = Task(digits=2, width=16, heads=2, batch=16, warmup=10, steps=60, probe=32)
"""Tiny: shows that everything works, learns nothing."""


def digits_of(numbers: Tensor, num: int) -> Tensor:
    """Decimal digits, the highest first; shape (batch, num)."""
    return numbers[:, None] // 10 ** torch.arange(num - 1, -1, -1) % 10


def problems(task: Task, num: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens "a + b = s" up to the last digit but one of s, and the digits of s."""
    a, b = torch.randint(10**task.digits, (2, num), generator=random)
    sums = digits_of(a + b, task.digits + 1)
    plus, equals = torch.full((num, 1), PLUS), torch.full((num, 1), EQUALS)
    a_digits, b_digits = digits_of(a, task.digits), digits_of(b, task.digits)
    return torch.cat([a_digits, plus, b_digits, equals, sums[:, :-1]], dim=1), sums


class Adder(nn.Module):
    """A causal transformer of one layer, which is asked for the digits of the sum alone."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        width, length = task.width, 3 * task.digits + 2
        self.heads, self.answers = task.heads, task.digits + 1
        self.embed = nn.Embedding(12, width)
        self.position = nn.Parameter(torch.empty(length, width))
        nn.init.normal_(self.embed.weight, std=0.3)
        nn.init.normal_(self.position, std=0.3)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.hidden = nn.Sequential(
            nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width)
        )
        self.unembed = nn.Linear(width, 10)
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        self.register_buffer("mask", causal[-self.answers :])

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of shape (batch, digits of the sum, 10)."""
        residual = self.embed(tokens) + self.position
        parts = self.query_key_value(self.norms[0](residual)).unflatten(-1, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(
            query[:, :, -self.answers :], key, value, attn_mask=self.mask
        )
        residual = residual[:, -self.answers :] + self.output(seen.transpose(1, 2).flatten(2))
        residual = residual + self.hidden(self.norms[1](residual))
        logits: Tensor = self.unembed(self.norms[2](residual))
        return logits

    def probe_token_losses(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Cross-entropy of each digit of the sum in nats, shape (batch, digits)."""
        tokens, sums = batch
        return nn.functional.cross_entropy(self(tokens).transpose(1, 2), sums, reduction="none")


def main(arguments: list[str] | None = None) -> None:
    """Train, watched."""
    options = read_options(__doc__, "addition", arguments)
    quieten()
    task = FAST if options.fast else Task()
    torch.manual_seed(options.seed)
    random = torch.Generator().manual_seed(options.seed + 1)
    model = Adder(task)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=task.learning_rate, weight_decay=0.1, betas=(0.9, 0.98)
    )
    warmup = torch.optim.lr_scheduler.LinearLR(
        optimizer, start_factor=1 / task.warmup, total_iters=task.warmup
    )
    weights = task.falloff ** torch.arange(task.digits + 1)
    powers = range(task.digits, -1, -1)  # the units are digit 0
    settings = {
        "run_name": f"addition-seed{options.seed}",
        "every_n_steps": task.every,
        "store": str(options.out / "phasewatch.db"),
    }
    watch = Watch(
        settings,
        probe=[problems(task, task.probe, random)],
        observables=[ComponentLoss([f"digit_{power}" for power in powers])],
    )
    with watch:
        watch.check(model)
        for step in range(1, task.steps + 1):
            losses = model.probe_token_losses(problems(task, task.batch, random))
            optimizer.zero_grad()
            (weights * losses).mean().backward()
            optimizer.step()
            warmup.step()
            watch.observe(step, {"train_loss": losses.detach().mean()})
            if watch.due(step):
                watch.probe(step, model)
    streams = {f"loss_digit_{power}": f"digit {power}" for power in powers}
    learnt = {name: first_crossing(watch, name, KNOWN, rising=False) for name in streams}
    panels = [
        Panel("training loss, nats a digit", {"train_loss": "all digits"}, log=True),
        Panel("loss of each digit of the sum on fixed problems, nats", streams, log=True),
    ]
    facts = {f"{streams[name]} is known from step": step for name, step in learnt.items()}
    conclude(watch, options, panels, facts, "Addition: each digit is learnt at once, by itself")


if __name__ == "__main__":
    main()
