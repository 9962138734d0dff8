"""Small nets trained to the end: λ is unknown, and the long-run value of the posterior is not."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from support.reference_chains import Potential

LossFn = Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor]


@dataclass(frozen=True)
class TrainedNet:
    """A net at the end of training.

    Attributes:
        name: What it is.
        model: The net, in float32.
        batch: Its data, whole.
        loss: Negative log-likelihood of each sample, in nats.
        num_terms: n, where it is not the number of rows.
    """

    name: str
    model: nn.Module = field(repr=False)
    batch: tuple[Tensor, Tensor] = field(repr=False)
    loss: LossFn = field(repr=False)
    num_terms: int = 0

    @property
    def num_samples(self) -> int:
        """n."""
        return self.num_terms or len(self.batch[0])

    def potential(self) -> tuple[Potential, int]:
        """K and its gradient at displacements from w*, and d; in float32, as the model is."""
        names = [name for name, _ in self.model.named_parameters()]
        center = [p.detach() for p in self.model.parameters()]
        flat = torch.cat([p.flatten() for p in center])

        def mean_loss(x: Tensor) -> Tensor:
            parts = (flat + x).split([p.numel() for p in center])
            weights = {n: t.view_as(p) for n, t, p in zip(names, parts, center, strict=True)}

            class Bound(nn.Module):
                def forward(_, inputs: Tensor) -> Tensor:
                    return functional_call(self.model, weights, (inputs,))

            return self.loss(Bound(), self.batch).double().mean()

        base = mean_loss(torch.zeros_like(flat)).detach()
        both = vmap(grad_and_value(mean_loss))

        def potential(x: Tensor) -> tuple[Tensor, Tensor]:
            gradient, value = both(x.float())
            return (value - base).to(x.dtype), gradient.to(x.dtype)

        return potential, len(flat)


def squares(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Gaussian, of standard deviation 0.1."""
    return 0.5 * ((model(batch[0]) - batch[1]) / 0.1).square().sum(dim=-1)


def entropies(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of each sample."""
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def train(
    model: nn.Module, batch: tuple[Tensor, Tensor], loss: LossFn, steps: int, decay: float = 0.0
) -> None:
    """Full-batch AdamW, the rate falling to zero."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model, batch).mean().backward()
        optimizer.step()
        schedule.step()


def perceptron(*widths: int, activation: type[nn.Module]) -> nn.Module:
    """Linear layers with activations between them."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), activation()]
    return nn.Sequential(*layers[:-1])


def regression(activation: type[nn.Module], seed: int) -> TrainedNet:
    """Fits a net of two hidden units with six."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        x = torch.randn(1000, 3)
        teacher = perceptron(3, 2, 1, activation=activation)
        with torch.no_grad():
            y = teacher(x) + 0.1 * torch.randn(1000, 1)
        model = perceptron(3, 6, 1, activation=activation)
        train(model, (x, y), squares, 2000)
    return TrainedNet(f"3-6-1 {activation.__name__} seed {seed}", model, (x, y), squares)


def blobs(seed: int) -> TrainedNet:
    """Tells four overlapping clouds apart."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        labels = torch.arange(1000) % 4
        x = torch.randn(1000, 4) + 1.5 * torch.eye(4)[labels]
        model = perceptron(4, 8, 4, activation=nn.ReLU)
        train(model, (x, labels), entropies, 1000)
    return TrainedNet(f"4-8-4 ReLU classes seed {seed}", model, (x, labels), entropies)


class Adder(nn.Module):
    """One layer of attention and one MLP, for a + b mod p."""

    def __init__(self, p: int = 11, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(p + 1, width)
        self.position = nn.Parameter(0.1 * torch.randn(3, width))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.merge = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self.unembed = nn.Linear(width, p, bias=False)
        self.heads = heads

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.position
        batch, length, width = x.shape
        parts = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        scores = (q @ k.mT / (width // self.heads) ** 0.5).softmax(dim=-1)
        x = x + self.merge((scores @ v).transpose(1, 2).reshape(batch, length, width))
        x = x + self.down(F.relu(self.up(x)))
        return self.unembed(x[:, -1])


def modular_addition(seed: int, p: int = 11) -> TrainedNet:
    """All sums of two numbers mod p, by a transformer."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pairs = torch.cartesian_prod(torch.arange(p), torch.arange(p))
        tokens = torch.cat([pairs, torch.full((len(pairs), 1), p)], dim=1)
        labels = pairs.sum(dim=1) % p
        model = Adder(p)
        train(model, (tokens, labels), entropies, 1000, decay=0.1)
    return TrainedNet(f"transformer, a + b mod {p}", model, (tokens, labels), entropies)


TRAINED: tuple[Callable[[], TrainedNet], ...] = (
    lambda: regression(nn.Tanh, 0),
    lambda: regression(nn.ReLU, 1),
    lambda: blobs(0),
    lambda: modular_addition(0),
)
