"""Influence and susceptibility where both are known: error, coverage of the stated ones, cost.

Linear regressions at their minimum, whose local posterior is Gaussian (`gaussian_posterior` in
`tests/support`): 60 samples, 12 queries, 6 weights in two parts. Errors are root mean squares over
all entries and seeds, over the root mean square of the truth. "stated" is the same of the standard
errors. The cost is in evaluations that `estimate_llc` on the same chains does not make; a forward
pass counts as a third of a gradient, and the further data are as large as the probe.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from phasewatch.monitor.core.context import LossFn
from phasewatch.monitor.core.estimates import EstimateStatus
from phasewatch.monitor.sampling import (
    SamplerConfig,
    estimate_influence,
    estimate_llc,
    estimate_susceptibility,
)
from support.gaussian_posterior import PARTS, Regression, half_square

FORWARD = 1 / 3
"""Cost of a forward pass over that of a gradient."""

Row = tuple[np.ndarray, np.ndarray, np.ndarray]


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--draws", type=int, nargs="+", default=[256, 1024])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'draws':>5s} {'quantity':22s} {'error':>6s} {'stated':>6s}  95 % interval holds  OK")
    for draws in arguments.draws:
        rows: dict[str, list[Row]] = {}
        statuses: dict[str, list[EstimateStatus]] = {}
        for seed in range(arguments.seeds):
            for name, row, status in measured(seed, draws):
                rows.setdefault(name, []).append(row)
                statuses.setdefault(name, []).append(status)
        for name, found in rows.items():
            value, truth, stderr = (np.concatenate(parts) for parts in zip(*found, strict=True))
            scale = np.sqrt(np.mean(truth**2))
            error = np.sqrt(np.mean((value - truth) ** 2)) / scale
            stated = np.sqrt(np.mean(stderr**2)) / scale
            holds = np.mean(np.abs(value - truth) <= 1.96 * stderr)
            is_ok = statuses[name].count(EstimateStatus.OK)
            print(
                f"{draws:5d} {name:22s} {error:6.1%} {stated:6.1%}  {holds:6.1%} of {value.size:6d}"
                f"    {is_ok} of {len(found)}",
                flush=True,
            )
    cost(arguments.draws[-1])


def measured(seed: int, draws: int) -> Iterator[tuple[str, Row, EstimateStatus]]:
    """What is found for one data set: name, (value, truth, error), status."""
    case = Regression.make(seed)
    config = config_of(case, draws, seed)
    data = (case.model, [case.probe], half_square, [case.second])
    found = estimate_influence(*data, n_samples=60, config=config)
    row = (found.values.ravel(), case.influence().ravel(), found.stderr.ravel())
    yield "influence", row, found.status
    parts = {name: name for name in PARTS}
    for name, one in estimate_susceptibility(*data, parts, n_samples=60, config=config).items():
        truth, held = case.susceptibility(PARTS[name])
        yield "susceptibility", row_of(one.value, truth, one.stderr), one.status
        yield "- other weights held", row_of(one.held, held, one.held_stderr), one.status
        yield "- of single samples", (one.terms, truth, one.terms_stderr), one.status


def row_of(value: float, terms: np.ndarray, stderr: float) -> Row:
    """A value against the mean of its terms."""
    return np.array([value]), np.array([terms.mean()]), np.array([stderr])


def config_of(case: Regression, draws: int, seed: int = 0, **changes: object) -> SamplerConfig:
    """A number of draws that is fixed."""
    return SamplerConfig(
        n_beta=case.n_beta,
        localization=case.localization,
        num_draws=draws,
        max_draws=0,
        seed=seed,
        **changes,
    )


def cost(draws: int) -> None:
    """What is evaluated beyond λ̂, counted chain by chain; and processor seconds by vmap."""
    case = Regression.make(num_second=60)
    counts = {"probe": 0, "further": 0}

    def counted(model: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        is_further = batch[0].data_ptr() == case.second[0].data_ptr()
        counts["further" if is_further else "probe"] += 1
        return half_square(model, batch)

    def alone(loss: LossFn, config: SamplerConfig) -> None:
        estimate_llc(case.model, [case.probe], loss, n_samples=60, config=config)

    def influence(loss: LossFn, config: SamplerConfig) -> None:
        further = [case.second]
        estimate_influence(case.model, [case.probe], loss, further, n_samples=60, config=config)

    print(f"\n{draws} draws of four chains")
    known = 0
    for name, run in (("λ̂ alone", alone), ("influence", influence)):
        counts.update(probe=0, further=0)
        run(counted, config_of(case, draws, engine="loop"))
        total = counts["probe"] + counts["further"] * FORWARD
        known = known or counts["probe"]
        seconds = min(spent(run, config_of(case, draws)) for _ in range(3))
        print(
            f"{name:10s} {counts['probe']} evaluations of the probe, {counts['further']} forward "
            f"passes of further data: {total / known:.3f} of λ̂ alone, {seconds:.2f} s of processor"
        )


def spent(run: Callable[[LossFn, SamplerConfig], None], config: SamplerConfig) -> float:
    """Processor seconds of a measurement."""
    began = time.process_time()
    run(half_square, config)
    return time.process_time() - began


if __name__ == "__main__":
    main()
