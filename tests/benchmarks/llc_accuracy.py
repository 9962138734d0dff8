"""Accuracy of `estimate_llc` with default settings on models that nobody tuned it for.

Random deep linear nets (2 to 5 layers, widths 2 to 40, n = 10⁴) at points of known ranks, with
three kinds of data (`support.random_nets.KINDS`), and small trained nets. Each λ̂ is compared with

    λ           the closed form at this point,
    expected    λ − (μ − 1)/log n, μ the multiplicity: the same to the next order in log n,
    reference   the long-run value of the posterior that is sampled (`support.reference_chains`),
                which n, γ and the noise of the data keep from λ by some per cent.

The references lie in `llc_references.json`; this makes those that are missing (it takes a while):

    python tests/benchmarks/llc_accuracy.py --references
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from phasewatch.monitor.core.estimates import Estimate, EstimateStatus
from phasewatch.monitor.sampling import SamplerConfig, estimate_llc
from support.random_nets import KINDS, Net, build, random_shapes
from support.reference_chains import Effort, Reference, deep_linear_reference, hmc_reference
from support.trained_nets import TRAINED, TrainedNet

STORE = Path(__file__).with_name("llc_references.json")
NUM_NETS, NUM_POINTS = 32, 3
EFFORT = Effort(min_draws=150, relative_stderr=0.01, max_seconds=30.0)
TRAINED_EFFORT = Effort(min_draws=300, relative_stderr=0.01, max_seconds=100.0)
APART = 0.15
"""Points of one net whose λ differ by more than this share must be put in order."""

WRONG = 0.25
"""An error that status OK must never have."""


@dataclass(frozen=True)
class Subject:
    """One posterior: what the estimator is given, and what is known about it.

    Attributes:
        name: Key of the reference.
        family: Nets (of one data kind) whose points are put in order with each other.
        group: "exact", "stratum", "minimum" or "trained".
        layers: Layers of the net.
        truth: λ, or NaN where none is known.
        expected: λ − (μ − 1)/log n.
        estimate: λ̂ from a configuration.
        refer: The long-run value, computed afresh.
    """

    name: str
    family: str
    group: str
    layers: int
    truth: float
    expected: float
    estimate: Callable[[SamplerConfig], Estimate]
    refer: Callable[[], Reference]


def linear_subject(net: Net, seed: int, full_data: bool) -> Subject:
    """A deep linear net. The condensed rows give the same loss at a hundredth of the cost."""

    def estimate(config: SamplerConfig) -> Estimate:
        batch, loss = (net.data, net.loss) if full_data else (net.condensed(), net.condensed_loss)
        return estimate_llc(net.model, [batch], loss, n_samples=net.num_samples, config=config)

    def refer() -> Reference:
        return deep_linear_reference(
            net.model.weights,
            *net.data,
            n_beta=net.num_samples / math.log(net.num_samples),
            localization=SamplerConfig().localization,
            effort=EFFORT,
        )

    family = f"{net.shape.widths} {net.shape.rank} {net.kind} {seed}"
    return Subject(
        f"{net.name} seed {seed}",
        family,
        net.kind,
        len(net.shape.full),
        net.truth,
        net.expected,
        estimate,
        refer,
    )


def trained_subject(net: TrainedNet) -> Subject:
    """A trained net: no closed form."""

    def estimate(config: SamplerConfig) -> Estimate:
        return estimate_llc(
            net.model, [net.batch], net.loss, n_samples=net.num_samples, config=config
        )

    def refer() -> Reference:
        potential, dimension = net.potential()
        return hmc_reference(
            potential,
            dimension,
            n_beta=net.num_samples / math.log(net.num_samples),
            localization=SamplerConfig().localization,
            effort=TRAINED_EFFORT,
        )

    return Subject(net.name, net.name, "trained", 0, math.nan, math.nan, estimate, refer)


def subjects(nets: int, full_data: bool) -> Iterator[Subject]:
    """All of them."""
    for seed, points in enumerate(random_shapes(nets, NUM_POINTS)):
        for shape, kind in itertools.product(points, KINDS):
            yield linear_subject(build(shape, kind, seed), seed, full_data)
    for make in TRAINED:
        yield trained_subject(make())


@dataclass(frozen=True)
class Row:
    """One estimate beside what it should be."""

    subject: Subject
    estimate: Estimate
    reference: Reference | None
    seconds: float

    def error(self, against: str) -> float:
        """Relative error against "truth", "expected" or "reference"; NaN without one."""
        if against == "reference":
            target = self.reference.value if self.reference else math.nan
        else:
            target = getattr(self.subject, against)
        return self.estimate.lambda_hat / target - 1

    @property
    def holds(self) -> bool:
        """Whether λ̂ ± 1.96 standard errors (of both) hold the reference."""
        assert self.reference is not None
        error = math.hypot(self.estimate.lambda_stderr, self.reference.stderr)
        return abs(self.estimate.lambda_hat - self.reference.value) <= 1.96 * error

    def __str__(self) -> str:
        e, s, r = self.estimate, self.subject, self.reference
        long_run = f"{r.value:7.2f} ± {r.stderr:4.2f}" if r else f"{'—':>14s}"
        errors = " ".join(
            f"{self.error(against):+6.0%}" for against in ("truth", "expected", "reference")
        )
        return (
            f"{s.name:46s} {s.truth:6.1f} {s.expected:6.2f} {long_run} {e.lambda_hat:7.2f} ± "
            f"{e.lambda_stderr:5.2f} {errors} {e.status.value:11s} {e.num_draws + e.num_burnin:5d} "
            f"{self.seconds:5.1f} {e.virial:5.2f} {e.reason[:60]}"
        )


HEAD = (
    f"{'net':46s} {'λ':>6s} {'expect':>6s} {'reference':>14s} {'estimate':>15s} {'λ':>6s} "
    f"{'expect':>6s} {'refer.':>6s} {'status':11s} draws  secs virial reason"
)


def load() -> dict[str, Reference]:
    """The references that are there."""
    if not STORE.exists():
        return {}
    return {name: Reference(**found) for name, found in json.loads(STORE.read_text()).items()}


def save(references: dict[str, Reference]) -> None:
    """One line each, in order."""
    lines = [
        f"{json.dumps(name, ensure_ascii=False)}: {json.dumps(asdict(found))}"
        for name, found in sorted(references.items())
    ]
    STORE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def make_references(nets: int) -> None:
    """Compute those that are missing."""
    references = load()
    for subject in subjects(nets, full_data=True):
        if subject.name not in references:
            found = subject.refer()
            references[subject.name] = found
            save(references)
            print(
                f"{subject.name:46s} λ {subject.truth:6.1f}  reference {found.value:7.2f} ± "
                f"{found.stderr:.2f}  R-hat {found.rhat:.3f}  {found.seconds:.0f} s",
                flush=True,
            )


def share(part: Iterable[bool]) -> str:
    """As a percentage and a count."""
    values = list(part)
    return f"{sum(values) / len(values):4.0%} of {len(values)}" if values else "none"


def quantiles(rows: Sequence[Row], against: str) -> str:
    """Median, 90th percentile and bias."""
    errors = [row.error(against) for row in rows]
    errors = [error for error in errors if math.isfinite(error)]
    if not errors:
        return f"{'—':>20s}"
    sizes = np.abs(errors)
    median, high = np.quantile(sizes, [0.5, 0.9])
    return f"{median:5.1%} {high:6.1%} {np.median(errors):+6.1%}"


def summarise(rows: Sequence[Row]) -> None:
    """What the targets ask for, by kind of data, by depth, and by status."""
    print("\n|relative error|: median, 90th percentile; median of the signed error")
    print(f"{'':22s} {'count':>5s}  {'λ':^20s}  {'expected':^20s}  {'reference':^20s}  OK")
    groups: list[tuple[str, Callable[[Row], bool]]] = [("all", lambda row: True)]
    for kind in (*KINDS, "trained"):
        groups.append((kind, lambda row, kind=kind: row.subject.group == kind))
    for layers in range(2, 6):
        groups.append((f"{layers} layers", lambda row, n=layers: row.subject.layers == n))
    for status in EstimateStatus:
        groups.append((status.value, lambda row, s=status: row.estimate.status is s))
    for name, belongs in groups:
        chosen = [row for row in rows if belongs(row)]
        if chosen:
            columns = [quantiles(chosen, against) for against in ("truth", "expected", "reference")]
            ok = share(row.estimate.status is EstimateStatus.OK for row in chosen)
            print(f"{name:22s} {len(chosen):5d}  {'  '.join(columns)}  {ok}")
    good = [row for row in rows if row.estimate.status is EstimateStatus.OK]
    for against in ("expected", "reference"):
        wrong = [row for row in good if abs(row.error(against)) > WRONG]
        print(f"OK with an error beyond {WRONG:.0%} of the {against}: {len(wrong)} of {len(good)}")
        for row in wrong:
            print(f"    {row}")
    print(f"pairs of points in the right order: {share(ordered(rows))}")
    print("95 % interval holds the reference")
    for name, belongs in groups:
        holds = [row.holds for row in rows if belongs(row) and row.reference]
        if holds:
            print(f"    {name:22s} {share(holds)}")
    print(f"status: {dict(Counter(row.estimate.status.value for row in rows))}")


def ordered(rows: Sequence[Row]) -> Iterator[bool]:
    """For each pair of points of one net and one seed with λ apart: whether λ̂ orders them."""
    for one, other in itertools.combinations(rows, 2):
        same = one.subject.family == other.subject.family
        low, high = sorted([one, other], key=lambda row: row.subject.truth)
        if same and high.subject.truth > (1 + APART) * low.subject.truth:
            yield high.estimate.lambda_hat > low.estimate.lambda_hat


def main() -> None:
    """Print the table and the summary."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", type=int, default=NUM_NETS)
    parser.add_argument("--seed", type=int, default=0, help="seed of the estimator's chains")
    parser.add_argument("--full-data", action="store_true", help="all n rows instead of condensed")
    parser.add_argument("--references", action="store_true", help="compute missing references")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.references:
        make_references(arguments.nets)
        return
    references, rows = load(), []
    print(HEAD)
    for subject in subjects(arguments.nets, arguments.full_data):
        began = time.process_time()
        found = subject.estimate(SamplerConfig(seed=arguments.seed))
        spent = time.process_time() - began
        rows.append(Row(subject, found, references.get(subject.name), spent))
        print(rows[-1], flush=True)
    summarise(rows)


if __name__ == "__main__":
    main()
