"""Unbiased gradient noise S and signal |G|² from gradients of batches of different sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from phasewatch.monitor.core.context import MicroBatches, StepRecord


def noise_and_signal(
    gradient_norm: Tensor, micro: MicroBatches, n_data: int | None = None
) -> tuple[float, float]:
    """Unbiased S and |G|² of one accumulated step, in units of the step's own gradient.

    Args:
        gradient_norm: Norm of the accumulated gradient, the mean of the micro-batches'.
        micro: What it was accumulated from; its first norm is that of a k-th of its gradient.
        n_data: Samples that they were drawn from without replacement; None for no end of them.
    """
    num = len(micro.num_samples)
    small = (num * float(micro.first_norm)) ** 2
    big = float(gradient_norm) ** 2
    small_share = 1.0 / micro.num_samples[0]
    big_share = sum(1.0 / size for size in micro.num_samples) / num**2 / micro.num_replicas
    noise = (small - big) / (small_share - big_share)
    return noise, big - noise * (big_share - share_of(n_data))


def share_of(n_data: int | None) -> float:
    """What drawing without replacement takes from the noise: 1/n, and 0 of no end of samples."""
    return 1.0 / n_data if n_data else 0.0


def usable(record: StepRecord | None) -> MicroBatches | None:
    """Micro-batches of a step that tell noise from signal: at least two, counted and finite."""
    micro = None if record is None else record.micro_batches
    if record is None or micro is None or len(micro.num_samples) < 2 or 0 in micro.num_samples:
        return None
    # A gradient scaler skips a step that overflowed; its norms are not numbers.
    finite = torch.isfinite(record.gradient_norm) & torch.isfinite(micro.first_norm)
    return micro if bool(finite.all()) else None


def left_out(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of all but one."""
    means: NDArray[np.float64] = (values.sum() - values) / max(len(values) - 1, 1)
    return means


def u_statistics(
    squares: Any, total: Any, num: int, size: int, n_data: int | None
) -> tuple[Any, Any]:
    """S and |G|² from Σ |g_i|² and |Σ g_i|².

    Args:
        squares: Σ |g_i|².
        total: |Σ g_i|².
        num: Number of gradients.
        size: Samples that each is the mean of.
        n_data: Samples that they were drawn from without replacement; None for no end of them.
    """
    spread = (squares - total / num) / (num - 1)
    noise = size * spread
    return noise, total / num**2 - noise * (1.0 / (num * size) - share_of(n_data))
