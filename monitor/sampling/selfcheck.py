"""The estimator against models of known λ, and of known long-run λ̂, on the user's own device."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from phasewatch.monitor.config.measuring import SamplerConfig
from phasewatch.monitor.core.errors import ConfigError
from phasewatch.monitor.core.estimates import Estimate, EstimateStatus
from phasewatch.monitor.sampling.closed_forms import Case, all_cases, squared_error
from phasewatch.monitor.sampling.estimate import estimate_llc
from phasewatch.monitor.sampling.net_cases import net_cases
from phasewatch.monitor.sampling.verdict import MAX_RELATIVE_STDERR

NUM_SAMPLES = 2_000
"""Samples of the cases that have data: the verdict needs no more."""

TARGET_ERROR = 2 * MAX_RELATIVE_STDERR
"""Draws end where the status is settled: the rule asks for a fifth, not for a tenth. The monomials
have λ of a quarter, and would need four times as many draws."""

MAX_ERROR = 0.2
NUM_SIGMAS = 3.0
RULE = (
    f"A case passes if its status is ok and the estimate is within {MAX_ERROR:.0%} or "
    f"{NUM_SIGMAS:g} standard errors, whichever is more, of what is expected at its n."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """How the estimator did on one case.

    Attributes:
        name: The case.
        truth: λ in closed form; NaN where only a long-run value is known.
        expected: What a perfect sampler finds at the case's n; λ itself for n → ∞.
        n_samples: n.
        lambda_hat: λ̂.
        lambda_stderr: Its standard error.
        status: Status of the estimate; "failed" where there is none.
        reason: Why the status is not "ok".
        passed: The verdict.
        duration_seconds: What it took.
    """

    name: str
    truth: float
    expected: float
    n_samples: int
    lambda_hat: float
    lambda_stderr: float
    status: str
    reason: str
    passed: bool
    duration_seconds: float

    @property
    def error(self) -> float:
        """Relative error against `expected`."""
        return self.lambda_hat / self.expected - 1.0


def choose_device(name: str = "auto") -> torch.device:
    """The device of this name; "auto" takes an accelerator if there is one.

    Raises:
        ConfigError: There is no such device here.
    """
    available = [
        "cpu",
        *(["cuda"] if torch.cuda.is_available() else []),
        *(["mps"] if torch.backends.mps.is_available() else []),
    ]
    if name == "auto":
        return torch.device(available[-1])
    if name not in available:
        raise ConfigError(
            f"device is {name!r}; this machine has {', '.join(available)}; give one of them, or "
            "auto"
        )
    return torch.device(name)


def run_selfcheck(
    device: torch.device | str = "cpu",
    cases: Iterable[Case] | None = None,
    config: SamplerConfig | None = None,
) -> Iterator[Check]:
    """Measure each case with the defaults of the estimator, save `TARGET_ERROR`, and judge it.

    Args:
        device: Where models, data and chains live.
        cases: What to measure; None takes all that the package knows.
        config: How to sample; None is said default.

    Yields:
        One check a case, as soon as it is done.
    """
    config = config or SamplerConfig(target_error=TARGET_ERROR)
    for case in [*all_cases(NUM_SAMPLES), *net_cases()] if cases is None else cases:
        started = time.monotonic()
        try:
            here = case.to(device)
            estimate = estimate_llc(
                here.model, [here.batch], squared_error, n_samples=case.n_samples, config=config
            )
        except Exception as error:  # an operation that the device lacks is what we look for
            yield _failed(case, error, time.monotonic() - started)
        else:
            yield judge(case, estimate)


def judge(case: Case, estimate: Estimate) -> Check:
    """The verdict on one estimate, by `RULE`."""
    allowed = max(MAX_ERROR * case.expected, NUM_SIGMAS * estimate.lambda_stderr)
    is_near = abs(estimate.lambda_hat - case.expected) <= allowed
    return Check(
        name=case.name,
        truth=case.truth,
        expected=case.expected,
        n_samples=case.n_samples,
        lambda_hat=estimate.lambda_hat,
        lambda_stderr=estimate.lambda_stderr,
        status=estimate.status.value,
        reason=estimate.reason,
        passed=is_near and estimate.status is EstimateStatus.OK,
        duration_seconds=estimate.duration_seconds,
    )


def _failed(case: Case, error: Exception, seconds: float) -> Check:
    return Check(
        name=case.name,
        truth=case.truth,
        expected=case.expected,
        n_samples=case.n_samples,
        lambda_hat=float("nan"),
        lambda_stderr=float("nan"),
        status="failed",
        reason=f"{type(error).__name__}: {error}",
        passed=False,
        duration_seconds=seconds,
    )
