"""How sharp the probe loss is, measured from gradients alone.

Power iteration on finite differences, v ← [∇L(w + δv) − ∇L(w)]/δ, one vector for each chain. The
length δ = 1/√κ is the thermal one: how far a chain moves along a direction of curvature κ. So the
number is the curvature that a chain meets, also where the Hessian at w* vanishes (w⁴ at 0) or has
no second derivative to offer (fused attention kernels).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from phasewatch.monitor.core.work import Steps

Gradient = Callable[[Tensor], Tensor]
"""∇L_n at displacements x, both of shape (chains, d); a new tensor at each call."""

TOLERANCE = 0.1
"""Stop when the estimate moves by less than this share. BAOAB at its default step stays stable up
to six times the measured curvature, so more digits buy nothing."""

_TINY = 1e-30


def _norms(vectors: Tensor) -> Tensor:
    lengths: Tensor = vectors.norm(dim=1)
    return lengths


@dataclass(frozen=True, slots=True)
class Sharpness:
    """Result of a power iteration.

    Attributes:
        value: Largest |eigenvalue| of the Hessian of L_n found over the chains.
        vectors: Unit vectors, shape (chains, d): a warm start for the next call.
        sharpest: Which of them belongs to `value`.
    """

    value: float
    vectors: Tensor
    sharpest: int

    @property
    def top(self) -> Tensor:
        """Unit vector near the sharpest direction, shape (d,)."""
        return self.vectors[self.sharpest]


def measure_sharpness(
    gradient: Gradient,
    x: Tensor,
    base: Tensor,
    vectors: Tensor,
    *,
    n_beta: float,
    localization: float,
    guess: float | None = None,
    allowed: float = 0.0,
    max_iterations: int = 10,
    root: Tensor | None = None,
    norms: Callable[[Tensor], Tensor] = _norms,
) -> Steps[Sharpness]:
    """Largest curvature of L_n at the displacements `x`, a step for each gradient.

    Args:
        gradient: ∇L_n as a function of the displacements.
        x: Displacements, shape (chains, d).
        base: ∇L_n at `x`.
        vectors: Where to start, shape (chains, d); overwritten.
        n_beta: nβ.
        localization: γ.
        guess: A curvature known before; it sets the first length.
        allowed: A curvature that the step suits already: what is below it needs no more digits.
        max_iterations: Gradient evaluations at most.
        root: √P of a diagonal metric: the curvature is then that of √P ∇²L √P, whose vectors v
            are displacements √P v. None is the identity.
        norms: Lengths of vectors, (chains, d) to (chains,), where coordinates are spread.
    """
    vectors.div_(norms(vectors).clamp_min_(_TINY)[:, None])
    length = 1.0 if guess is None else 1.0 / _kappa(n_beta, guess, localization) ** 0.5
    if guess is None:
        length = min(length, 1.0 / math.sqrt(max(n_beta, localization, 1.0)))
    value, sharpest = 0.0, 0
    for _ in range(max_iterations):
        # Large models have no room for one more copy: step away and back in the same memory.
        if root is not None:
            vectors.mul_(root)
        products = gradient(vectors.mul_(length).add_(x)).sub_(base).div_(length)
        vectors.sub_(x).div_(length)
        yield
        if root is not None:
            vectors.div_(root)
            products.mul_(root)
        sizes = norms(products)
        found, index = (float(part) for part in sizes.max(dim=0))
        if not math.isfinite(found):  # stepped over a cliff: look closer
            length /= 10.0
            continue
        flat = sizes <= _TINY  # these keep their vector
        vectors.mul_(flat[:, None]).add_(products.div_(sizes.clamp_min(_TINY)[:, None]))
        del products
        settled = found <= allowed or abs(found - value) <= TOLERANCE * found
        value, sharpest = found, int(index)
        length = 1.0 / math.sqrt(_kappa(n_beta, value, localization))
        if settled:
            break
    return Sharpness(value, vectors, sharpest)


def _kappa(n_beta: float, sharpness: float, localization: float) -> float:
    return max(n_beta * sharpness + localization, _TINY)
