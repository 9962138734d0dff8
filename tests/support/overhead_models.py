"""Models as people train them, small, with data that can be learnt; what the monitor costs is seen
on them.

Each is a LightningModule and a loader, made from a seed. `MODELS` names those whose overhead is
measured, `FURTHER` two more for predicted costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

Made = tuple[pl.LightningModule, DataLoader[Any]]

IGNORED = -100


def token_sequences(
    vocabulary: int, length: int, count: int, *, noise: float = 0.1, seed: int = 0
) -> Tensor:
    """Sequences of a random Markov chain, shape (count, length): most tokens have one successor."""
    generator = torch.Generator().manual_seed(seed)
    successor = torch.randperm(vocabulary, generator=generator)
    tokens = torch.randint(vocabulary, (count, length), generator=generator)
    for place in range(1, length):
        follows = torch.rand(count, generator=generator) > noise
        tokens[:, place] = torch.where(follows, successor[tokens[:, place - 1]], tokens[:, place])
    return tokens


def images(size: int, count: int, *, channels: int = 3, classes: int = 10, seed: int = 0) -> Tensor:
    """Noisy copies of smooth patterns, in turn, shape (count, channels, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(classes, channels, 4, 4, generator=generator)
    patterns = F.interpolate(coarse, size=(size, size), mode="bilinear")
    noise = torch.randn(count, channels, size, size, generator=generator)
    return patterns[torch.arange(count) % classes] + 0.3 * noise


class NextToken(pl.LightningModule):
    """Predicts the next token with encoder layers under a causal mask.

    Args:
        vocabulary: Tokens.
        width: Of the residual stream.
        heads: Of attention in each layer.
        hidden: Width of the feed-forward layers.
        layers: Encoder layers.
        length: Longest sequence.
        rate: Learning rate of Adam.
        dropout: Of all layers.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int,
        heads: int,
        hidden: int,
        layers: int,
        length: int,
        *,
        rate: float = 1e-3,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(width, heads, hidden, dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.decode = nn.Linear(width, vocabulary)
        self.register_buffer("mask", torch.full((length, length), float("-inf")).triu(1))
        self.rate = rate

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (batch, length, vocabulary)."""
        length = tokens.shape[1]
        x = self.embed(tokens) + self.position[:length]
        return self.decode(self.encoder(x, mask=self.mask[:length, :length]))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of the next token."""
        (tokens,) = batch
        logits = self(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), self.rate)


def next_token(*shape: int, batch: int, count: int = 2048, **options: Any) -> Made:
    """A `NextToken` of (vocabulary, width, heads, hidden, layers, length) and its data."""
    vocabulary, length = shape[0], shape[-1]
    data = TensorDataset(token_sequences(vocabulary, length + 1, count))
    return NextToken(*shape, **options), DataLoader(data, batch, shuffle=True)


class Dicts(Dataset[dict[str, Tensor]]):
    """Masked sequences as dictionaries, as tokenisers give them."""

    def __init__(self, tokens: Tensor, mask_token: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        hidden = torch.rand(tokens.shape, generator=generator) < 0.15
        hidden[:, 0] = True  # no sequence without a label
        self._columns = {
            "input_ids": tokens.masked_fill(hidden, mask_token),
            "attention_mask": torch.ones_like(tokens),
            "labels": tokens.masked_fill(~hidden, IGNORED),
        }

    def __len__(self) -> int:
        return len(self._columns["labels"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: column[index] for name, column in self._columns.items()}


class MaskedTokens(pl.LightningModule):
    """A very small encoder that fills masked tokens; embedding and output are tied."""

    def __init__(self, vocabulary: int, width: int, layers: int, length: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(width, 2, 4 * width, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        nn.init.normal_(self.embed.weight, std=0.05)  # tied: of width one, logits would be large

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits (batch, length, vocabulary)."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.embed(input_ids) + self.position(places)
        x = self.encoder(x, src_key_padding_mask=attention_mask == 0)
        return F.linear(self.norm(x), self.embed.weight, self.bias)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of the masked tokens."""
        logits = self(batch["input_ids"], batch["attention_mask"])
        loss = F.cross_entropy(
            logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORED
        )
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), 1e-3)


def masked_tokens() -> Made:
    """The encoder, and batches that are dictionaries."""
    vocabulary, length = 1024, 64
    tokens = token_sequences(vocabulary - 1, length, 2048)
    data = Dicts(tokens, mask_token=vocabulary - 1)
    return MaskedTokens(vocabulary, 48, 2, length), DataLoader(data, 32, shuffle=True)


