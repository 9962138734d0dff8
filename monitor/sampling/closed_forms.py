"""Models whose local learning coefficient is known in closed form."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from phasewatch.monitor.sampling.estimators import default_n_beta
from phasewatch.monitor.sampling.schemes import OUTSIDE_OF_RUNS

NUM_SAMPLES = 10_000


@dataclass(frozen=True)
class Case:
    """A model at w*, with noise-free data, and its λ.

    Attributes:
        name: What it is.
        model: The model, at w*.
        batch: The probe, one batch.
        truth: λ.
        multiplicity: Its multiplicity m.
        exact: E[nβ K] at this n and the default γ, where it can be integrated.
        stands_for: n, where the probe stands for more samples than it has.
    """

    name: str
    model: nn.Module
    batch: tuple[Tensor, ...]
    truth: float
    multiplicity: int = 1
    exact: float | None = None
    stands_for: int | None = None

    @property
    def n_samples(self) -> int:
        """The n of nβ = n / log n."""
        return self.stands_for or len(self.batch[0])

    @property
    def expected(self) -> float:
        """What a perfect sampler finds at this n: `exact` where known, else λ − (m − 1)/log n."""
        if self.exact is not None:
            return self.exact
        return self.truth - (self.multiplicity - 1) / math.log(self.n_samples)

    def to(self, device: torch.device | str) -> Case:
        """The same case on another device."""
        model = copy.deepcopy(self.model).to(device)
        return replace(self, model=model, batch=tuple(t.to(device) for t in self.batch))


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
        value = torch.ones((), dtype=x.dtype, device=x.device)
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
    """A net at its most singular point: every layer has the rank of the product.

    Args:
        widths: Widths of the layers, from inputs to outputs.
        rank: Rank of the true map.
        seed: Seed of data and weights.
        num_samples: Samples of the data set.
    """
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


def reduced_rank_lambda(
    widths: tuple[int, int, int], ranks: tuple[int, int], rank: int
) -> tuple[float, int]:
    """λ and multiplicity of y = B A x at a point (A, B), not only at the most singular one.

    With inputs M, hidden units H, outputs N, ranks a of A, b of B and r of their product, the point
    is locally a regular model times a two-layer network at its origin:

        λ = r (M + N − r)/2 + [b'(M − r) + a'(N − r) − a'b']/2 + λ₀(M − r − a', H − r − a' − b',
        N − r − b')

    where a' = a − r, b' = b − r and λ₀ is the λ of a two-layer network at the origin.

    Args:
        widths: M, H, N.
        ranks: a, b.
        rank: r.
    """
    inputs, hidden, outputs = (width - rank for width in widths)
    first, second = (layer - rank for layer in ranks)
    rest = (inputs - first, hidden - first - second, outputs - second)
    if min(first, second, *rest) < 0:
        raise ValueError(
            f"no network of widths {widths} has layers of ranks {ranks} and a product of rank "
            f"{rank}; needed are r ≤ a ≤ M, r ≤ b ≤ N and a + b − r ≤ H"
        )
    regular = rank * (widths[0] + widths[2] - rank) / 2
    layers = (second * inputs + first * outputs - first * second) / 2
    origin, multiplicity = deep_linear_lambda(rest, 0)
    return regular + layers + origin, multiplicity


LAYER_SCALE = 5.0


def reduced_rank_case(
    widths: tuple[int, int, int],
    ranks: tuple[int, int],
    rank: int,
    seed: int = 0,
    num_samples: int = NUM_SAMPLES,
) -> Case:
    """Reduced-rank regression at a point whose layers have the given ranks.

    Their singular values are `LAYER_SCALE`: at 1 the pull γ = 1 lets the chains wander off to the
    more singular points nearby, and a long run measures those (7.7 where λ is 10).

    Args:
        widths: Inputs, hidden units, outputs.
        ranks: Ranks of the two layers where they stand.
        rank: Rank of the true map.
        seed: Seed of data and weights.
        num_samples: Samples of the data set.
    """
    value, multiplicity = reduced_rank_lambda(widths, ranks, rank)
    generator = torch.Generator().manual_seed(seed)
    model = DeepLinear(widths)
    a, b = ranks
    with torch.no_grad():
        first, second = model.weights
        first[:a, :a] = LAYER_SCALE * torch.eye(a)
        second[:rank, :rank] = LAYER_SCALE * torch.eye(rank)
        # What B has beyond the product reads hidden units that A leaves at zero.
        second[rank:b, a : a + b - rank] = LAYER_SCALE * torch.eye(b - rank)
        x = torch.randn(num_samples, widths[0], generator=generator)
        y: Tensor = model(x)
    name = f"reduced rank {','.join(map(str, widths))} a{a} b{b} r{rank}"
    return Case(name, model, (x, y), value, multiplicity)


class Superposition(nn.Module):
    """Toy model of superposition, x̂ = ReLU(Wᵀ W x + b), with W of shape (hidden, features)."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        """x̂ for each sample."""
        return torch.relu(x @ self.weight.T @ self.weight + self.bias)


@dataclass(frozen=True)
class Polygon:
    """A critical point of the toy model with 2 hidden dimensions and 6 features.

    Attributes:
        name: What Chen et al. (2023, arXiv 2310.06301) call it.
        corners: k features form a regular k-gon; the rest have no weight.
        length: Length of their columns of W.
        bias: Their biases.
        other_bias: The biases of the rest.
        truth: λ, half the rank of the Hessian: the loss is flat along the rest.
        loss: E ‖x − x̂‖².
    """

    name: str
    corners: int
    length: float
    bias: float
    other_bias: float
    truth: float
    loss: float


FEATURES = 6
GRID = 1_200
POLYGON_SAMPLES = 1_000_000
"""n at which the polygons are measured. At n = 10⁴ their λ cannot be seen by any sampler: long
chains find 8.7 and 9.4 at the 5-gon and the 6-gon, and leave the 5-gon+ for lower ground. At 10⁶
they find 7.1, 8.7 and 8.5."""

POLYGONS = (
    Polygon("5-gon", 5, 1.17044487, -0.28227340, -10.0, 7.0, 0.06874),
    Polygon("5-gon+", 5, 1.17044487, -0.28227340, 1 / 12, 8.5, 0.06180),
    Polygon("6-gon", 6, 1.32054062, -0.61816257, 0.0, 8.5, 0.04819),
)


def superposition_case(polygon: Polygon) -> Case:
    """The toy model at a polygon. One feature at a time is on, uniform on [0, 1]."""
    angles = torch.arange(polygon.corners) * (2 * math.pi / polygon.corners)
    weight, bias = torch.zeros(2, FEATURES), torch.full((FEATURES,), polygon.other_bias)
    weight[:, : polygon.corners] = polygon.length * torch.stack([angles.cos(), angles.sin()])
    bias[: polygon.corners] = polygon.bias
    # Evenly spaced values: the minimum is then that of the distribution, without data noise.
    each = GRID // FEATURES
    values = (torch.arange(each) + 0.5) / each
    x = torch.kron(torch.eye(FEATURES), values[:, None])
    name = f"superposition {polygon.name}"
    model = Superposition(weight, bias)
    return Case(name, model, (x, x), polygon.truth, stands_for=POLYGON_SAMPLES)


def regular_case(inputs: int, outputs: int, num_samples: int = NUM_SAMPLES) -> Case:
    """Linear regression: λ = d/2.

    Args:
        inputs: Input dimensions.
        outputs: Output dimensions; d is their product.
        num_samples: Samples of the data set.
    """
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
    x = torch.zeros(1, 1)  # all samples are alike: one stands for all
    return Case(
        name,
        Monomial(exponents),
        (x, x),
        1 / (2 * largest),
        list(exponents).count(largest),
        monomial_mean(exponents, default_n_beta(num_samples), OUTSIDE_OF_RUNS),
        num_samples,
    )


def monomial_mean(exponents: Sequence[int], n_beta: float, localization: float) -> float:
    """E[nβ K] of a monomial under the local posterior, by quadrature over log |w_i|.

    Next to λ − (m − 1)/log n, which drops terms of order 1/log n, it is exact: for w1²·w2⁴ at
    n = 10⁴ it is 0.225, not 0.25.

    Args:
        exponents: k_i.
        n_beta: nβ.
        localization: γ, above zero.
    """
    reach = 8.0 / math.sqrt(localization)
    w = np.exp(np.linspace(math.log(1e-6), math.log(reach), 1001))
    grids = np.meshgrid(*[w] * len(exponents), indexing="ij")
    excess = n_beta * math.prod(grid ** (2 * k) for grid, k in zip(grids, exponents, strict=True))
    pull = localization / 2 * sum(grid**2 for grid in grids)
    density = np.exp(-excess - pull) * math.prod(grids)  # dw = w d(log w)
    return float((excess * density).sum() / density.sum())


DEEP_LINEAR = (
    ((5, 3, 5), 0, 6.5, 2),
    ((6, 4, 6), 2, 13.5, 1),
    ((4, 3, 5, 4), 1, 6.0, 1),
    ((3, 3, 3, 3), 1, 4.0, 3),
    ((10, 5, 5, 10), 3, 27.5, 1),
    ((2, 3, 4, 5), 0, 3.0, 2),
)
"""Widths, rank, λ and multiplicity."""


REDUCED_RANK = (
    ((5, 4, 5), (0, 0), 0, 8.0, 1),
    ((5, 4, 5), (4, 0), 0, 10.0, 1),
    ((6, 5, 6), (3, 2), 1, 13.5, 1),
)
"""Widths, ranks of the two layers, rank of their product, λ and multiplicity."""


def all_cases(num_samples: int = NUM_SAMPLES) -> list[Case]:
    """Regular models, monomials, deep linear networks, reduced rank, toy models."""
    cases = [regular_case(4, 4, num_samples), regular_case(10, 10, num_samples)]
    exponents = ((1,), (2,), (1, 1), (1, 2), (2, 2))
    cases += [monomial_case(powers, num_samples) for powers in exponents]
    cases += [
        deep_linear_case(widths, rank, num_samples=num_samples)
        for widths, rank, _, _ in DEEP_LINEAR
    ]
    cases += [
        reduced_rank_case(widths, ranks, rank, num_samples=num_samples)
        for widths, ranks, rank, _, _ in REDUCED_RANK
    ]
    return [*cases, *(superposition_case(polygon) for polygon in POLYGONS)]
