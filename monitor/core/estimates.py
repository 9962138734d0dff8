"""What a measurement gives: a value, its error, and how far it may be trusted.

Conventions, said once. `step` is the number of optimizer steps completed, never micro-batches.
Losses are mean per-sample negative log-likelihoods in nats. `timestamp` is Unix seconds;
durations are monotonic seconds.
"""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, with_config


class EstimateStatus(StrEnum):
    """How far a number may be trusted. Only `OK` numbers reach a detector.

    OK: finite, and every convergence check passed.
    UNCONVERGED: finite, but a convergence check failed; `reason` says which.
    DIVERGED: not finite, or the chains left the neighbourhood of w*.
    NEGATIVE: λ̂ is significantly below zero: w* is not a local minimum of the probe loss.
    """

    OK = "ok"
    UNCONVERGED = "unconverged"
    DIVERGED = "diverged"
    NEGATIVE = "negative"


@with_config(ConfigDict(arbitrary_types_allowed=True))  # stored ones are checked; it has an array
@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """One measurement of the local learning coefficient (LLC).

    λ̂ = nβ (E_w[L_n(w)] − L_n(w*)), the expectation under the local posterior
    p(w) ∝ exp(−nβ L_n(w) − γ/2 ‖w − w*‖²) (Lau et al. 2023, arXiv 2308.12108).

    Attributes:
        step: Optimizer step at which w* was taken.
        lambda_hat: λ̂, dimensionless.
        lambda_stderr: Standard error of `lambda_hat`.
        nu_hat: Singular fluctuation ν̂ = (β/2) Σ_i Var_w[log p(x_i|w)]; None without per-sample
            losses.
        nu_stderr: Standard error of `nu_hat`.
        functional_variance: V = Σ_i Var_w[log p(x_i|w)]; None without per-sample losses.
        waic: T_n + (β/n) V in nats a sample (Watanabe 2010); None without per-sample losses.
        waic_stderr: Standard error of `waic` from the draws.
        wbic: n·E_w[L_n(w)] in nats; None unless β = 1/log n (Watanabe 2013).
        init_loss: L_n(w*) on the probe, in nats.
        chain_loss: L_n along the chains after burn-in, shape (chains, draws), in nats.
        n_beta: nβ.
        n_samples: n, the number of terms the probe loss averages over.
        step_size: ε in Lau's convention (h² for underdamped schemes).
        localization: γ.
        n_data: Size of the training dataset, if known.
        sample_unit: What one term of the loss is: "sample", "token", ...
        counted: How the terms of each batch were counted, in words.
        noise: "" for a loss that is a function of the weights; "averaged" or "frozen" for one that
            draws random numbers.
        lambda_within: λ̂ of the chains from w* alone.
        lambda_outside: λ̂ of the chains from outside alone; NaN if there are none.
        num_chains: Chains started.
        num_draws: Kept draws of each chain.
        num_burnin: Draws of each chain that were dropped as burn-in.
        warm: Whether the chains went on from where they stood at an earlier measurement.
        rhat: Rank-normalised split R-hat of the chain losses.
        ess: Effective sample size over all chains.
        num_diverged: Chains that left and were excluded.
        num_resets: How often a chain was sent back to w*.
        virial: Mean of V = (w−w*)·(nβ∇L + γ(w−w*))/d; 1 in equilibrium.
        drift: What the last doubling of the draws changed: mean of their last half less that of
            the quarter before it, over |λ̂|.
        step_inflation: Predicted excess of `lambda_hat` from the finite step, in its units; zero
            for schemes that are exact on a quadratic. It is not subtracted.
        batch_inflation: The same from minibatch noise; zero for the whole probe.
        acceptance: Share of the chains' steps that a Metropolis test would let pass: MALA's test,
            or that of the Hamiltonian part for "baoab" and "lm"; None on minibatches.
        sharpness: Largest Hessian eigenvalue of the probe loss at w*, if measured.
        sampler: Name of the sampling scheme.
        engine: "vmap", "loop" or "inplace": how the chains were run.
        probe_mode: "eval" or "train": the mode of the measured copy.
        status: How far to trust the number.
        reason: Why the status is not OK; empty when it is.
        duration_seconds: Time the measurement took.
    """

    step: int
    lambda_hat: float
    lambda_stderr: float
    init_loss: float
    n_beta: float
    n_samples: int
    step_size: float
    localization: float
    num_chains: int
    num_draws: int
    num_burnin: int
    status: EstimateStatus
    duration_seconds: float
    reason: str = ""
    nu_hat: float | None = None
    nu_stderr: float | None = None
    functional_variance: float | None = None
    waic: float | None = None
    waic_stderr: float | None = None
    wbic: float | None = None
    chain_loss: NDArray[np.float64] = field(
        default_factory=lambda: np.empty((0, 0)), repr=False, compare=False
    )
    n_data: int | None = None
    sample_unit: str = "sample"
    counted: str = ""
    noise: str = ""
    lambda_within: float = float("nan")
    lambda_outside: float = float("nan")
    rhat: float = float("nan")
    ess: float = float("nan")
    num_diverged: int = 0
    num_resets: int = 0
    virial: float = float("nan")
    drift: float = float("nan")
    step_inflation: float = float("nan")
    batch_inflation: float = float("nan")
    acceptance: float | None = None
    sharpness: float | None = None
    sampler: str = ""
    engine: str = ""
    warm: bool = False
    probe_mode: str = "eval"

    @property
    def facts(self) -> dict[str, str]:
        """What is to be known of it, in words."""
        return {
            "λ̂": f"{self.lambda_hat:.4g} ± {self.lambda_stderr:.2g}",
            "status": f"{self.status}" + (f" ({self.reason})" if self.reason else ""),
            "loss at w*": f"{self.init_loss:.4g} nats",
            "from w*": f"{self.lambda_within:.4g}",
            "from outside": f"{self.lambda_outside:.4g}",
            "noise of the loss": self.noise or "none",
            "virial": f"{self.virial:.3g}",
            "drift": f"{self.drift:.2g}",
            "predicted heat": f"{self.step_inflation:.2g} from the step, "
            f"{self.batch_inflation:.2g} from minibatches",
            "acceptance": "–" if self.acceptance is None else f"{self.acceptance:.2f}",
            "ESS": f"{self.ess:.3g}",
            "R-hat": f"{self.rhat:.3g}",
            "nβ": f"{self.n_beta:.4g}",
            "n": f"{self.n_samples:,} × {self.sample_unit}"
            + (f" ({self.counted})" if self.counted else ""),
            "γ": f"{self.localization:.4g}",
            "step size": f"{self.step_size:.3g}",
            "draws": f"{self.num_chains} chains × {self.num_draws}, {self.num_burnin} dropped",
            "resets": f"{self.num_resets}",
            "sampler": f"{self.sampler} ({self.engine})",
            "took": f"{self.duration_seconds:.2f} s",
        }

    def __str__(self) -> str:
        """The value with its error, and how far it may be trusted."""
        reason = f" ({self.reason})" if self.reason else ""
        return (
            f"λ̂ = {self.lambda_hat:.4g} ± {self.lambda_stderr:.2g} at step {self.step:,}: "
            f"{self.status}{reason}"
        )

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        rows = "".join(
            f"<dt>{html.escape(key)}</dt><dd>{html.escape(value)}</dd>"
            for key, value in self.facts.items()
        )
        return f"<h3>{html.escape(str(self))}</h3><dl>{rows}</dl>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One value of one observable at one step.

    Attributes:
        name: Name of the stream, for example "train_loss" or "llc".
        step: Optimizer steps completed.
        value: The value, in `unit`.
        unit: Unit in words, for example "nats"; "1" for a dimensionless number.
        stderr: Standard error of `value`, or None if the value is exact.
        epoch: Epoch, if known.
        timestamp: Unix seconds.
        duration_seconds: What the measurement cost.
        status: How far to trust the value.
        reason: Why the status is not OK.
        detail: The full record behind the value; an `Estimate` for the LLC.
    """

    name: str
    step: int
    value: float
    unit: str = "1"
    stderr: float | None = None
    epoch: int | None = None
    timestamp: float = 0.0
    duration_seconds: float = 0.0
    status: EstimateStatus = EstimateStatus.OK
    reason: str = ""
    detail: Estimate | None = None
