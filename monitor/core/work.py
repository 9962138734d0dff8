"""What a measurement takes, and how it is taken in steps."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar


class Cost(StrEnum):
    """What a measurement of an observable takes; each includes those above it.

    STEP: reads what was recorded at the optimizer step. WEIGHTS: reads the weights. FORWARD:
    forward passes over its data, no gradients. GRADIENT: tens of gradients or Hessian-vector
    products. SAMPLING: hundreds of gradients: chains.
    """

    STEP = "step"
    WEIGHTS = "weights"
    FORWARD = "forward"
    GRADIENT = "gradient"
    SAMPLING = "sampling"


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one measurement takes, in evaluations of the whole probe; costs are predicted from it.

    Attributes:
        forwards: Forward passes without a gradient.
        gradients: Forward and backward passes; of chains, each chain's counts.
        hessian_products: Products of the Hessian with a vector.
        weight_passes: Passes over the weights: norms, copies, singular values by their own count.
    """

    forwards: float = 0.0
    gradients: float = 0.0
    hessian_products: float = 0.0
    weight_passes: float = 0.0


T = TypeVar("T")


Steps = Generator[None, None, T]
"""A measurement in steps of one evaluation each. After each it may be left, for ever or until
the budget has earned the next ones; its result is what the generator returns. No context manager
that changes global state (`torch.no_grad`, a kernel setting) may be open across a step: training
goes on in between."""


def run_through(steps: Steps[T]) -> T:
    """Take all steps of a measurement at once.

    Args:
        steps: The measurement.

    Returns:
        What it found.

    Example:
        >>> def halves():
        ...     yield
        ...     return 0.5
        >>> run_through(halves())
        0.5
    """
    while True:
        try:
            next(steps)
        except StopIteration as done:
            result: T = done.value
            return result
