"""Random deep linear nets at points whose local learning coefficient is known in closed form.

A point is built from one diagonal matrix a layer, W_l = Q_l D_l Q_{l−1}ᵀ with orthogonal Q. The
first r diagonal entries carry the product of rank r ("signal"). Of the other entries, a layer that
is *full* has them all at `GAP`, one that is not has them at zero; a layer may also have some of
them at `GAP` (its *dead ranks*, which the product does not see).

Local λ. Blocks of the signal give r(H_0 + H_L − r)/2 and leave a net of widths M_l = H_l − r with
product zero at the point (Schur complement). There a layer of full rank is G [I 0] or [I; 0] G with
G smooth and invertible in its weights. G goes into a neighbour, or, at an end of the net, does not
change where the product vanishes. What is left is the same net without this layer, its two widths
merged into the smaller. When only layers remain that are zero at the point, it is the most singular
point of the merged net (Aoyagi 2024); with two layers left, of dead ranks a and b,

    λ = ½ [b M + a Q − a b] + λ(M − a, H − a − b, Q − b; rank 0),   M in, H hidden, Q out.

The posterior sees this λ only where less singular points (by more than its width) and more singular
ones (by more than the reach of the localization, 1/√γ) are far off: hence `GAP`.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from phasewatch.monitor.sampling.closed_forms import (
    NUM_SAMPLES,
    DeepLinear,
    deep_linear_lambda,
    squared_error,
)

GAP = 15.0
"""Singular value of the dead ranks. To kill one costs γ GAP²/2 nats: enough to keep the posterior
at n = 10⁴ and γ = 1 from the points of lower λ. (At 5 its mean is the λ of the most singular
point, wherever it is centred.)"""

KINDS = ("exact", "stratum", "minimum")
"""The data, and where w* is on it. exact: noise-free targets. Both others have unit noise, and no
gradient at w*. stratum: w* is the best point with these ranks; where two layers are zero it is a
saddle, for a product of higher rank would fit the noise better. minimum: w* is the minimum over all
weights, its product of the full rank that the widths allow."""


@dataclass(frozen=True)
class Shape:
    """A net and the ranks of its layers.

    Attributes:
        widths: H_0 to H_L.
        rank: r, the rank of the product.
        full: For each layer, whether it has full rank.
        dead: Dead ranks of the first and the second layer that are not full; only with two such.
    """

    widths: tuple[int, ...]
    rank: int
    full: tuple[bool, ...]
    dead: tuple[int, int] = (0, 0)

    @property
    def merged(self) -> list[int]:
        """Widths less r, those on both sides of a full layer merged into the smaller."""
        merged = [self.widths[0] - self.rank]
        for full, width in zip(self.full, self.widths[1:], strict=True):
            reduced = width - self.rank
            if full:
                merged[-1] = min(merged[-1], reduced)
            else:
                merged.append(reduced)
        return merged

    def dead_entries(self) -> list[Tensor]:
        """Which diagonal entries of each layer are `GAP`."""
        r, (a, b) = self.rank, self.dead
        dead = iter([slice(r, r + a), slice(r + a, r + a + b)])
        entries = []
        for pair, full in zip(itertools.pairwise(self.widths), self.full, strict=True):
            entry = torch.zeros(min(pair), dtype=torch.bool)
            entry[slice(r, None) if full else next(dead, slice(0))] = True
            entries.append(entry)
        return entries

    @property
    def fitted_rank(self) -> int:
        """Rank of the product at a critical point of noisy data.

        r, and the directions in which one layer alone is zero: its gradient would not vanish.
        """
        least = min(self.widths)
        dead = torch.stack([entry[:least] for entry in self.dead_entries()]).sum(0)
        return self.rank + int((dead == len(self.full) - 1).sum())

    @property
    def name(self) -> str:
        """Widths, rank, and how each layer stands: 0, F (full) or its dead ranks."""
        dead = iter(self.dead)
        marks = ["F" if full else str(next(dead, 0)) for full in self.full]
        return f"{','.join(map(str, self.widths))} r{self.rank} {''.join(marks)}"

    @property
    def truth(self) -> tuple[float, int]:
        """λ at this point, and its multiplicity."""
        signal = self.rank * (self.widths[0] + self.widths[-1] - self.rank) / 2
        merged, (a, b) = self.merged, self.dead
        if len(merged) == 3:
            m, h, q = merged
            signal += (b * m + a * q - a * b) / 2
            merged = [m - a, h - a - b, q - b]
        if min(merged) == 0:
            return signal, 1
        value, multiplicity = deep_linear_lambda(merged, 0)
        return signal + value, multiplicity


@dataclass(frozen=True)
class Net:
    """A net at w*, and its data.

    Attributes:
        shape: Widths and ranks.
        kind: One of `KINDS`.
        model: The net at w*, in float32.
        data: x of shape (n, H_0) and y of shape (n, H_L), in float32.
        truth: λ at the point.
        multiplicity: Its multiplicity.
    """

    shape: Shape
    kind: str
    model: DeepLinear = field(repr=False)
    data: tuple[Tensor, Tensor] = field(repr=False)
    truth: float
    multiplicity: int

    @property
    def name(self) -> str:
        """The shape, and the kind of data."""
        return f"{self.shape.name} {self.kind}"

    @property
    def num_samples(self) -> int:
        """n."""
        return len(self.data[0])

    @property
    def expected(self) -> float:
        """λ − (μ − 1)/log n, where the estimate sits at finite n."""
        return self.truth - (self.multiplicity - 1) / math.log(self.num_samples)

    @staticmethod
    def loss(model: torch.nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Negative log-likelihood of each sample."""
        return squared_error(model, batch)

    def condensed(self) -> tuple[Tensor, Tensor]:
        """At most H_0 + H_L rows with the same ‖y − W x‖² for all W: the R factor of [x y]."""
        joined = torch.cat([part.double() for part in self.data], dim=1)
        rows = torch.linalg.qr(joined, mode="r").R
        x, y = rows.split([part.shape[1] for part in self.data], dim=1)
        return x.float(), y.float()

    def condensed_loss(self, model: torch.nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean negative log-likelihood over all n samples, from the condensed rows."""
        x, y = batch
        loss: Tensor = 0.5 * (model(x) - y).square().sum() / self.num_samples
        return loss


def build(shape: Shape, kind: str, seed: int, num_samples: int = NUM_SAMPLES) -> Net:
    """The net at w*, with data of its own."""
    generator = torch.Generator().manual_seed(seed)
    inputs, outputs = shape.widths[0], shape.widths[-1]
    x = torch.randn(num_samples, inputs, generator=generator, dtype=torch.float64)
    values = 0.7 + 0.8 * torch.rand(shape.rank, generator=generator, dtype=torch.float64)
    u, v = _orthogonal(outputs, generator), _orthogonal(inputs, generator)
    product = u[:, : shape.rank] * values @ v[:, : shape.rank].T
    rank = shape.rank
    if kind != "exact":
        noise = torch.randn(num_samples, outputs, generator=generator, dtype=torch.float64)
        y = x @ product.T + noise
        rank = min(shape.widths) if kind == "minimum" else shape.fitted_rank
        product = _best_product(x, y, rank)
    model = _placed(shape, product, rank, generator)
    if kind == "exact":
        # Of the weights as rounded to float32: w* fits exactly.
        y = functools.reduce(lambda rows, w: rows @ w.detach().double().T, model.weights, x)
    truth, multiplicity = shape.truth
    return Net(shape, kind, model, (x.float(), y.float()), truth, multiplicity)


def _orthogonal(size: int, generator: torch.Generator) -> Tensor:
    gaussian = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(gaussian).Q


def _best_product(x: Tensor, y: Tensor, rank: int) -> Tensor:
    """The product of at most this rank that minimises the squared error (Eckart and Young)."""
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    root = vectors * values.sqrt() @ vectors.T
    ordinary = torch.linalg.lstsq(x, y).solution.T
    u, s, vh = torch.linalg.svd(ordinary @ root, full_matrices=False)
    return u[:, :rank] * s[:rank] @ vh[:rank] @ torch.linalg.inv(root)


def _placed(shape: Shape, product: Tensor, rank: int, generator: torch.Generator) -> DeepLinear:
    """Layers of these ranks with exactly this product.

    What exceeds r in the rank of the product has fitted noise: it is small, and spread evenly over
    the layers that are zero without it.
    """
    u, s, vh = torch.linalg.svd(product)
    frames = [vh.T, *(_orthogonal(width, generator) for width in shape.widths[1:-1]), u]
    blocks = _diagonals(shape, s[:rank])
    model = DeepLinear(shape.widths)
    with torch.no_grad():
        for weight, diagonal, (right, left) in zip(
            model.weights, blocks, itertools.pairwise(frames), strict=True
        ):
            matrix = torch.zeros(weight.shape, dtype=torch.float64)
            matrix.diagonal().copy_(diagonal)
            weight.copy_(left @ matrix @ right.T)
    return model


def _diagonals(shape: Shape, singular_values: Tensor) -> list[Tensor]:
    """The diagonal of each layer."""
    diagonals = [torch.where(dead, GAP, 0.0).double() for dead in shape.dead_entries()]
    for index, value in enumerate(singular_values.tolist()):
        free = [diagonal for diagonal in diagonals if diagonal[index] == 0.0]
        rest = GAP ** (len(diagonals) - len(free))
        for diagonal in free:
            diagonal[index] = (value / rest) ** (1 / len(free))
    return diagonals


def random_shape(generator: torch.Generator, max_width: int = 40) -> Shape:
    """2 to 5 layers, widths 2 to `max_width` (even in the logarithm), any rank below the least."""

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    layers = draw(2, 5)
    logs = torch.rand(layers + 1, generator=generator) * math.log(max_width / 2)
    widths = tuple(int(width) for width in (2 * logs.exp()).round())
    return Shape(widths, draw(0, min(widths) - 1), (False,) * layers)


def other_points(shape: Shape) -> Iterator[Shape]:
    """The same net and product at less singular points: one full layer at most, some dead ranks."""
    layers = len(shape.full)
    for fulls in [(), *((index,) for index in range(layers))]:
        full = tuple(index in fulls for index in range(layers))
        room = min(shape.widths) - shape.rank if full.count(False) == 2 else 0
        for a, b in itertools.product(range(room + 1), repeat=2):
            if a + b <= room and (fulls or a + b):
                yield Shape(shape.widths, shape.rank, full, (a, b))


def spread_points(shape: Shape, count: int) -> list[Shape]:
    """`shape` and up to `count` − 1 other points, their λ as far apart as can be."""
    points = sorted([shape, *other_points(shape)], key=lambda point: point.truth[0])
    low, high = shape.truth[0], points[-1].truth[0]
    chosen = [shape]
    for part in range(1, count):
        target = low + (high - low) * part / (count - 1)
        nearest = min(points, key=lambda point: abs(point.truth[0] - target))
        if all(abs(nearest.truth[0] / point.truth[0] - 1) > 0.15 for point in chosen):
            chosen.append(nearest)
    return chosen


def random_shapes(count: int, points: int = 1, seed: int = 0) -> list[list[Shape]]:
    """`count` nets, each at its most singular point and up to `points` − 1 others."""
    generator = torch.Generator().manual_seed(seed)
    return [spread_points(random_shape(generator), points) for _ in range(count)]


def numerical_codimension(model: DeepLinear) -> int:
    """Rank of the Jacobian of the product in the weights: 2 λ where the fibre is smooth."""
    weights = [weight.detach().double() for weight in model.weights]

    def product(*layers: Tensor) -> Tensor:
        result = layers[0]
        for layer in layers[1:]:
            result = layer @ result
        return result.flatten()

    jacobian: Sequence[Tensor] = torch.autograd.functional.jacobian(product, tuple(weights))
    flat = torch.cat([part.flatten(start_dim=1) for part in jacobian], dim=1)
    # Zeros are so up to rounding to float32.
    return int(torch.linalg.matrix_rank(flat, rtol=1e-5))
