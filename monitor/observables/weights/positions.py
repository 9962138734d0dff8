"""Where the weights are, so that positions of different steps can be compared.

Of up to `EXACT` trainable weights copies are kept. Of more, each parameter group is known by a
count sketch of `WIDTH` numbers (see `displacement`): distances then have a standard error of
1/√(2 · WIDTH) = 1.1 %, angles one of up to 1/√WIDTH = 0.9°, and a position takes 0.6 MB at most.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.work import Work
from phasewatch.monitor.observables.evaluation import finite
from phasewatch.monitor.observables.weights.displacement import METHOD, ROUNDING, sketch
from phasewatch.monitor.observables.weights.norms import grouped, widened
from phasewatch.monitor.observables.work import SKETCHED, num_trainable

EXACT = 2**18
"""Trainable weights (real numbers) of which full copies are kept: 1 MB each in float32."""

WIDTH = 4096
"""Numbers in the sketch of a larger model's parameter group."""

COMPARED = 12.0
"""Passes that a copy takes, and its distance from another."""

Groups = Mapping[str, Tensor]
"""A vector for each parameter group: its weights, or their sketch. Sums of weights are sums of
these, and norms and angles are the same, for a sketch within its error."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where the weights are at a step.

    Attributes:
        step: The step.
        exact: Whether the vectors are the weights themselves.
        groups: The vector of each parameter group, on the CPU.
    """

    step: int
    exact: bool
    groups: Groups

    @classmethod
    def of(cls, context: MeasureContext) -> Position:
        """Where they are now.

        Raises:
            MeasurementError: A weight is not finite.
        """
        groups = grouped({name: _real(widened(p)) for name, p in context.params.items()})
        exact = sum(t.numel() for tensors in groups.values() for t in tensors) <= EXACT
        vectors = {
            group: _joined(tensors) if exact else sketch(tensors, WIDTH).cpu()
            for group, tensors in groups.items()
        }
        for group, vector in vectors.items():
            finite(vector, f"a weight of {group}")
        return cls(context.step, exact, vectors)

    @staticmethod
    def work(context: MeasureContext) -> Work:
        """What it takes to find, and to compare with another."""
        exact = num_trainable(context) <= EXACT
        return Work(weight_passes=COMPARED if exact else SKETCHED)

    def comparable(self, other: Position | None) -> bool:
        """Whether the other is of the same groups, in the same form."""
        return (
            other is not None
            and self.exact == other.exact
            and {g: v.shape for g, v in self.groups.items()}
            == {g: v.shape for g, v in other.groups.items()}
        )

    def minus(self, other: Position) -> Groups:
        """The displacement from the other."""
        return {g: vector - other.groups[g] for g, vector in self.groups.items()}

    def state_dict(self) -> dict[str, Any]:
        """The vectors, as plain containers."""
        return {
            "step": self.step,
            "exact": self.exact,
            "method": METHOD,
            "groups": {group: _packed(vector) for group, vector in self.groups.items()},
        }

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> Position | None:
        """What `state_dict` described; None of a sketch that another version made."""
        if not state["exact"] and state.get("method") != METHOD:
            return None
        groups = {group: _unpacked(*packed) for group, packed in state["groups"].items()}
        return cls(int(state["step"]), bool(state["exact"]), groups)


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _joined(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1).cpu() for t in tensors])


def _packed(vector: Tensor) -> list[str]:
    array = vector.numpy()
    return [array.dtype.str, base64.b64encode(array.tobytes()).decode("ascii")]


def _unpacked(dtype: str, text: str) -> Tensor:
    array = np.frombuffer(base64.b64decode(text), dtype=dtype)
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))


def squares(groups: Groups) -> dict[str, float]:
    """Squared norms; of all groups together under the empty name, first."""
    found = {
        g: float(torch.linalg.vector_norm(v, dtype=torch.float64)) ** 2 for g, v in groups.items()
    }
    return {"": sum(found.values()), **found}


def products(first: Groups, second: Groups) -> dict[str, float]:
    """Scalar products, in the same order."""
    found = {g: float(first[g].double() @ second[g].double()) for g in first}
    return {"": sum(found.values()), **found}


def part(name: str, group: str) -> str:
    """Name of a group's stream; of the total where the group is empty."""
    return f"{name}/{group}" if group else name


def distances(moved: Groups, position: Position) -> dict[str, tuple[float, float | None]]:
    """Length of a displacement and its standard error; in total under the empty name, first.

    A sketch's square has the relative error √(2/WIDTH), each group's on its own; sums in float32
    add an error of `ROUNDING` times the length of the weights.
    """
    lengths = squares(moved)
    if position.exact:
        return {g: (math.sqrt(s), None) for g, s in lengths.items()}
    sizes = squares(position.groups)
    fourth = sum(s * s for g, s in lengths.items() if g)
    result: dict[str, tuple[float, float | None]] = {}
    for group, square in lengths.items():
        spread = math.sqrt((square * square if group else fourth) * 2.0 / WIDTH)
        error = spread / (2.0 * math.sqrt(square)) if square else 0.0
        rounding = ROUNDING * math.sqrt(sizes[group])
        result[group] = (math.sqrt(square), math.hypot(error, rounding))
    return result
