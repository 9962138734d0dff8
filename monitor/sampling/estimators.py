"""From mean losses to the numbers of singular learning theory.

λ̂    = nβ (E_w[L_n(w)] − L_n(w*))                  Lau et al. 2023, arXiv 2308.12108
WBIC = n E_w[L_n(w)] at β = 1/log n                 Watanabe 2013
"""

from __future__ import annotations

import math


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
