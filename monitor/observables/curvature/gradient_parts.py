"""The probe in parts of one size, and the inner products of their gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.errors import RefusedError
from phasewatch.monitor.isolation.batches import leading_size, mapped
from phasewatch.monitor.sampling.batches import describe
from phasewatch.monitor.sampling.engine_choice import working_loop
from phasewatch.monitor.sampling.memory_budget import FREE_SHARE, free_bytes, loop_bytes, mebibytes
from phasewatch.monitor.sampling.posterior import Problem

CHUNK = 2**20
"""Entries of gradients that are taken to double precision at a time."""


def equal_parts(context: MeasureContext, num_wanted: int) -> tuple[list[Any], int]:
    """The probe in at most so many parts of one size, and that size.

    Raises:
        RefusedError: It cannot be cut.
    """
    parts: Sequence[Any] = context.batches
    if 0 < len(parts) < num_wanted:
        share = math.ceil(num_wanted / len(parts))
        parts = [part for batch in parts for part in _cut(batch, share)]
    sizes = [leading_size(part) for part in parts]
    alike = [part for part, size in zip(parts, sizes, strict=True) if size == sizes[0]]
    return alike[:num_wanted], sizes[0] if sizes else 0


def affordable(problem: Problem) -> Problem:
    """The same problem.

    Raises:
        RefusedError: There is no memory for the gradients of its batches.
    """
    needed = loop_bytes(problem, 1) + len(problem.batches) * problem.state_bytes
    limit = int(FREE_SHARE * free_bytes(problem.device))
    if needed > limit:
        raise RefusedError(
            f"the gradient noise needs {mebibytes(needed)} for {len(problem.batches)} gradients, "
            f"and may take {mebibytes(limit)}; set num_gradients lower"
        )
    return problem


def _cut(batch: Any, num_parts: int) -> list[Any]:
    """A batch in at most so many parts of one size; what is left over is dropped."""
    total = leading_size(batch)
    size = max(total // num_parts, 1)

    def rows(leaf: Any, first: int) -> Any:
        if isinstance(leaf, Tensor):
            has_samples = leaf.ndim > 0 and leaf.shape[0] == total
            return leaf[first : first + size] if has_samples else leaf
        if hasattr(leaf, "__dict__"):
            raise RefusedError(
                f"the gradient noise cannot cut a probe batch ({describe(leaf)}) into parts; give "
                "the probe in many small batches (probe.batch_size)"
            )
        return leaf

    return [mapped(batch, partial(rows, first=first)) for first in range(0, total - size + 1, size)]


def inner_products(problem: Problem) -> NDArray[np.float64]:
    """g_i · g_j of the gradients of all batches, shape (n, n), in double precision."""
    loop = working_loop(problem)
    x = problem.displacements(1)
    gradients = torch.cat([loop.batch(x, index)[1] for index in range(len(problem.batches))])
    products = torch.zeros(len(gradients), len(gradients), dtype=torch.float64)
    for part in gradients.split(CHUNK, dim=1):
        wide = part.double()
        products += (wide @ wide.T).cpu()
    found: NDArray[np.float64] = products.numpy()
    return found
