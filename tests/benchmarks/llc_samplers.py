"""All sampling schemes against long reference chains, at equal budgets of gradients.

Models of known λ and trained nets (two small MLPs, a 1-layer transformer on modular addition), each
with a fixed probe. Every scheme spends the same number of sample gradients: a full batch for T
steps, or a quarter of the probe for 4 T. The reference is full-batch BAOAB at half its step and
many more draws, of the same posterior. A scheme's only setting is its share of the stability
limit. It is picked on one half of the models, by the root mean square of λ̂/reference − 1, and
scored on the other half, and the other way round: the column "held out" holds the two scores
together. A chain that is lost counts as an error of 100 %. A model whose reference is itself
uncertain by more than 10 % is shown, but neither picked nor scored on.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from llc_step_cost import Transformer

from phasewatch.monitor.core.context import LossFn
from phasewatch.monitor.core.estimates import Estimate, EstimateStatus
from phasewatch.monitor.sampling import SamplerConfig, estimate_llc
from phasewatch.monitor.sampling.closed_forms import (
    Case,
    deep_linear_case,
    monomial_case,
    regular_case,
    squared_error,
)
from phasewatch.monitor.sampling.overdamped import RmspropSgld, Sgld
from phasewatch.monitor.sampling.underdamped import Baoab, LeimkuhlerMatthews

SAMPLES, PARTS = 1024, 4
"""Terms of the probe, and into how many batches it is cut; a minibatch is one of them."""

MAX_REFERENCE_ERROR = 0.1
LANGEVIN = (0.1, 0.3, 0.6)
VARIANTS: dict[str, tuple[type[Any], bool, tuple[float, ...]]] = {
    "baoab": (Baoab, False, (0.2, 0.4, 0.6)),
    "lm": (LeimkuhlerMatthews, False, (0.3, 0.5, 0.7)),
    "sgld": (Sgld, False, LANGEVIN),
    "rmsprop_sgld": (RmspropSgld, False, LANGEVIN),
    "lm, minibatch": (LeimkuhlerMatthews, True, (0.3, 0.45, 0.6)),
    "sgld, minibatch": (Sgld, True, LANGEVIN),
    "rmsprop_sgld, minibatch": (RmspropSgld, True, LANGEVIN),
}
"""Scheme, whether on minibatches, and the shares of the stability limit that are tried."""


@dataclass(frozen=True)
class Subject:
    """A model at w*, its probe and its loss; λ where it is known."""

    name: str
    model: nn.Module
    data: tuple[Tensor, Tensor]
    loss: LossFn
    truth: float | None = None

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        size = math.ceil(len(self.data[0]) / PARTS)
        return list(zip(*(part.split(size) for part in self.data), strict=True))


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def trained(subject: Subject, steps: int, rate: float) -> Subject:
    optimizer = torch.optim.AdamW(subject.model.parameters(), lr=rate, weight_decay=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        subject.loss(subject.model, subject.data).mean().backward()
        optimizer.step()
    return subject


def teacher_student(activation: nn.Module) -> Subject:
    def net(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(6, width), activation, nn.Linear(width, 2))

    torch.manual_seed(0)
    x = torch.randn(SAMPLES, 6)
    y = net(4)(x).detach() + torch.randn(SAMPLES, 2)
    name = f"MLP 6-16-2 {type(activation).__name__}"
    return trained(Subject(name, net(16), (x, y), squared_error), 1500, 1e-2)


def modular_addition(modulus: int = 11) -> Subject:
    torch.manual_seed(0)
    pairs = torch.tensor(list(itertools.product(range(modulus), repeat=2)))
    tokens = torch.cat([pairs, torch.full((len(pairs), 1), modulus)], dim=1)
    tokens = tokens[torch.randperm(len(tokens))]
    sums = tokens[:, :2].sum(1) % modulus
    model = Transformer(vocabulary=modulus, width=16, heads=2)
    return trained(Subject("transformer", model, (tokens, sums), cross_entropy), 400, 1e-2)


def known(case: Case) -> Subject:
    x, y = case.batch
    if len(x) == 1:  # a loss that is known in closed form needs one row only
        x, y = x.expand(SAMPLES, *x.shape[1:]), y.expand(SAMPLES, *y.shape[1:])
    return Subject(case.name, case.model, (x, y), squared_error, case.truth)


def subjects() -> list[Subject]:
    """Neighbours among those that are scored go to different halves."""
    nets = [((5, 3, 5), 0), ((10, 5, 5, 10), 3), ((3, 3, 3, 3), 1), ((6, 4, 6), 2)]
    return [
        known(regular_case(4, 4, SAMPLES)),
        known(monomial_case((1, 2), SAMPLES)),
        *(known(deep_linear_case(*net, num_samples=SAMPLES)) for net in nets),
        teacher_student(nn.Tanh()),
        teacher_student(nn.ReLU()),
        modular_addition(),
    ]


@contextmanager
def share_of(kind: type[Any], share: float) -> Iterator[None]:
    before = kind.FRACTION
    kind.FRACTION = share
    try:
        yield
    finally:
        kind.FRACTION = before


def run(subject: Subject, variant: str, share: float, draws: int, seed: int) -> Estimate:
    kind, minibatch, _ = VARIANTS[variant]
    config = SamplerConfig(
        scheme=kind.name,
        num_draws=draws * (PARTS if minibatch else 1),
        max_draws=0,
        batch_size=1 if minibatch else None,
        engine="vmap",
        seed=seed,
    )
    batches = subject.batches() if minibatch else [subject.data]
    with share_of(kind, share):
        return estimate_llc(
            subject.model, batches, subject.loss, n_samples=len(subject.data[0]), config=config
        )


def error(found: Estimate, reference: float) -> float:
    value = found.lambda_hat / reference - 1.0
    return value if math.isfinite(value) else 1.0


def rms(values: Any) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def main() -> None:
    """Print the errors of each model, and the summary of each scheme."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=128, help="full-batch gradients of a chain")
    parser.add_argument("--reference-draws", type=int, default=2048)
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # errors[variant][share index][model][seed]
    errors: dict[str, list[list[list[float]]]] = {
        variant: [[] for _ in shares] for variant, (_, _, shares) in VARIANTS.items()
    }
    good: dict[str, list[list[list[bool]]]] = {
        variant: [[] for _ in shares] for variant, (_, _, shares) in VARIANTS.items()
    }
    num_scored = 0
    for subject in subjects():
        reference = run(subject, "baoab", 0.2, arguments.reference_draws, seed=999)
        truth = "" if subject.truth is None else f", λ = {subject.truth:g}"
        level = reference.lambda_hat
        sure = reference.lambda_stderr < MAX_REFERENCE_ERROR * level
        print(
            f"\n{subject.name}: reference {level:.2f} ± {reference.lambda_stderr:.2f}{truth}"
            f"{'' if sure else ', not scored'}"
        )
        num_scored += sure
        for variant, (_, _, shares) in VARIANTS.items():
            cells = []
            for index, share in enumerate(shares):
                found = [
                    run(subject, variant, share, arguments.draws, seed)
                    for seed in range(arguments.seeds)
                ]
                missed = [error(one, level) for one in found]
                cells.append(f"s={share:<4g} {np.mean(missed):+6.0%}")
                if sure:
                    errors[variant][index].append(missed)
                    good[variant][index].append([one.status is EstimateStatus.OK for one in found])
            print(f"  {variant:24s} {'   '.join(cells)}", flush=True)
    if num_scored < 2:
        sys.exit("fewer than two references are certain enough; raise --reference-draws")
    print(
        f"\n{'scheme':24s} {'picked s':>12s} {'held out':>9s} {'median':>7s} {'OK':>5s}   RMS by s"
    )
    halves = [range(0, num_scored, 2), range(1, num_scored, 2)]
    for variant, (_, _, shares) in VARIANTS.items():
        table = np.array(errors[variant])
        picked, held, passed = [], [], []
        for mine, other in (halves, halves[::-1]):
            best = int(np.argmin([rms(table[index, mine]) for index in range(len(shares))]))
            picked.append(f"{shares[best]:g}")
            held.append(table[best, other].ravel())
            passed.append(np.array(good[variant])[best, other].ravel())
        scores, oks = np.concatenate(held), np.concatenate(passed)
        overall = "  ".join(f"{s:g}: {rms(table[i]):.2f}" for i, s in enumerate(shares))
        print(
            f"{variant:24s} {', '.join(picked):>12s} {rms(scores):9.3f} "
            f"{np.median(np.abs(scores)):7.3f} {oks.mean():5.0%}   {overall}"
        )


if __name__ == "__main__":
    main()
