"""λ̂ at other temperatures, from the draws of one measurement.

Draws from p(w) ∝ exp(−nβ L_n − γ/2 ‖w − w*‖²) stand for those at nβ′ with the weights

    u_t ∝ exp(−(nβ′ − nβ) L_n(w_t)),   E′[L_n] ≈ Σ u_t L_n(w_t)

(importance sampling). Where nβ L_n follows Gamma(λ, 1), nβ′ = nβ (1 + δ) leaves a share of about
exp(−λ δ²) of the draws: temperatures must be close, the closer the larger λ̂ is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phasewatch.monitor.core.errors import RefusedError
from phasewatch.monitor.core.estimates import Estimate
from phasewatch.monitor.sampling.diagnostics import standard_error

MIN_SHARE = 0.2
"""Fewer effective draws than this share of all, and a handful of them decides the mean."""


@dataclass(frozen=True, slots=True)
class Reweighted:
    """λ̂ at another temperature.

    Attributes:
        lambda_hat: nβ′ (E′[L_n] − L_n(w*)).
        lambda_stderr: Its standard error, that of the ratio of sums by the delta method.
        mean_loss: E′[L_n], in nats.
        n_beta: nβ′.
        kish_share: Kish's effective sample size (Σu)²/Σu² over the number of draws.
    """

    lambda_hat: float
    lambda_stderr: float
    mean_loss: float
    n_beta: float
    kish_share: float


def reweight(estimate: Estimate, n_beta: float) -> Reweighted:
    """λ̂ of the same model at nβ′ = `n_beta`, without new draws.

    Args:
        estimate: A measurement whose chains ran on the whole probe.
        n_beta: nβ′.

    Raises:
        RefusedError: There are no draws, or the temperatures are too far apart: then measure at
            nβ′ itself.

    Example:
        >>> import torch
        >>> from phasewatch.monitor.sampling import estimate_llc
        >>> model = torch.nn.Linear(3, 1)
        >>> x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
        >>> batch = (x, model(x).detach())
        >>> def loss(model, batch):
        ...     return 0.5 * (model(batch[0]) - batch[1]).square().sum(dim=1)
        >>> estimate = estimate_llc(model, [batch], loss, n_samples=500)
        >>> other = reweight(estimate, 0.9 * estimate.n_beta)
        >>> abs(other.lambda_hat - 2.0) < 4 * other.lambda_stderr
        True
    """
    if not (math.isfinite(n_beta) and n_beta > 0.0):
        raise RefusedError(f"n_beta is {n_beta}; it must be finite and above zero")
    losses = estimate.chain_loss
    if losses.size == 0:
        raise RefusedError(f"the estimate of step {estimate.step} holds no draws to reweight")
    weights = _weights(losses, n_beta - estimate.n_beta)
    share = float(1.0 / np.mean(np.square(weights)))
    if share < MIN_SHARE:
        raise RefusedError(
            f"n_beta={n_beta:g} is too far from the {estimate.n_beta:g} of the draws: only "
            f"{share:.1%} of them count there, at least {MIN_SHARE:.0%} must. Choose one closer "
            f"(about {_reach(estimate)}), or measure with SamplerConfig(n_beta={n_beta:g})"
        )
    mean = float(np.mean(weights * losses))
    return Reweighted(
        lambda_hat=n_beta * (mean - estimate.init_loss),
        lambda_stderr=n_beta * standard_error(weights * (losses - mean)),
        mean_loss=mean,
        n_beta=n_beta,
        kish_share=share,
    )


def _weights(losses: NDArray[np.float64], difference: float) -> NDArray[np.float64]:
    """Importance weights with mean one."""
    exponents = -difference * losses
    weights: NDArray[np.float64] = np.exp(exponents - exponents.max())
    weights /= weights.mean()
    return weights


def _reach(estimate: Estimate) -> str:
    """The temperatures that this number of draws allows, in words."""
    delta = math.sqrt(-math.log(MIN_SHARE) / max(abs(estimate.lambda_hat), 1.0))
    return f"{estimate.n_beta * max(1 - delta, 0.0):.4g} to {estimate.n_beta * (1 + delta):.4g}"
