"""Models whose local learning coefficient is known in closed form."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

NUM_SAMPLES = 10_000


@dataclass(frozen=True)
class Case:
    """A model at w*, with noise-free data, and its λ.

    Attributes:
        name: What it is.
        model: The model, at w*.
        batch: The probe, one batch.
        truth: λ.
        multiplicity: Its multiplicity m: at finite n the estimate sits near λ − (m − 1)/log n.
    """

    name: str
    model: nn.Module
    batch: tuple[Tensor, ...]
    truth: float
    multiplicity: int = 1

    @property
    def n_samples(self) -> int:
        """n, the samples of the probe."""
        return len(self.batch[0])


def squared_error(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Gaussian negative log-likelihood of each sample, unit variance, without its constant."""
    x, y = batch
    losses: Tensor = 0.5 * (model(x) - y).square().sum(dim=-1)
    return losses


class Monomial(nn.Module):
    """K(w) = Π w_i^(2 k_i), the same for each sample; w* = 0."""

    def __init__(self, exponents: Sequence[int]) -> None:
        super().__init__()
        self.exponents = tuple(exponents)
        self.w = nn.Parameter(torch.zeros(len(exponents)))

    def forward(self, x: Tensor) -> Tensor:
        """√(2 K(w)) for each sample, so that the squared error is K."""
        value = torch.ones((), dtype=x.dtype)
        for index, exponent in enumerate(self.exponents):
            value = value * self.w[index] ** exponent
        return (value * math.sqrt(2.0)).expand(len(x), 1)


class Quadratic(nn.Module):
    """K(w) = ½ Σ h_i w_i², the same for each sample."""

    h: Tensor

    def __init__(self, curvatures: Sequence[float], center: float = 0.0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((len(curvatures),), center))
        self.register_buffer("h", torch.as_tensor(curvatures, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """K(w) for each sample."""
        return 0.5 * (self.h * self.w.square()).sum().expand(len(x))


def plain_loss(model: nn.Module, batch: Tensor) -> Tensor:
    """The model's own output is the loss of each sample."""
    losses: Tensor = model(batch)
    return losses


class DeepLinear(nn.Module):
    """y = W_L … W_1 x; `weights` holds W_1 to W_L, each of shape (outputs, inputs)."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(
            torch.zeros(outputs, inputs) for inputs, outputs in itertools.pairwise(widths)
        )

    def forward(self, x: Tensor) -> Tensor:
        """W_L … W_1 x."""
        for weight in self.weights:
            x = nn.functional.linear(x, weight)
        return x


def deep_linear_lambda(widths: Sequence[int], rank: int) -> tuple[float, int]:
    """λ and multiplicity of a deep linear network at its most singular point (Aoyagi 2024)."""
    ms = sorted(h - rank for h in widths)
    for size in range(2, len(ms) + 1):
        inside, outside = ms[:size], ms[size:]
        ell = size - 1
        total, largest = sum(inside), max(inside)
        if outside and not (largest < min(outside) and total < ell * min(outside)):
            continue
        if total < ell * largest:
            continue
        c = math.ceil(total / ell)
        a = total - (c - 1) * ell
        pairs = sum(x * y for x, y in itertools.combinations(inside, 2))
        first = (rank * (widths[0] + widths[-1]) - rank**2) / 2
        value = first + a * (ell - a) / (4 * ell) - ell * (ell - 1) / 4 * (total / ell) ** 2
        return value + pairs / 2, a * (ell - a) + 1
    raise ValueError(f"no admissible subset for widths {list(widths)}, rank {rank}")


def deep_linear_case(
    widths: Sequence[int], rank: int, seed: int = 0, num_samples: int = NUM_SAMPLES
) -> Case:
    """A net at its most singular point: every layer has the rank of the product."""
    generator = torch.Generator().manual_seed(seed)
    model = DeepLinear(widths)
    with torch.no_grad():
        for weight in model.weights:
            block = torch.randn(rank, rank, generator=generator)
            # Singular values near one: the point is as singular as it gets, yet well conditioned.
            u, _, vh = torch.linalg.svd(block) if rank else (block, None, block)
            weight[:rank, :rank] = u @ vh
        x = torch.randn(num_samples, widths[0], generator=generator)
        y: Tensor = model(x)
    value, multiplicity = deep_linear_lambda(widths, rank)
    return Case(
        f"deep linear {','.join(map(str, widths))} r{rank}", model, (x, y), value, multiplicity
    )


def regular_case(inputs: int, outputs: int, num_samples: int = NUM_SAMPLES) -> Case:
    """Linear regression: λ = d/2."""
    generator = torch.Generator().manual_seed(1)
    model = DeepLinear([inputs, outputs])
    with torch.no_grad():
        model.weights[0].copy_(torch.randn(outputs, inputs, generator=generator))
        x = torch.randn(num_samples, inputs, generator=generator)
        y: Tensor = model(x)
    return Case(f"regular {inputs}x{outputs}", model, (x, y), inputs * outputs / 2)


def monomial_case(exponents: Sequence[int], num_samples: int = NUM_SAMPLES) -> Case:
    """λ = min 1/(2 k_i); multiplicity = number of minimisers."""
    largest = max(exponents)
    name = "monomial " + "·".join(f"w{i + 1}^{2 * k}" for i, k in enumerate(exponents))
    x = torch.zeros(num_samples, 1)
    return Case(
        name, Monomial(exponents), (x, x), 1 / (2 * largest), list(exponents).count(largest)
    )


DEEP_LINEAR = (
    ((5, 3, 5), 0, 6.5, 2),
    ((6, 4, 6), 2, 13.5, 1),
    ((4, 3, 5, 4), 1, 6.0, 1),
    ((3, 3, 3, 3), 1, 4.0, 3),
    ((10, 5, 5, 10), 3, 27.5, 1),
    ((2, 3, 4, 5), 0, 3.0, 2),
)
"""Widths, rank, λ and multiplicity."""


def all_cases(num_samples: int = NUM_SAMPLES) -> list[Case]:
    """Regular models, monomials, and six deep linear networks."""
    cases = [regular_case(4, 4, num_samples), regular_case(10, 10, num_samples)]
    exponents = ((1,), (2,), (1, 1), (1, 2), (2, 2))
    cases += [monomial_case(powers, num_samples) for powers in exponents]
    nets = (
        deep_linear_case(widths, rank, num_samples=num_samples)
        for widths, rank, _, _ in DEEP_LINEAR
    )
    return [*cases, *nets]
