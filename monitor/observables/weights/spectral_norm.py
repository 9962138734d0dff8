"""The gain of single matrices: their largest singular value."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.errors import RefusedError
from phasewatch.monitor.core.estimates import EstimateStatus, Observation
from phasewatch.monitor.core.meaning import SUPPORTING
from phasewatch.monitor.core.work import Cost, Work
from phasewatch.monitor.observables.evaluation import finite, listed
from phasewatch.monitor.observables.weights.norms import grouped, observed, widened
from phasewatch.monitor.observables.work import decomposition, reads

EXACT_SIDE = 128
"""A matrix whose shorter side is no longer than this is decomposed."""


TOLERANCE = 1e-3
"""The search ends when ‖WᵀWv − σ²v‖ is below this share of σ²: σ is then within half of it of a
singular value."""


SEARCHED, ROUNDS = 12, 10
"""Dimensions of the subspace that is searched in each round, and rounds at most."""


NOISE = 0.1
"""Length of the random vector that is added to the last one: a singular value that has outgrown it
may belong to a vector that has no part in it."""


SMALLEST = 1e-6
"""Share of a vector that must be left outside a subspace to be told from rounding in float32."""


class SpectralNorm:
    """Largest singular value σ of the weight matrices, in units of a weight.

    Of each parameter group that of its largest matrix, and the largest of all as "spectral_norm".
    A matrix is a trainable parameter of two dimensions; of more, the first against all others (a
    convolution's kernel, reshaped: not the norm of the convolution itself). With a side of up to
    128 the singular values are computed. Otherwise a power iteration goes on from the vector v of
    the last measurement, each round of which takes the best vector of all of span(v, WᵀWv, …,
    (WᵀW)¹¹v) (Lanczos), until ‖WᵀWv − σ²v‖ ≤ 0.001 σ² with σ = ‖Wv‖. What is not that far after
    ten rounds is UNCONVERGED. A resumed run starts from random vectors.

    Example:
        >>> import torch
        >>> from phasewatch.monitor.observables.once import measure_once
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.constant_(model.weight, 3.0)
        >>> found = measure_once(SpectralNorm(), model)
        >>> found[0].name, round(found[0].value, 3)
        ('spectral_norm', 4.243)
    """

    name = "spectral_norm"
    unit = "weight"
    cost = Cost.WEIGHTS
    reads_live = True
    needs = "trainable weight matrices"
    source = "Yoshida and Miyato 2017, arXiv 1705.10941, section 3"
    streams: ClassVar = {"spectral_norm": SUPPORTING}

    def __init__(self) -> None:
        self._vectors: dict[str, Tensor] = {}

    def check(self, context: MeasureContext) -> None:
        """Refuse a model without trainable weight matrices.

        Raises:
            RefusedError: It has none.
        """
        if not _matrices(context):
            raise RefusedError(
                f"{self.name} looked for trainable parameters of two or more dimensions; the model "
                f"has {listed(context.params)}"
            )

    def work(self, context: MeasureContext) -> Work:
        """Singular values of small matrices; of large ones a round of the search."""
        total = 0.0
        for matrix in _matrices(context).values():
            small = min(matrix.shape) <= EXACT_SIDE
            total += decomposition(matrix) if small else (3 * SEARCHED + 4) * matrix.numel()
        return reads(context, total)

    def measure(self, context: MeasureContext) -> list[Observation]:
        """Norms at w*, the largest first.

        Raises:
            MeasurementError: A weight is not finite.
        """
        matrices = _matrices(context)
        found = {name: self._norm(context, name, w) for name, w in matrices.items()}
        groups = {group: torch.stack(norms) for group, norms in grouped(found).items()}
        result = []
        for part, norms in {"": torch.stack(list(found.values())), **groups}.items():
            value, residual = norms.amax(dim=0).tolist()
            name = f"{self.name}/{part}" if part else self.name
            seen = observed(context, name, self.unit, value)
            if residual > TOLERANCE:
                reason = f"a residual of {residual:.2g} σ² is left after {ROUNDS} rounds"
                seen = replace(seen, status=EstimateStatus.UNCONVERGED, reason=reason)
            result.append(seen)
        return result

    def _norm(self, context: MeasureContext, name: str, matrix: Tensor) -> Tensor:
        """σ, and the residual as a share of σ²."""
        matrix = widened(finite(matrix, f"a weight of {name}"))
        if min(matrix.shape) <= EXACT_SIDE:
            return torch.tensor([float(torch.linalg.matrix_norm(matrix, ord=2)), 0.0])
        random, size = context.generator, matrix.shape[1]
        noise = torch.randn(size, generator=random, dtype=matrix.dtype, device=random.device)
        vector = noise = noise.to(matrix.device) / size**0.5
        known = self._vectors.get(name)
        if known is not None and known.shape == noise.shape:
            vector = known + NOISE * noise
        for _ in range(ROUNDS):
            norm, residual, vector = _searched(matrix, vector)
            if residual <= TOLERANCE:
                break
        self._vectors[name] = vector
        return torch.tensor([norm, residual])


def _searched(matrix: Tensor, start: Tensor) -> tuple[float, float, Tensor]:
    """σ, its relative residual and the vector of the best one in a Krylov space of WᵀW."""
    basis, direction = matrix.new_zeros(matrix.shape[1], 0), start
    for _ in range(SEARCHED):
        whole = torch.linalg.vector_norm(direction)
        for _ in range(2):  # once leaves rounding
            direction = direction - basis @ (basis.mH @ direction)
        length = torch.linalg.vector_norm(direction)
        if length <= SMALLEST * whole:
            break
        basis = torch.cat([basis, (direction / length)[:, None]], dim=1)
        direction = matrix.mH @ (matrix @ basis[:, -1])
    images = matrix @ basis
    vector = basis @ torch.linalg.eigh(images.mH @ images).eigenvectors[:, -1]
    image = matrix @ vector
    norm = float(torch.linalg.vector_norm(image))
    if not norm:
        return 0.0, 0.0, start  # the matrix is zero
    back = matrix.mH @ image / norm**2
    return norm, float(torch.linalg.vector_norm(back - vector)), vector


def _matrices(context: MeasureContext) -> dict[str, Tensor]:
    return {name: p.flatten(1) for name, p in context.params.items() if p.dim() >= 2}
