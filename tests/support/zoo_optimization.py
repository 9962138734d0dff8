"""Ways to take an optimizer step."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from support.zoo_modules import Plain


class Manual(Plain):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = self.loss(batch)
        self.manual_backward(loss)
        self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
        optimizer.step()
        self.log("train_loss", loss)


class ManualWithProbeLoss(Manual):
    def probe_loss(self, batch):
        return self.loss(batch)


class TwoOptimizers(Plain):
    """Like a GAN: two losses, two optimizers, toggled by hand."""

    def __init__(self):
        super().__init__()
        self.critic = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        self.toggle_optimizer(first)
        generated = self.loss(batch) + 0.1 * self.critic(self(batch[0])).mean()
        first.zero_grad()
        self.manual_backward(generated)
        first.step()
        self.untoggle_optimizer(first)
        self.toggle_optimizer(second)
        judged = (self.critic(self(batch[0]).detach()) ** 2).mean() + 1.0
        second.zero_grad()
        self.manual_backward(judged)
        second.step()
        self.untoggle_optimizer(second)
        self.log_dict({"generated": generated, "judged": judged})

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.Adam(self.net.parameters(), lr=0.01),
            torch.optim.SGD(self.critic.parameters(), lr=0.01),
        ]


class UsesLBFGS(Plain):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)


class PlainDescent(Plain):
    """SGD: in half precision the epsilon of Adam is zero, and its step infinite."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


class FusedAdamW(Plain):
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.02, fused=True)


class TwoGroups(Plain):
    """Two parameter groups, momentum, and a scheduler that steps with every batch."""

    def configure_optimizers(self):
        groups = [
            {"params": self.net[0].parameters(), "lr": 0.1},
            {"params": self.net[2].parameters(), "lr": 0.01, "weight_decay": 0.1},
        ]
        optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=True)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class Plateau(Plain):
    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.02)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=1.0)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"},
        }


class SkipsSteps(Plain):
    """Returns None for every third batch."""

    def training_step(self, batch, batch_idx):
        return None if batch_idx % 3 == 2 else super().training_step(batch, batch_idx)


class ZeroesItself(Plain):
    """Zeroes its gradients right after the step, before any callback sees them."""

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        optimizer.zero_grad(set_to_none=False)


class RawOptimizer(Manual):
    """Steps the optimizer behind Lightning's back: `global_step` stays 0 for ever."""

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        loss = self.loss(batch)
        self.manual_backward(loss)
        optimizer.step()
        self.log("train_loss", loss)


class ManualAccumulation(Manual):
    """Manual optimization that steps with every second batch."""

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        loss = self.loss(batch) / 2
        self.manual_backward(loss)
        if batch_idx % 2:
            optimizer.step()
            optimizer.zero_grad()


class NonfiniteLoss(Plain):
    """Its loss turns into NaN in the middle, and the weights with it."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * float("nan") if self.global_step == 5 else loss
