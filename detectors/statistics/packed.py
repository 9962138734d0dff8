"""Numbers of a detector's state in little room: exactly the same ones come back."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np

LARGEST = 2**53
"""Whole numbers below it are exact as floating-point ones."""

Packed = str | dict[str, float] | list[float]


def pack(values: Sequence[float]) -> Packed:
    """Numbers as text, eleven characters each; evenly spaced ones as first, gap and count."""
    if len(values) > 2 and all(abs(value) < LARGEST for value in values):
        first, gap = values[0], values[1] - values[0]
        if all(value == first + i * gap for i, value in enumerate(values)):
            return {"first": first, "gap": gap, "count": len(values)}
    return base64.b64encode(np.array(values, dtype="<f8").tobytes()).decode("ascii")


def unpack(packed: Packed) -> list[float]:
    """What `pack` was given; a list, as earlier versions kept it, is taken as it is."""
    if isinstance(packed, str):
        unpacked: list[float] = np.frombuffer(base64.b64decode(packed), dtype="<f8").tolist()
        return unpacked
    if isinstance(packed, list):
        return [float(value) for value in packed]
    return [packed["first"] + i * packed["gap"] for i in range(int(packed["count"]))]
