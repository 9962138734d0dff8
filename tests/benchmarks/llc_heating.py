"""Does anything see that minibatch noise has heated the chains? Predicted against measured heat.

Deep linear nets on data with unit noise, at the empirical minimum: noisy gradients, and plenty of
heat at long steps. Truth is a long full-batch BAOAB chain of the same posterior. Each scheme runs
at three step sizes and two batch sizes, with a fixed number of draws. The first table holds the
excess of λ̂ over the reference beside the predicted one (short steps leave λ̂ too low: they have not
filled the soft directions yet). The second says how well each diagnostic tells the runs that heat
has spoilt (λ̂ more than 25 % too high) from the rest: the area under the ROC curve, 0.5 for a coin
and 1 for an oracle. Then what the status let pass.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from phasewatch.monitor.core.estimates import Estimate, EstimateStatus
from phasewatch.monitor.sampling import SamplerConfig, estimate_llc
from phasewatch.monitor.sampling.closed_forms import (
    Case,
    deep_linear_case,
    regular_case,
    squared_error,
)

SAMPLES, BATCH = 2048, 32
SCHEMES = ("sgld", "rmsprop_sgld", "lm")
SHARES = (0.05, 0.2, 0.6)
"""ε κ/2; for "rmsprop_sgld" with the largest metric that there can be."""
SPOILT = 0.25


@dataclass(frozen=True)
class Row:
    """One run beside its reference."""

    case: str
    scheme: str
    batch_size: int
    share: float
    reference: float
    found: Estimate

    @property
    def error(self) -> float:
        return self.found.lambda_hat / self.reference - 1.0

    @property
    def predicted(self) -> float:
        heat = self.found.step_inflation + self.found.batch_inflation
        return heat / self.reference


def noisy_minimum(case: Case, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Adds unit noise to the targets, and moves the model to the minimum of the noisy loss."""
    x, y = case.batch
    y = y + torch.randn(y.shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for parameter in case.model.parameters():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
            parameter.add_(0.05 * noise)
    optimizer = torch.optim.LBFGS(
        case.model.parameters(), max_iter=2000, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = squared_error(case.model, (x, y)).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return list(zip(x.split(BATCH), y.split(BATCH), strict=True))


def auc(scores: np.ndarray, spoilt: np.ndarray) -> float:
    """Chance that a spoilt run scores above a good one."""
    bad, good = scores[spoilt], scores[~spoilt]
    if not len(bad) or not len(good):
        return math.nan
    above = (bad[:, None] > good).mean() + 0.5 * (bad[:, None] == good).mean()
    return float(above)


def runs(draws: int, reference_draws: int, seed: int) -> list[Row]:
    nets = [((5, 3, 5), 0), ((6, 4, 6), 2), ((3, 3, 3, 3), 1), ((10, 5, 5, 10), 3)]
    cases = [regular_case(4, 4, SAMPLES)]
    cases += [deep_linear_case(*net, num_samples=SAMPLES) for net in nets]
    rows = []
    for case in cases:
        batches = noisy_minimum(case, seed)
        whole = tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
        config = SamplerConfig(seed=seed, max_draws=0, num_draws=reference_draws)
        reference = estimate_llc(
            case.model, [whole], squared_error, n_samples=SAMPLES, config=config
        )
        assert reference.sharpness is not None
        kappa = reference.n_beta * 2.0 * reference.sharpness + 1.0
        for scheme, batch_size, share in itertools.product(SCHEMES, (1, 8), SHARES):
            metric = 10.0 if scheme == "rmsprop_sgld" else 1.0
            config = SamplerConfig(
                scheme=scheme,
                batch_size=batch_size,
                step_size=2.0 * share / kappa / metric,
                num_draws=draws,
                max_draws=0,
                engine="vmap",
                seed=seed,
            )
            found = estimate_llc(
                case.model, batches, squared_error, n_samples=SAMPLES, config=config
            )
            rows.append(Row(case.name, scheme, batch_size, share, reference.lambda_hat, found))
            row = rows[-1]
            print(
                f"{row.case:24s} {scheme:12s} {batch_size * BATCH:5d} {share:5.2f} "
                f"{row.reference:7.2f} {found.lambda_hat:7.2f} {row.error:+7.0%} "
                f"{row.predicted:+9.0%} {found.virial:6.2f} {found.status:11s} "
                f"{found.reason[:50]}",
                flush=True,
            )
    return rows


def main() -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=512)
    parser.add_argument("--reference-draws", type=int, default=4096)
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{'model':24s} {'scheme':12s} {'batch':>5s} {'εκ/2':>5s} {'truth':>7s} {'λ̂':>7s} "
        f"{'error':>7s} {'predicted':>9s} {'virial':>6s} status"
    )
    rows = [
        row
        for seed in range(arguments.seeds)
        for row in runs(arguments.draws, arguments.reference_draws, seed)
    ]
    rows = [row for row in rows if math.isfinite(row.found.lambda_hat)]
    spoilt = np.array([row.error > SPOILT for row in rows])
    wrong = np.array([abs(row.error) > SPOILT for row in rows])
    scores = {
        "predicted heat / λ̂": [
            (row.found.step_inflation + row.found.batch_inflation) / row.found.lambda_hat
            for row in rows
        ],
        "virial": [row.found.virial for row in rows],
        "|virial − 1|": [abs(row.found.virial - 1.0) for row in rows],
        "relative error": [row.found.lambda_stderr / abs(row.found.lambda_hat) for row in rows],
        "drift": [row.found.drift for row in rows],
        "R-hat": [row.found.rhat for row in rows],
    }
    print(f"\n{len(rows)} finite runs, {spoilt.sum()} heated, {wrong.sum()} wrong by over 25 %")
    print(f"{'AUC of':20s} {'heated':>7s} {'wrong':>7s}")
    for name, values in scores.items():
        score = np.nan_to_num(np.array(values), nan=1e9)
        print(f"{name:20s} {auc(score, spoilt):7.2f} {auc(score, wrong):7.2f}")
    hot = [row for row in rows if row.predicted > 0.1]
    gaps = np.array([row.predicted - row.error for row in hot])
    print(
        f"\npredicted − measured excess where over 10 % is predicted ({len(hot)} runs): median "
        f"{np.median(gaps):+.1%}, middle half {np.quantile(gaps, 0.25):+.1%} to "
        f"{np.quantile(gaps, 0.75):+.1%}"
    )
    ok = np.array([row.found.status is EstimateStatus.OK for row in rows])
    print(f"\nstatus OK: {ok.sum()}; of these heated {(ok & spoilt).sum()}, wrong ", end="")
    print(f"{(ok & wrong).sum()}; good runs (error below 10 %) that are OK: ", end="")
    good = np.array([abs(row.error) < 0.1 for row in rows])
    print(f"{(ok & good).sum()} of {good.sum()}")


if __name__ == "__main__":
    main()
