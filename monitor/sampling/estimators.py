"""From draws to the numbers of singular learning theory.

λ̂    = nβ (E_w[L_n(w)] − L_n(w*))                  Lau et al. 2023, arXiv 2308.12108
WBIC = n E_w[L_n(w)] at β = 1/log n                 Watanabe 2013
ν̂    = (β/2) Σ_i Var_w[log p(x_i | w)]              Watanabe 2009; d/2 for a regular model
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class TermSums(Protocol):
    """Sums over some draws of deviations of the loss terms, and of their squares."""

    first: int
    count: int
    total: Tensor | None
    square: Tensor | None


def default_n_beta(n_samples: int) -> float:
    """nβ = n / log n."""
    return n_samples / math.log(n_samples)


def wbic(mean_loss: float, n_beta: float, n_samples: int) -> float | None:
    """WBIC in nats; None unless β = 1/log n, the only temperature at which it is defined.

    Args:
        mean_loss: E_w[L_n(w)].
        n_beta: nβ.
        n_samples: n.
    """
    if n_samples < 2 or not math.isclose(n_beta, default_n_beta(n_samples), rel_tol=1e-6):
        return None
    return n_samples * mean_loss


def nu_hat(blocks: Sequence[TermSums], burnin: int, n_beta: float) -> float | None:
    """Singular fluctuation; None without single loss terms.

    The variance is the unbiased one over the draws of all chains. A probe with fewer terms than n
    stands for all of them.

    Args:
        blocks: Sums of the terms' deviations from their values at w*, by block of draws.
        burnin: Blocks that begin before this draw are left out.
        n_beta: nβ.
    """
    used = [b for b in blocks if b.first >= burnin and b.total is not None and b.square is not None]
    count = sum(block.count for block in used)
    if count < 2:
        return None
    total = torch.stack([b.total for b in used if b.total is not None]).double().sum(0)
    square = torch.stack([b.square for b in used if b.square is not None]).double().sum(0)
    variance = (square - total.square() / count) / (count - 1)
    # β Σ_i Var_i = (nβ/n) n mean(Var)
    return float(n_beta / 2.0 * variance.mean())
