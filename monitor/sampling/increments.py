"""The noise of a step: normal, or uniform where the chains average many steps of large buffers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SMALL = 1 << 14
"""Fewer numbers than these are normal in a shorter time than uniform."""

MAX_DAMPING = 0.1
"""hη up to which uniform noise is as good. A direction averages 1/(hη) steps, and its excess
kurtosis is −1.2 tanh(hη): λ̂ does not see it, but the spread of the loss does, and so do λ̂ at other
temperatures and ν̂. With hη = 0.45, λ̂ reweighted from nβ = 50 to 30 was 11 % low."""


def increments(
    like: Tensor, spread: float, generator: torch.Generator, *, damping: float
) -> Tensor:
    """Independent numbers of mean 0 and standard deviation `spread`.

    Args:
        like: Gives shape, dtype and device.
        spread: Standard deviation.
        generator: What is drawn from.
        damping: hη of the chains in the long run.
    """
    out = torch.empty_like(like)
    if damping > MAX_DAMPING or out.numel() < SMALL:
        return out.normal_(0.0, spread, generator=generator)
    return uniform_noise(out, spread, generator)


_ODD = 0x0001_0001_0001_0001
"""Makes each of the four levels in a word odd: −32767, −32765 … 32767, symmetric about zero."""


def uniform_noise(out: Tensor, spread: float, generator: torch.Generator) -> Tensor:
    """Fill `out` with noise of mean 0 and standard deviation `spread`, uniform on 32,768 levels.

    One draw of 64 random bits serves four numbers.

    Args:
        out: Filled in place, any shape.
        spread: Standard deviation.
        generator: What is drawn from.
    """
    count = out.numel()
    words = torch.empty((count + 3) // 4, dtype=torch.int64, device=out.device)
    words.random_(-(2**63), None, generator=generator).bitwise_or_(_ODD)
    levels = words.view(torch.int16)[:count].view(out.shape)
    # Odd levels have variance (65536² − 4)/12.
    return out.copy_(levels).mul_(spread * math.sqrt(12.0 / (65536.0**2 - 4.0)))
