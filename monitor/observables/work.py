"""What measurements take, counted in evaluations of the probe and passes over the weights.

A pass is what an L2 norm of all trainable weights takes. Other work on weights is counted in
numbers that a norm would read in the same time; the factors are of one CPU core, and rough.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.work import Work
from phasewatch.monitor.isolation.batches import leading_size

COPIED, SELECTED, SKETCHED = 2.0, 60.0, 6.0
"""Reads for each number that is copied, ranked (`kthvalue`), or sketched."""

MULTIPLIED, DECOMPOSED, DIAGONALISED = 0.2, 1.5, 16.0
"""Reads for each multiplication of a matrix product; for each m·n·min(m, n) of singular values;
for each n³ of eigenvalues of a matrix that is not symmetric."""


def num_trainable(context: MeasureContext) -> int:
    """Trainable weights, in numbers."""
    return sum(tensor.numel() for tensor in context.params.values())


def reads(context: MeasureContext, num: float) -> Work:
    """Reading so many numbers, in passes over the trainable weights."""
    return Work(weight_passes=num / max(num_trainable(context), 1))


def samples_in(batches: Sequence[object]) -> int:
    """Samples in some batches."""
    return sum(leading_size(batch) for batch in batches)


def of_probe(context: MeasureContext, num_samples: float) -> float:
    """So many samples, as a share of the probe; all of it where there is none to compare with."""
    return num_samples / known if (known := samples_in(context.batches)) else 1.0


def decomposition(matrix: Tensor) -> float:
    """Reads that the singular values of a weight take, as a matrix of its first dimension."""
    rows = max(len(matrix), 1)
    columns = matrix.numel() // rows
    return COPIED * matrix.numel() + DECOMPOSED * matrix.numel() * min(rows, columns)


def added(first: Work, second: Work) -> Work:
    """Both."""
    return Work(
        forwards=first.forwards + second.forwards,
        gradients=first.gradients + second.gradients,
        hessian_products=first.hessian_products + second.hessian_products,
        weight_passes=first.weight_passes + second.weight_passes,
    )
