"""What the single loss terms tell: functional variance, singular fluctuation, WAIC.

With ℓ_i(w) = −log p(x_i | w) and averages over the draws w:

    V   = Σ_i Var_w[ℓ_i(w)]                   functional variance, summed over all n samples
    ν̂   = (β/2) V                             singular fluctuation; d/2 for a regular model
    T_n = −(1/n) Σ_i log E_w[exp(−ℓ_i(w))]    Bayes training loss
    WAIC = T_n + (β/n) V                      estimates the Bayes generalisation loss, in nats

Source: Watanabe 2009, Algebraic Geometry and Statistical Learning Theory, §6; Watanabe 2010, JMLR
11:3571. All need losses that are normalised negative log-likelihoods in nats.

Errors. To first order V and T_n are means over the draws of

    Σ_i (ℓ_i(w) − E_w[ℓ_i])²   and   −(1/n) Σ_i exp(−ℓ_i(w)) / E_w[exp(−ℓ_i)],

and their standard error is that of a mean of correlated draws, as for λ̂, from sums over blocks of
draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from phasewatch.monitor.sampling.diagnostics import standard_error


@dataclass(frozen=True, slots=True)
class Pointwise:
    """Statistics of the loss terms.

    Attributes:
        functional_variance: V, in nats².
        nu_hat: ν̂.
        nu_stderr: Its standard error; NaN where all draws lie in one block.
        waic: WAIC a sample, in nats.
        waic_stderr: Its standard error from the draws; NaN where all lie in one block. How far WAIC
            is from the Bayes generalisation loss, on these data, is no part of it.
    """

    functional_variance: float
    nu_hat: float
    nu_stderr: float
    waic: float
    waic_stderr: float


class TermSums:
    """Sums over some draws, all chains together, for each loss term.

    Deviations from the terms at w* are summed, not the terms: they are small beside them.

    Args:
        first: Number of the first draw.
        num_terms: Loss terms.
        like: A tensor of the wanted device and dtype.
    """

    def __init__(self, first: int, num_terms: int, like: Tensor) -> None:
        self.first = first
        self.count = 0
        self.total = like.new_zeros(num_terms)
        self.square = like.new_zeros(num_terms)
        self.log_likelihood = like.new_full((num_terms,), -torch.inf)

    def add(self, deviations: Tensor) -> None:
        """One draw: ℓ_i(w) − ℓ_i(w*) of each chain, shape (chains, terms)."""
        self.count += len(deviations)
        self.total += deviations.sum(0)
        self.square += deviations.square().sum(0)
        joint = torch.logsumexp(-deviations, dim=0)
        torch.logaddexp(self.log_likelihood, joint, out=self.log_likelihood)


def pointwise(
    sums: Sequence[TermSums],
    burnin: int,
    center_terms: Tensor,
    n_beta: float,
    n_samples: int,
    total: Callable[[Tensor], Tensor] = lambda values: values,
) -> Pointwise | None:
    """The statistics; None without single loss terms, or with fewer than two draws.

    Variances are the unbiased ones over the draws of all chains. A probe with fewer terms than n
    stands for all of them.

    Args:
        sums: Sums over consecutive draws.
        burnin: Those that begin before this draw are left out.
        center_terms: ℓ_i(w*), shape (terms,).
        n_beta: nβ.
        n_samples: n.
        total: Adds up over the processes among which the terms are spread.
    """
    used = [part for part in sums if part.first >= burnin]
    count = sum(part.count for part in used)
    if count < 2:
        return None
    totals = torch.stack([part.total for part in used]).cpu().double()
    squares = torch.stack([part.square for part in used]).cpu().double()
    likelihoods = torch.stack([part.log_likelihood for part in used]).cpu().double()
    counts = torch.tensor([part.count for part in used], dtype=torch.float64).unsqueeze(1)
    mean = totals.sum(0) / count
    num_terms = float(total(center_terms.new_tensor(len(center_terms)).double()))

    def mean_of(values: Tensor) -> Tensor:
        return total(values.sum(-1)) / num_terms

    variance = float(mean_of((squares.sum(0) - count * mean.square()) / (count - 1)))
    mean_likelihood = likelihoods.logsumexp(0) - math.log(count)  # log E_w[e^(ℓ_i(w*) − ℓ_i(w))]
    training_loss = float(mean_of(center_terms.cpu().double() - mean_likelihood))
    beta = n_beta / n_samples
    # By block, shape (blocks,): what V / n and T_n are means of.
    spread = mean_of((squares - 2.0 * mean * totals) / counts + mean.square())
    relative = -mean_of((likelihoods - counts.log() - mean_likelihood).exp())
    return Pointwise(
        functional_variance=n_samples * variance,
        nu_hat=n_beta / 2.0 * variance,
        nu_stderr=_error_of_mean(n_beta / 2.0 * spread),
        waic=training_loss + beta * variance,
        waic_stderr=_error_of_mean(relative + beta * spread),
    )


def _error_of_mean(blocks: Tensor) -> float:
    if len(blocks) < 2:
        return math.nan
    return standard_error(np.asarray(blocks.tolist())[np.newaxis])
