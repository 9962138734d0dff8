"""How many draws at the start of the chains still tell where they began.

The plateau test is the marginal standard error rule (MSER; White 1997, Simulation 69:323): of all
truncations, take the one after which the error of the mean, computed as if the draws were
independent, is smallest,

    b* = argmin_b  (1/(T−b)²) Σ_{t≥b} (m_t − m̄_b)²,

m_t the mean over chains at draw t, averaged over `BLOCK` draws. Draws that are off the plateau cost
more variance than they bring; once on it, dropping more only costs draws.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLOCK = 4
"""Draws averaged into one value of the trace: the rule shall see the drift, not the noise."""

MAX_SHARE = 0.5
"""A plateau that begins later than this has not been reached: the drift check refuses then."""


def plateau(excess: NDArray[np.float64]) -> int:
    """Draws to drop.

    Args:
        excess: L − L(w*) along the chains, shape (chains, draws).
    """
    num_chains, num_draws = len(excess), int(excess.shape[1])
    num_blocks = num_draws // BLOCK
    if num_blocks < 4 or num_chains == 0:
        return 0
    first = num_draws - num_blocks * BLOCK
    trace = excess[:, first:].mean(axis=0).reshape(num_blocks, BLOCK).mean(axis=1)
    trace -= trace.mean()
    left = np.arange(num_blocks, 0, -1)
    sums = np.cumsum(trace[::-1])[::-1]
    squares = np.cumsum(np.square(trace)[::-1])[::-1]
    errors = (squares - sums**2 / left) / left**2
    last = int(MAX_SHARE * num_blocks)
    return first + BLOCK * int(errors[: last + 1].argmin())
