"""How losses move together in the local posterior: susceptibilities and influences, with errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phasewatch.monitor.core.estimates import Estimate, EstimateStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Susceptibility:
    """How one component of a model answers to a shift of the data towards a second data set.

    χ = −Cov[φ_C, ΔL], with φ_C(w) = δ(w − w* outside C) (L(w) − L(w*)) and ΔL = L' − L, L the loss
    of the probe and L' that of the second data: (1/nβ) ∂E[φ_C]/∂h for the data (1 − h) of the
    probe and h of the second (Baker, Wang, Hoogland & Murfet 2025, arXiv 2504.18274). The delta
    function turns expectations of φ_C into those of chains that move C alone, E_C, up to a factor
    that is the same for all second data and is left out, as by its authors:

        χ = −(E_C[(L − L(w*)) ΔL] − E_C[L − L(w*)] E[ΔL])

    Attributes:
        component: Its name.
        value: χ, in nats². Below zero where weights of C that raise the loss of the probe raise
            that of the second data more.
        stderr: Standard error of `value`.
        held: −Cov_C[L, ΔL], by the chains of C alone: the answer of C while all other weights are
            held at w*. The same as `value` for the whole model.
        held_stderr: Standard error of `held`.
        terms: χ of each loss term of the second data, in their order, shape (terms,); `value` is
            their mean as the loss takes it.
        terms_stderr: Standard error of each.
        num_looks: Draws of each chain of C at which the losses were taken.
        estimate: λ̂ of C by the same chains, with n, nβ, γ, draws and all that judges them.
        status: OK only where the chains of C and those of the whole model are.
        reason: Why the status is not OK; empty when it is.
    """

    component: str
    value: float
    stderr: float
    held: float
    held_stderr: float
    terms: NDArray[np.float64]
    terms_stderr: NDArray[np.float64]
    num_looks: int
    estimate: Estimate
    status: EstimateStatus
    reason: str = ""

    def __str__(self) -> str:
        """The value with its error, and how far it may be trusted."""
        return (
            f"χ = {self.value:.4g} ± {self.stderr:.2g} nats² of {self.component!r} "
            f"({_conditions(self.estimate)}): {self.status}{_because(self.reason)}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Influence:
    """How much each sample of the probe has to do with the loss of each query.

    BIF(z_i, q) = −Cov[ℓ_i, ℓ_q] over the local posterior (Kreer et al. 2025, arXiv 2509.26544).
    The weight of sample i in nβ L_n is β = nβ/n; to first order its change by a share h changes
    E[ℓ_q] by h β BIF. Without the sample (h = −1) E[ℓ_q] is higher by −β BIF: a sample with an
    influence below zero helps the query.

    Attributes:
        values: BIF, shape (samples, queries), in nats²: one row for each loss term of the probe,
            one column for each of the queries, in the order of their batches.
        stderr: Standard error of each.
        sample_sd: Standard deviation of each ℓ_i over the posterior, shape (samples,), in nats.
        query_sd: The same of each ℓ_q, shape (queries,).
        num_looks: Draws of each chain at which the losses were taken.
        estimate: λ̂ by the same chains, with n, nβ, γ, draws and all that judges them.
        status: OK only where the chains are.
        reason: Why the status is not OK; empty when it is.
    """

    values: NDArray[np.float64]
    stderr: NDArray[np.float64]
    sample_sd: NDArray[np.float64]
    query_sd: NDArray[np.float64]
    num_looks: int
    estimate: Estimate
    status: EstimateStatus
    reason: str = ""

    @property
    def correlation(self) -> NDArray[np.float64]:
        """BIF over both standard deviations, −1 to 1; NaN where a loss does not move at all."""
        scale = np.outer(self.sample_sd, self.query_sd)
        found: NDArray[np.float64] = np.full_like(self.values, np.nan)
        np.divide(self.values, scale, out=found, where=scale > 0.0)
        return found

    def __str__(self) -> str:
        """What it is of, and how far it may be trusted."""
        samples, queries = self.values.shape
        return (
            f"influence of {samples:,} samples on {queries:,} queries "
            f"({_conditions(self.estimate)}): {self.status}{_because(self.reason)}"
        )


def _conditions(estimate: Estimate) -> str:
    return (
        f"n = {estimate.n_samples:,}, nβ = {estimate.n_beta:.4g}, γ = {estimate.localization:.4g}, "
        f"{estimate.num_chains} chains × {estimate.num_draws} draws"
    )


def _because(reason: str) -> str:
    return f" ({reason})" if reason else ""
