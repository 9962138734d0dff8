"""Numbers that lie on devices, read in few transfers."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import torch


def to_floats(values: Sequence[Any]) -> list[float]:
    """Floats of numbers and 0-dim tensors; tensors come over in one transfer from each device.

    A value that is neither becomes NaN: it is counted as non-finite where it is observed.
    """
    result = [math.nan] * len(values)
    by_device: dict[torch.device, list[int]] = {}
    for index, value in enumerate(values):
        if isinstance(value, torch.Tensor) and not value.is_cpu:
            if value.numel() == 1 and not value.is_complex():
                by_device.setdefault(value.device, []).append(index)
        else:
            with contextlib.suppress(TypeError, ValueError, RuntimeError):
                result[index] = float(value.item() if isinstance(value, torch.Tensor) else value)
    for indices in by_device.values():
        stacked = torch.stack([values[i].detach().reshape(()).to(torch.float64) for i in indices])
        for index, number in zip(indices, stacked.tolist(), strict=True):
            result[index] = number
    return result
