"""Numbers that lie on devices, read in few transfers."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import torch


def to_floats(values: Sequence[Any]) -> list[float]:
    """Floats of numbers and 0-dim tensors; tensors come over in one transfer from each device.

    A value that is neither, or cannot be read, becomes NaN: it is counted as non-finite where it is
    observed.
    """
    result = [math.nan] * len(values)
    by_device: dict[torch.device, list[int]] = {}
    for index, value in enumerate(values):
        if isinstance(value, torch.Tensor) and not value.is_cpu:
            if value.numel() == 1 and not value.is_complex():
                by_device.setdefault(value.device, []).append(index)
            continue
        with contextlib.suppress(Exception):  # whatever a user's number may do
            result[index] = float(value.item() if isinstance(value, torch.Tensor) else value)
    for device, indices in by_device.items():
        wide = torch.float32 if device.type == "mps" else torch.float64
        with contextlib.suppress(RuntimeError):  # such as a tensor that has no values
            together = [values[i].detach().reshape(()).to(wide) for i in indices]
            for index, number in zip(indices, torch.stack(together).tolist(), strict=True):
                result[index] = number
    return result
