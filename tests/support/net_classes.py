"""Nets of the kinds that people train, small enough for a long-run value: `CLASSES`, by class.

No λ is known for them; their posteriors are sampled by `support.two_sided`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from support.trained_nets import LossFn, TrainedNet, entropies

Maker = Callable[[], TrainedNet]


def errors(scale: float) -> LossFn:
    """Gaussian of this standard deviation."""

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return 0.5 * ((model(batch[0]) - batch[1]) / scale).square().sum(dim=-1)

    return loss


def layers(widths: Sequence[int], activation: type[nn.Module], norm: bool = False) -> nn.Sequential:
    """Linear layers with activations between them."""
    found: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        found += [nn.Linear(before, after), *([nn.LayerNorm(after)] if norm else []), activation()]
    return nn.Sequential(*found[: -2 if norm else -1])


def fit(
    model: nn.Module, batch: tuple[Tensor, Tensor], loss: LossFn, steps: int, rate: float = 3e-3
) -> None:
    """Full-batch Adam."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model, batch).mean().backward()
        optimizer.step()


def to_the_bottom(model: nn.Module, batch: tuple[Tensor, Tensor], loss: LossFn) -> None:
    """On to the minimum."""
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=600, history_size=30, line_search_fn="strong_wolfe",
        tolerance_grad=1e-7, tolerance_change=1e-11,
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(model, batch).mean()
        value.backward()
        return value

    optimizer.step(closure)


def zero_loss(widths: Sequence[int], activation: type[nn.Module], n: int, seed: int) -> TrainedNet:
    """More weights than data, trained until nothing is left of the loss."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        x = torch.randn(n, widths[0])
        y = torch.sin(2 * x[:, :1])
        model, loss = layers(widths, activation), errors(0.3)
        fit(model, (x, y), loss, 4000)
    name = f"zero loss {activation.__name__} {'-'.join(map(str, widths))} n {n}"
    return TrainedNet(name, model, (x, y), loss)


def with_noise(widths: Sequence[int], activation: type[nn.Module], n: int, seed: int) -> TrainedNet:
    """At the minimum on the outputs of such a net with noise."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        x = torch.randn(n, widths[0])
        truth, model, loss = layers(widths, activation), layers(widths, activation), errors(1.0)
        with torch.no_grad():
            y = 2 * truth(x) + torch.randn(n, widths[-1])
        model.load_state_dict(truth.state_dict())
        to_the_bottom(model, (x, y), loss)
    name = f"with noise {activation.__name__} {'-'.join(map(str, widths))} n {n}"
    return TrainedNet(name, model, (x, y), loss)


def scaled(factor: float, seed: int) -> TrainedNet:
    """A ReLU net one layer of which is multiplied by what the next is divided by."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        x = torch.randn(1000, 6)
        with torch.no_grad():
            y = 3 * layers((6, 8, 3), nn.ReLU)(x) + torch.randn(1000, 3)
        model, loss = layers((6, 12, 3), nn.ReLU), errors(1.0)
        fit(model, (x, y), loss, 3000, 1e-2)
        with torch.no_grad():
            model[0].weight.mul_(factor)
            model[0].bias.mul_(factor)
            model[2].weight.div_(factor)
    return TrainedNet(f"badly scaled ReLU 6-12-3 by {factor:g}", model, (x, y), loss)


def classifier(widths: Sequence[int], steps: int, seed: int, norm: bool = False) -> TrainedNet:
    """ReLU classes of a teacher, after some steps."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        x = torch.randn(1024, widths[0])
        y = (3 * layers((widths[0], 16, widths[-1]), nn.Tanh)(x)).detach().argmax(1)
        model = layers(widths, nn.ReLU, norm)
        fit(model, (x, y), entropies, steps)
    kind = "normalised" if norm else "classes"
    return TrainedNet(f"{kind} {'-'.join(map(str, widths))} step {steps}", model, (x, y), entropies)


class Tied(nn.Module):
    """x̂ = Wᵀ tanh(W x) + b."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(hidden, inputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.zeros(inputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.weight.T) @ self.weight + self.bias


def tied(seed: int) -> TrainedNet:
    """An autoencoder with one matrix for both ways."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        x = torch.randn(800, 3) @ torch.randn(3, 8) + 0.3 * torch.randn(800, 8)
        model, loss = Tied(8, 5), errors(0.5)
        fit(model, (x, x), loss, 3000)
    return TrainedNet("tied autoencoder 8-5", model, (x, x), loss)


class Speaker(nn.Module):
    """One layer of attention over letters; the next one is predicted at each position."""

    def __init__(self, letters: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(letters, width)
        self.place = nn.Parameter(0.1 * torch.randn(8, width))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, letters)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.place
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        scores = q @ k.mT / q.shape[-1] ** 0.5
        later = torch.ones(8, 8, dtype=torch.bool).triu(1)
        return self.out(x + scores.masked_fill(later, -1e9).softmax(-1) @ v)


def token_losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of each token."""
    return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten(), reduction="none")


def language(steps: int, seed: int) -> TrainedNet:
    """Letters of a Markov chain; n is the number of tokens."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        chain = torch.softmax(2 * torch.randn(8, 8), dim=-1)
        letters = torch.randint(0, 8, (128, 1))
        for _ in range(8):
            letters = torch.cat([letters, torch.multinomial(chain[letters[:, -1]], 1)], dim=1)
        batch = letters[:, :-1], letters[:, 1:]
        model = Speaker(8, 8)
        fit(model, batch, token_losses, steps)
    return TrainedNet(f"language model step {steps}", model, batch, token_losses, len(batch[1]) * 8)


CLASSES: Mapping[str, Sequence[Maker]] = {
    "zero loss": (
        lambda: zero_loss((2, 80, 1), nn.Tanh, 256, 0),
        lambda: zero_loss((2, 20, 20, 1), nn.Tanh, 512, 0),
        lambda: zero_loss((2, 60, 1), nn.ReLU, 256, 1),
        lambda: zero_loss((2, 40, 1), nn.GELU, 256, 2),
    ),
    "with noise": (
        lambda: with_noise((7, 10, 4), nn.Tanh, 1000, 0),
        lambda: with_noise((5, 8, 2), nn.ReLU, 1000, 1),
    ),
    "badly scaled": (lambda: scaled(20.0, 1), lambda: scaled(5.0, 2)),
    "mid-training": (
        lambda: classifier((16, 16, 16, 4), 150, 2),
        lambda: classifier((8, 12, 4), 100, 3),
    ),
    "near-zero cross-entropy": (lambda: classifier((6, 24, 3), 4000, 4),),
    "normalised": (lambda: classifier((8, 10, 4), 400, 5, norm=True),),
    "tied": (lambda: tied(6),),
    "language model": (lambda: language(150, 7), lambda: language(1500, 7)),
}
"""Makers by class."""
