"""λ̂ with default settings where λ is known: truth, estimate, error, status.

Noise-free data, so that w* is the empirical minimum; n = 10⁴ terms (10⁶ for the toy models of
superposition). The column "expected" is what a perfect sampler finds at this n: λ − (m − 1)/log n
with multiplicity m, or the integral over the posterior where it can be done. With several seeds the
last lines tell how often λ̂ ± 1.96 standard errors holds it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from phasewatch.monitor.core.estimates import EstimateStatus
from phasewatch.monitor.sampling import SamplerConfig, estimate_llc
from phasewatch.monitor.sampling.closed_forms import all_cases, squared_error


def main() -> None:
    """Print the table and the share of OK."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--num-samples", type=int, default=10_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    header = f"{'model':26s} {'λ':>6s} {'expected':>8s} {'estimate':>16s} {'error':>6s}"
    print(f"{header} {'status':12s} draws seconds reason")
    statuses, errors, holds = [], [], []
    for seed in range(arguments.seeds):
        for case in all_cases(arguments.num_samples):
            found = estimate_llc(
                case.model,
                [case.batch],
                squared_error,
                n_samples=case.n_samples,
                config=SamplerConfig(seed=seed),
            )
            error = found.lambda_hat / case.expected - 1
            statuses.append(found.status)
            holds.append(abs(found.lambda_hat - case.expected) <= 1.96 * found.lambda_stderr)
            if found.status is EstimateStatus.OK:
                errors.append(abs(error))
            print(
                f"{case.name:26s} {case.truth:6.2f} {case.expected:8.2f} "
                f"{found.lambda_hat:8.3f} ± {found.lambda_stderr:5.3f} {error:+6.1%} "
                f"{found.status:12s} {found.num_draws + found.num_burnin:5d} "
                f"{found.duration_seconds:7.2f} {found.reason}",
                flush=True,
            )
    share = statuses.count(EstimateStatus.OK) / len(statuses)
    errors.sort()
    print(
        f"OK: {share:.0%} of {len(statuses)}; |error| of those against `expected`: "
        f"median {errors[len(errors) // 2]:.1%}, worst {errors[-1]:.1%}"
    )
    for status in sorted(set(statuses)):
        chosen = [held for held, one in zip(holds, statuses, strict=True) if one is status]
        print(f"95 % interval holds `expected`, {status}: {share_of(chosen)}")
    print(f"95 % interval holds `expected`, all: {share_of(holds)}")


def share_of(values: list[bool]) -> str:
    """As a percentage and a count."""
    return f"{sum(values) / len(values):.1%} of {len(values)}"


if __name__ == "__main__":
    main()
