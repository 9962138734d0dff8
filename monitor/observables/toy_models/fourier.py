"""Fourier analysis over the integers mod p: a real basis, spectra, and how sparse they are.

The frequencies are w_k = 2πk/p for k = 1 to ⌊p/2⌋. Everything is computed in float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def basis(p: int, device: torch.device | None = None) -> Tensor:
    """Orthonormal real Fourier basis of functions of x mod p, one a row; shape (p, p).

    The constant first, then cos(w_k x) and sin(w_k x) for each k. For even p the highest frequency
    has no sine, and its cosine is the last row.
    """
    x = torch.arange(p, dtype=torch.float64, device=device)
    rows = [torch.ones_like(x)]
    for k in range(1, p // 2 + 1):
        # k·x is reduced mod p first: the angle then is as exact for large p as for small.
        angle = 2 * math.pi / p * torch.remainder(k * x, p)
        rows += [angle.cos(), angle.sin()] if 2 * k < p else [angle.cos()]
    stacked = torch.stack(rows)
    unit: Tensor = stacked / torch.linalg.vector_norm(stacked, dim=1, keepdim=True)
    return unit


def rows_of(k: int) -> slice:
    """Rows of `basis` that have frequency k: its cosine and its sine."""
    return slice(2 * k - 1, 2 * k + 1)


def component(values: Tensor, k: int, rows: Tensor) -> Tensor:
    """The part of frequency k of functions on the integers mod p.

    Args:
        values: One function a column; shape (p, n).
        k: The frequency, 1 to ⌊p/2⌋.
        rows: What `basis` gave.
    """
    own = rows[rows_of(k)]
    return own.T @ (own @ values)


def spectrum(values: Tensor, rows: Tensor) -> Tensor:
    """Norm of each Fourier component over the columns, the constant left out; shape (p − 1,).

    Args:
        values: One function a column; shape (p, n).
        rows: What `basis` gave.
    """
    norms: Tensor = torch.linalg.vector_norm(rows[1:] @ values.to(rows.dtype), dim=1)
    return norms


def by_frequency(components: Tensor) -> Tensor:
    """Cosine and sine of each frequency taken together: √(cos² + sin²); shape (⌊p/2⌋,).

    Args:
        components: What `spectrum` gave.
    """
    even = torch.nn.functional.pad(components, (0, len(components) % 2))
    norms: Tensor = torch.linalg.vector_norm(even.reshape(-1, 2), dim=1)
    return norms


def gini(values: Tensor) -> float:
    """Gini coefficient of N non-negative numbers: 0 all equal, 1 − 1/N all but one zero.

    G = 1 − 2 Σ_j (c_(j)/‖c‖₁) (N − j + ½)/N with c ascending, j from 1 (Hurley & Rickard 2009,
    arXiv 0811.4706, eq. 3). NaN where all are zero.
    """
    ascending = values.to(torch.float64).sort().values
    count = len(ascending)
    weight = torch.arange(count, 0, -1, dtype=torch.float64, device=values.device) - 0.5
    return float(1 - 2 * (ascending @ weight) / (ascending.sum() * count))


def diagonal_means(values: Tensor, index: Tensor, p: int) -> Tensor:
    """Mean of the rows that share an index; shape (p, n).

    Over all pairs (a, b) with index (a + b) mod p this projects on the functions of a + b, which
    are spanned by the constant and, for each k, by cos(w_k(a+b)) and sin(w_k(a+b)).

    Args:
        values: One row for each pair; shape (p², n).
        index: Of each row, 0 to p − 1; each stands there p times.
        p: Number of means.
    """
    sums = torch.zeros(p, values.shape[1], dtype=values.dtype, device=values.device)
    return sums.index_add_(0, index, values) / p