class Residual(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, wide_in: int, wide_out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(wide_in, wide_out, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(wide_out)
        self.second = nn.Conv2d(wide_out, wide_out, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(wide_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or wide_in != wide_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(wide_in, wide_out, 1, stride, bias=False), nn.BatchNorm2d(wide_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, wide_in, h, w) to (batch, wide_out, h / stride, w / stride)."""
        y = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(y)) + self.shortcut(x))


def resnet18(outputs: int) -> nn.Sequential:
    """Eighteen layers of the usual widths, with the usual stem."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]  # fmt: skip
    wide_in = 64
    for wide_out, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Residual(wide_in, wide_out, stride), Residual(wide_out, wide_out, 1)]
        wide_in = wide_out
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, outputs)]
    return nn.Sequential(*layers)


class MomentumContrast(pl.LightningModule):
    """Tells an image by another view of it, against a queue of keys of a slowly moving encoder."""

    def __init__(self, outputs: int = 64, queue: int = 512) -> None:
        super().__init__()
        self.query, self.key = resnet18(outputs), resnet18(outputs)
        self.key.load_state_dict(self.query.state_dict())
        self.key.requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(queue, outputs), dim=1))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def _keys(self, view: Tensor) -> Tensor:
        for slow, fast in zip(self.key.parameters(), self.query.parameters(), strict=True):
            slow.mul_(0.99).add_(fast, alpha=0.01)
        return F.normalize(self.key(view), dim=1)

    @torch.no_grad()
    def _enqueue(self, keys: Tensor) -> None:
        places = (self.place + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue[places] = keys
        self.place.copy_((self.place + len(keys)) % len(self.queue))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """InfoNCE: the other view's key first, those of the queue after it."""
        (image,) = batch
        keys = self._keys(torch.flip(image, (3,)))
        found = F.normalize(self.query(image + 0.1 * torch.randn_like(image)), dim=1)
        scores = torch.cat([(found * keys).sum(1, keepdim=True), found @ self.queue.T.clone()], 1)
        loss = F.cross_entropy(scores / 0.1, torch.zeros(len(image), dtype=torch.long))
        self._enqueue(keys)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD with momentum."""
        return torch.optim.SGD(self.query.parameters(), 0.03, momentum=0.9)


def momentum_contrast() -> Made:
    """The two encoders, on small images."""
    data = TensorDataset(images(32, 1024, classes=64))
    return MomentumContrast(), DataLoader(data, 16, shuffle=True, drop_last=True)


class Timed(nn.Module):
    """A residual block that is told the time."""

    def __init__(self, wide_in: int, wide_out: int, time_width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.GroupNorm(4, wide_in), nn.SiLU(), nn.Conv2d(wide_in, wide_out, 3, 1, 1)
        )
        self.time = nn.Linear(time_width, wide_out)
        self.second = nn.Sequential(
            nn.GroupNorm(4, wide_out), nn.SiLU(), nn.Conv2d(wide_out, wide_out, 3, 1, 1)
        )
        self.shortcut = nn.Conv2d(wide_in, wide_out, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(batch, wide_in, h, w) to (batch, wide_out, h, w)."""
        y = self.first(x) + self.time(time)[:, :, None, None]
        return self.second(y) + self.shortcut(x)


class Diffusion(pl.LightningModule):
    """A small U-shaped net that predicts the noise in an image; time and noise are drawn in the
    step."""

    def __init__(self, width: int = 32, steps: int = 200) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(2 * width, 4 * width), nn.SiLU())
        self.enter = nn.Conv2d(3, width, 3, 1, 1)
        self.down = Timed(width, width, 4 * width)
        self.middle = Timed(width, 2 * width, 4 * width)
        self.up = Timed(3 * width, width, 4 * width)
        self.leave = nn.Conv2d(width, 3, 3, 1, 1)
        kept = torch.cumprod(1.0 - torch.linspace(1e-4, 0.05, steps), 0)
        self.register_buffer("kept", kept)
        self.register_buffer("frequencies", 2.0 ** torch.linspace(0, 8, width) / steps)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Predicted noise, of the images' shape."""
        angles = time[:, None] * self.frequencies
        told = self.time(torch.cat([angles.sin(), angles.cos()], 1))
        first = self.down(self.enter(x), told)
        deep = self.middle(F.avg_pool2d(first, 2), told)
        joined = torch.cat([F.interpolate(deep, scale_factor=2.0), first], 1)
        return self.leave(self.up(joined, told))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Mean squared error of the noise."""
        (image,) = batch
        time = torch.randint(len(self.kept), (len(image),), device=image.device)
        share = self.kept[time][:, None, None, None]
        noise = torch.randn_like(image)
        loss = F.mse_loss(self(share.sqrt() * image + (1 - share).sqrt() * noise, time), noise)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), 2e-4)


def diffusion() -> Made:
    """The U-shaped net, on images of 16x16."""
    return Diffusion(), DataLoader(TensorDataset(images(16, 1024)), 16, shuffle=True)


class Classifier(pl.LightningModule):
    """Any net under cross-entropy."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of the classes."""
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), 1e-3)


def _patterns(size: int, channels: int, net: nn.Module) -> Made:
    count = 2048
    data = TensorDataset(images(size, count, channels=channels), torch.arange(count) % 10)
    return Classifier(net), DataLoader(data, 64, shuffle=True)


def perceptron() -> Made:
    """A multilayer perceptron on small images."""
    layers = (nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    return _patterns(8, 1, nn.Sequential(*layers, nn.Linear(64, 10)))


def convolutions() -> Made:
    """Three convolutions with batch normalisation."""
    layers: list[nn.Module] = []
    for wide_in, wide_out in ((3, 16), (16, 32), (32, 32)):
        layers += [
            nn.Conv2d(wide_in, wide_out, 3, 2, 1), nn.BatchNorm2d(wide_out), nn.ReLU()
        ]  # fmt: skip
    return _patterns(16, 3, nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 10)))


MODELS: Mapping[str, Callable[[], Made]] = {
    "tutorial-10k": lambda: next_token(60, 32, 2, 16, 1, 35, batch=20),
    "bert-107k": masked_tokens,
    "lm-4.6M": lambda: next_token(10_000, 200, 2, 200, 2, 35, batch=20),
    "one-layer": lambda: next_token(200, 32, 2, 64, 1, 35, batch=20),
    "moco-resnet18": momentum_contrast,
    "ddpm-unet": diffusion,
    "mingpt-1M": lambda: next_token(65, 128, 4, 512, 5, 64, batch=8, rate=5e-4),
    "transformer-10M": lambda: next_token(256, 320, 8, 1280, 8, 32, batch=8, rate=3e-4),
}
"""What the monitor's overhead is measured on, by name."""

FURTHER: Mapping[str, Callable[[], Made]] = {"mlp": perceptron, "cnn": convolutions}
"""Two more, for predicted costs."""
