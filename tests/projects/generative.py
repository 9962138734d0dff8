"""Models that generate: a GAN, a denoising diffusion with a mean of its weights, a VAE."""

from __future__ import annotations

import copy

import lightning.pytorch as pl
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

SIDE, LATENT = 8, 6


def images(rows=96, seed=0):
    """Bright squares on a dark ground."""
    generator = torch.Generator().manual_seed(seed)
    x = 0.1 * torch.rand(rows, 1, SIDE, SIDE, generator=generator)
    corners = torch.randint(0, SIDE - 3, (rows, 2), generator=generator).tolist()
    for image, (row, column) in zip(x, corners, strict=True):
        image[:, row : row + 3, column : column + 3] += 0.8
    return x


def data():
    dataset = TensorDataset(images(), torch.zeros(96, dtype=torch.long))
    return {"train_dataloaders": DataLoader(dataset, batch_size=16, shuffle=True)}


class Gan(pl.LightningModule):
    """Two networks, two optimizers, stepped by hand and toggled."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(
            nn.Linear(LATENT, 32), nn.LeakyReLU(0.2), nn.BatchNorm1d(32),
            nn.Linear(32, SIDE * SIDE), nn.Sigmoid(),
        )  # fmt: skip
        self.discriminator = nn.Sequential(
            nn.Flatten(), nn.Linear(SIDE * SIDE, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1)
        )

    def forward(self, z):
        return self.generator(z).view(-1, 1, SIDE, SIDE)

    def training_step(self, batch, _):
        real, _ = batch
        first, second = self.optimizers()
        z = torch.randn(len(real), LATENT, device=self.device)
        yes, no = torch.ones(len(real), 1), torch.zeros(len(real), 1)
        judged = functional.binary_cross_entropy_with_logits
        self.toggle_optimizer(first)
        loss = judged(self.discriminator(self(z)), yes)
        self.log("g_loss", loss)
        self.manual_backward(loss)
        first.step()
        first.zero_grad()
        self.untoggle_optimizer(first)
        self.toggle_optimizer(second)
        fake = judged(self.discriminator(self(z).detach()), no)
        loss = judged(self.discriminator(real), yes) + fake
        self.log("d_loss", loss / 2)
        self.manual_backward(loss / 2)
        second.step()
        second.zero_grad()
        self.untoggle_optimizer(second)

    def configure_optimizers(self):
        return [
            torch.optim.Adam(net.parameters(), lr=2e-3, betas=(0.5, 0.999))
            for net in (self.generator, self.discriminator)
        ]


class Diffusion(pl.LightningModule):
    """Predicts the noise at a drawn time; a moving mean of the weights is kept and not trained."""

    def __init__(self, steps=50):
        super().__init__()
        self.steps = steps
        self.net = nn.Sequential(
            nn.Linear(SIDE * SIDE + 1, 64), nn.SiLU(), nn.Linear(64, SIDE * SIDE)
        )
        self.ema = copy.deepcopy(self.net).requires_grad_(False)
        kept = torch.cumprod(1.0 - torch.linspace(1e-4, 0.2, steps), 0)
        self.register_buffer("kept", kept)

    def training_step(self, batch, _):
        x = batch[0].flatten(1) * 2 - 1
        t = torch.randint(0, self.steps, (len(x),), device=self.device)
        noise, kept = torch.randn_like(x), self.kept[t][:, None]
        noisy = kept.sqrt() * x + (1 - kept).sqrt() * noise
        loss = functional.mse_loss(self.net(torch.cat([noisy, t[:, None] / self.steps], 1)), noise)
        self.log("train_loss", loss)
        return loss

    def on_train_batch_end(self, *_):
        with torch.no_grad():
            for mean, now in zip(self.ema.parameters(), self.net.parameters(), strict=True):
                mean.lerp_(now, 0.05)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.net.parameters(), lr=2e-3)


class Vae(pl.LightningModule):
    """Reparametrised draws, and a weight of the divergence that grows with the steps."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 32), nn.ReLU())
        self.mu, self.log_var = nn.Linear(32, LATENT), nn.Linear(32, LATENT)
        self.decoder = nn.Sequential(nn.Linear(LATENT, 32), nn.ReLU(), nn.Linear(32, SIDE * SIDE))

    def training_step(self, batch, _):
        x, _ = batch
        hidden = self.encoder(x)
        mu, log_var = self.mu(hidden), self.log_var(hidden)
        z = mu + torch.randn_like(mu) * torch.exp(0.5 * log_var)
        loss = functional.binary_cross_entropy_with_logits(self.decoder(z), x.flatten(1))
        divergence = -0.5 * (1 + log_var - mu.square() - log_var.exp()).sum(1).mean()
        weight = min(1.0, self.global_step / 20) / SIDE**2
        self.log_dict({"reconstruction": loss, "kl": divergence})
        return loss + weight * divergence

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=2e-3)
