"""Accuracy of `estimate_llc` by class of net, with the defaults, against long-run references.

    python tests/benchmarks/llc_classes.py                 # every class, seeds 0 to 2
    python tests/benchmarks/llc_classes.py --class tied    # one class
    python tests/benchmarks/llc_classes.py --max-draws 4096  # less work than the default allows
    python tests/benchmarks/llc_classes.py --references    # make the references that are missing
    python tests/benchmarks/llc_classes.py --in-run            # as a run measures

The work is bounded by draws alone, not by seconds: a busy machine gives the same numbers.

The references lie in `llc_class_references.json`. They are made by `support.two_sided`, chains that
share no code with the estimator; those that are not trusted are shown and not scored.

In a run γ is √d and chains are done as soon as that is proven; each seed is measured twice, the
second time by chains that go on.

The estimator's settings (how far outside chains start, how they are cooled, friction, when a mass
is set) were picked on four of these nets, marked *, and on three deep linear nets; the other
classes were looked at once, when all was set.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from phasewatch.monitor.core.estimates import Estimate, EstimateStatus
from phasewatch.monitor.isolation import guard, measure_context
from phasewatch.monitor.sampling import Memory, SamplerConfig, estimate_llc, measure_llc
from phasewatch.monitor.sampling.closed_forms import squared_error
from phasewatch.monitor.sampling.net_cases import net_cases
from phasewatch.monitor.sampling.schemes import OUTSIDE_OF_RUNS, chosen_localization
from support.net_classes import CLASSES
from support.trained_nets import TrainedNet
from support.two_sided import TwoSided, two_sided_reference

STORE = Path(__file__).with_name("llc_class_references.json")
SEEN = (
    "zero loss Tanh 2-80-1 n 256",
    "zero loss Tanh 2-20-20-1 n 512",
    "with noise Tanh 7-10-4 n 1000",
    "badly scaled ReLU 6-12-3 by 20",
)
WRONG = 0.25


@dataclass(frozen=True)
class Row:
    """One estimate beside its reference."""

    kind: str
    net: str
    estimate: Estimate
    reference: TwoSided
    seconds: float

    @property
    def error(self) -> float:
        """Relative error."""
        return self.estimate.lambda_hat / self.reference.value - 1

    @property
    def holds(self) -> bool:
        """Whether λ̂ ± 1.96 standard errors (of both) hold the reference."""
        both = math.hypot(self.estimate.lambda_stderr, self.reference.stderr)
        return abs(self.estimate.lambda_hat - self.reference.value) <= 1.96 * both

    @property
    def is_ok(self) -> bool:
        """Status OK."""
        return self.estimate.status is EstimateStatus.OK

    def __str__(self) -> str:
        e, r = self.estimate, self.reference
        mark = "*" if self.net in SEEN else " "
        return (
            f"{self.net:38s}{mark} {r.value:7.2f} ± {r.stderr:4.2f}{'' if r.trusted else '?':1s} "
            f"{e.lambda_hat:7.2f} ± {e.lambda_stderr:5.2f} {self.error:+6.1%} "
            f"{e.lambda_within:7.2f} {e.lambda_outside:7.2f} {e.status.value:11s} "
            f"{e.num_draws + e.num_burnin:6d} {self.seconds:5.1f} {e.virial:5.2f} {e.rhat:4.2f} "
            f"{e.ess:5.0f} {e.reason[:70]}"
        )


def nets(kind: str | None) -> Iterator[tuple[str, TrainedNet]]:
    """The nets of one class, or of all."""
    for name, makers in CLASSES.items():
        if kind in (None, name):
            for make in makers:
                yield name, make()


def load() -> dict[str, TwoSided]:
    """The references that are there."""
    if not STORE.exists():
        return {}
    return {name: TwoSided(**found) for name, found in json.loads(STORE.read_text()).items()}


def save(references: dict[str, TwoSided]) -> None:
    """One line each, in order."""
    lines = [f"{json.dumps(n)}: {json.dumps(asdict(r))}" for n, r in sorted(references.items())]
    STORE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def key_of(net: TrainedNet, in_run: bool) -> str:
    """Name of its reference."""
    return f"{net.name}, in a run" if in_run else net.name


def make_references(kind: str | None, seconds: float, in_run: bool) -> None:
    """Compute those that are missing."""
    references = load()
    for _, net in nets(kind):
        name = key_of(net, in_run)
        if name in references:
            continue
        potential, dimension = net.potential()
        found = two_sided_reference(
            potential,
            dimension,
            n_beta=net.num_samples / math.log(net.num_samples),
            localization=chosen_localization(SamplerConfig(), dimension, in_run=in_run),
            max_seconds=seconds,
        )
        references[name] = found
        save(references)
        print(f"{name:38s} d {dimension:4d} {found}", flush=True)


def selfcheck_references(seconds: float) -> None:
    """The values that `net_cases` holds, afresh."""
    for case in net_cases():
        net = TrainedNet(case.name, case.model, (case.batch[0], case.batch[1]), squared_error)
        potential, dimension = net.potential()
        found = two_sided_reference(
            potential,
            dimension,
            n_beta=case.n_samples / math.log(case.n_samples),
            localization=OUTSIDE_OF_RUNS,
            max_seconds=seconds,
        )
        print(f"{case.name:38s} stored {case.exact} {found}", flush=True)


def summarise(rows: list[Row]) -> None:
    """What is asked for, by class."""
    print(f"\n{'class':26s} runs  OK   median  90 %   held   wrong OK  draws  seconds")
    kinds = [*dict.fromkeys(row.kind for row in rows), "all"]
    for kind in kinds:
        # Below zero there is no coefficient, and the status has to say so.
        some = [
            row
            for row in rows
            if kind in (row.kind, "all") and row.reference.trusted and row.reference.value > 0
        ]
        below = [row for row in rows if kind in (row.kind, "all") and row.reference.value < 0]
        if below:
            told = sum(row.estimate.status is EstimateStatus.NEGATIVE for row in below)
            print(f"{kind:26s} {told} of {len(below)} below zero are told to be")
        good = [row for row in some if row.is_ok]
        if not good:
            print(f"{kind:26s} {len(some):4d}  none OK")
            continue
        sizes = np.abs([row.error for row in good])
        draws = np.median([row.estimate.num_draws + row.estimate.num_burnin for row in some])
        print(
            f"{kind:26s} {len(some):4d} {len(good) / len(some):4.0%} {np.median(sizes):7.1%} "
            f"{np.quantile(sizes, 0.9):6.1%} {np.mean([row.holds for row in good]):6.0%} "
            f"{sum(size > WRONG for size in sizes):5d} {draws:10.0f} "
            f"{np.median([row.seconds for row in some]):7.1f}"
        )


def measured(net: TrainedNet, seed: int, max_draws: int) -> Iterator[tuple[Estimate, float]]:
    """λ̂ outside of a run, and the seconds it took."""
    began = time.process_time()
    config = SamplerConfig(seed=seed, max_draws=max_draws, max_seconds=math.inf)
    found = estimate_llc(net.model, [net.batch], net.loss, n_samples=net.num_samples, config=config)
    yield found, time.process_time() - began


def measured_in_run(net: TrainedNet, seed: int) -> Iterator[tuple[Estimate, float]]:
    """λ̂ as a run measures it: by new chains, then by those that go on."""
    memory = Memory()
    for turn in range(2):
        began = time.process_time()
        with guard(net.model, seed=2 * seed + turn):
            context = measure_context(
                net.model,
                step=turn,
                loss_fn=net.loss,
                batches=[net.batch],
                n_samples=net.num_samples,
                seed=2 * seed + turn,
            )
            found = measure_llc(context, SamplerConfig(), memory=memory)
        yield found, time.process_time() - began


def main() -> None:
    """Print the table and the summary."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--class", dest="kind", choices=[*CLASSES])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--max-draws", type=int, default=SamplerConfig().max_draws)
    parser.add_argument("--in-run", action="store_true", help="as a run measures")
    parser.add_argument("--references", action="store_true", help="compute missing references")
    parser.add_argument("--selfcheck", action="store_true", help="recompute those of selfcheck")
    parser.add_argument("--seconds", type=float, default=40.0, help="CPU time of one reference")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.selfcheck:
        selfcheck_references(arguments.seconds)
        return
    if arguments.references:
        make_references(arguments.kind, arguments.seconds, arguments.in_run)
        return
    references, rows = load(), []
    for kind, net in nets(arguments.kind):
        name = key_of(net, arguments.in_run)
        for seed in range(arguments.seeds if name in references else 0):
            if arguments.in_run:
                found = measured_in_run(net, seed)
            else:
                found = measured(net, seed, arguments.max_draws)
            for estimate, spent in found:
                rows.append(Row(kind, net.name, estimate, references[name], spent))
                print(rows[-1], flush=True)
    summarise(rows)


if __name__ == "__main__":
    main()
