"""Means and covariances over the draws of several chains, many at a time, with standard errors.

The error of a mean is that of λ̂ (`diagnostics.standard_error`), of all columns at once:
√(between² + mcse² + (drift/2)²). A covariance is to first order the mean over the draws of
(a − E[a])(b − E[b]), and has the error of that mean.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Draws = NDArray[np.float64]

BLOCK = 2**20
"""Numbers that are worked on at a time: 8 MiB."""


def standard_errors(draws: Draws) -> NDArray[np.float64]:
    """Standard error of the mean of each column.

    Args:
        draws: Shape (chains, draws, columns); at least four draws.

    Returns:
        Shape (columns,); zero where nothing varies.
    """
    means = draws.mean(axis=1)
    between = means.std(axis=0, ddof=1) if len(means) > 1 else np.zeros(draws.shape[2])
    half = draws.shape[1] // 2
    drift = (draws[:, half:].mean(axis=1) - draws[:, half // 2 : half].mean(axis=1)).mean(axis=0)
    num_draws = draws.shape[0] * draws.shape[1]
    spread = draws.reshape(num_draws, -1).std(axis=0, ddof=1)
    mcse = spread / np.sqrt(_effective(draws))
    errors: NDArray[np.float64] = np.sqrt(between**2 / len(means) + mcse**2 + (drift / 2) ** 2)
    return errors


def covariances(left: Draws, right: Draws) -> tuple[Draws, Draws]:
    """Covariance of each column of one with each of the other, and its standard error.

    Args:
        left: Shape (chains, draws, m).
        right: Shape (chains, draws, k).

    Returns:
        Two tables, each of shape (m, k).
    """
    value = np.empty((left.shape[2], right.shape[2]))
    error = np.empty_like(value)
    centred = right - right.mean(axis=(0, 1))
    count = left.shape[0] * left.shape[1]
    for columns in blocks(left.shape[2], count * right.shape[2]):
        part = left[:, :, columns].astype(np.float64)
        part -= part.mean(axis=(0, 1))
        products = (part[:, :, :, None] * centred[:, :, None, :]).reshape(*left.shape[:2], -1)
        shape = (part.shape[2], right.shape[2])
        value[columns] = products.sum(axis=(0, 1)).reshape(shape) / (count - 1)
        error[columns] = standard_errors(products).reshape(shape)
    return value, error


def blocks(num: int, size: int) -> Iterator[slice]:
    """Slices of `num` columns, each of which takes `size` numbers, that fit into `BLOCK`."""
    width = max(BLOCK // max(size, 1), 1)
    for first in range(0, num, width):
        yield slice(first, min(first + width, num))


def _effective(draws: Draws) -> NDArray[np.float64]:
    """Effective sample size of the mean of each column, from split chains (Vehtari et al. 2021)."""
    half = draws.shape[1] // 2
    split = np.concatenate([draws[:, :half], draws[:, -half:]])
    num_chains, length = split.shape[:2]
    means = split.mean(axis=1)
    spectrum = np.fft.rfft(split - means[:, None], n=2 * length, axis=1)
    power = spectrum.real**2 + spectrum.imag**2
    covariance = np.fft.irfft(power, n=2 * length, axis=1)[:, :length].mean(axis=0) / length
    within = covariance[0] * length / (length - 1)
    total = covariance[0] + means.var(axis=0, ddof=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        rho = 1.0 - (within - covariance) / total
    rho[0] = 1.0
    # Geyer's initial monotone sequence: sums of neighbours, while they are above zero and fall.
    pairs = rho[: length // 2 * 2].reshape(length // 2, 2, -1).sum(axis=1)
    kept = np.logical_and.accumulate(pairs > 0.0, axis=0)
    falling = np.minimum.accumulate(np.where(kept, pairs, 0.0), axis=0)
    size = num_chains * length
    tau = np.maximum(2.0 * falling.sum(axis=0) - 1.0, 1.0 / np.log10(size))
    effective: NDArray[np.float64] = size / np.where(np.isfinite(tau), tau, 1.0)
    return effective
