"""Tiny LightningModules, each with one habit that real ones have and that a monitor trips over."""

from __future__ import annotations

import random
import tempfile
import threading
from collections import deque
from functools import partial

import lightning.pytorch as pl
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

SCRIPT_GENERATOR = torch.Generator()
"""A generator at the level of the user's script."""


class Plain(pl.LightningModule):
    """An MLP. Every other module is this one with a habit."""

    def __init__(self, net: nn.Module | None = None):
        super().__init__()
        self.net = net or nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x):
        return self.net(x)

    def loss(self, batch):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.02)


class NoisyStep(Plain):
    """Draws from all three global generators in the step, and writes to the logger directly."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        x = x + 0.01 * torch.randn_like(x) + 0.01 * float(np.random.rand()) + 0.01 * random.random()  # noqa: NPY002
        loss = F.cross_entropy(self(x), y)
        self.logger.log_metrics({"direct": float(loss.detach())}, step=self.global_step)
        self.log("train_loss", loss)
        return loss


class StateInAttributes(Plain):
    """Counts its steps and keeps activations, losses and a running mean as plain attributes."""

    def __init__(self):
        super().__init__()
        self.num_calls = 0
        self.history = deque(maxlen=4)
        self.seen = {"labels": set()}
        self.running = torch.zeros(())
        self.last = None

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.num_calls += 1
        self.last = self(x)
        self.seen["labels"].update(y.shape)
        loss = F.cross_entropy(self.last, y)
        self.running = 0.9 * self.running + 0.1 * loss.detach()
        self.history.append(loss.detach())
        loss = loss * (1 + 1e-3 * (self.num_calls % 3))
        self.log("calls", float(self.num_calls))
        self.log("train_loss", loss)
        return loss


class UncopyableAttributes(Plain):
    """Holds a lock, an open file, a running generator and a tensor inside a graph."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()
        self.file = tempfile.TemporaryFile()  # noqa: SIM115
        self.stream = (index for index in range(10**6))
        self.kept_loss = None

    def training_step(self, batch, batch_idx):
        with self.lock:
            loss = self.loss(batch)
        self.kept_loss = loss
        self.log("train_loss", loss)
        return loss

    def teardown(self, stage):
        self.file.close()


class ReadsItem(Plain):
    """Branches on a value of the loss, which no vectorised tracing can follow."""

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        if loss.item() > 1e6 or bool((loss > 1e6).any()):
            loss = loss * 0.5
        self.log("train_loss", loss.item())
        return loss


class HookClosure(Plain):
    """A forward hook that closes over `self`: a copy of the module would run the live one."""

    def __init__(self):
        super().__init__()
        self.num_hooked = 0

        def hook(module, args, output):
            self.num_hooked += 1
            return output + 0.1 * self.net[2](self.net[1](self.net[0](args[0])))

        self.net.register_forward_hook(hook)

    def training_step(self, batch, batch_idx):
        self.log("hooked", float(self.num_hooked))
        return super().training_step(batch, batch_idx)


class LambdaClosure(Plain):
    """Computes its loss through a lambda that closes over `self`."""

    def __init__(self):
        super().__init__()
        self.num_lambda = 0
        self.head = lambda x: self._count() or self.net(x)

    def _count(self):
        self.num_lambda += 1

    def forward(self, x):
        return self.head(x)


class RefusesCopies(Plain):
    def __deepcopy__(self, memo):
        raise TypeError("one of a kind")


LIVE: dict[str, nn.Module] = {}
"""Where a user's script keeps its model."""


class ReadsGlobal(Plain):
    """Computes with the model that a global variable names, which is the live one for ever."""

    def __init__(self):
        super().__init__()
        LIVE["net"] = self.net

    def forward(self, x):
        return LIVE["net"](x)


class BoundMethods(Plain):
    """Keeps bound methods and partials of itself; a copy can rebind them."""

    def __init__(self):
        super().__init__()
        self.head = self.compute
        self.scaled = partial(self.compute, scale=1.0)

    def compute(self, x, scale=1.0):
        return self.net(x) * scale

    def forward(self, x):
        return self.head(x) + 0.0 * self.scaled(x)


class StopsOnWideBatch(Plain):
    """Stops training when a batch is wider than any training batch: only a probe can be."""

    def training_step(self, batch, batch_idx):
        if len(batch[0]) > 8:
            self.trainer.should_stop = True
        return super().training_step(batch, batch_idx)


class ReadsOptimizers(Plain):
    def training_step(self, batch, batch_idx):
        lr = self.optimizers().param_groups[0]["lr"]
        self.log("lr", lr)
        return self.loss(batch) * (1 + lr)


class MutatesBatch(Plain):
    def training_step(self, batch, batch_idx):
        x, y = batch
        x.mul_(0.5).add_(0.1)
        batch.append("seen") if isinstance(batch, list) else None
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss


class ClassGenerator(Plain):
    noise = torch.Generator()

    def __init__(self):
        super().__init__()
        type(self).noise.manual_seed(3)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return self.loss([x + 0.05 * torch.randn(x.shape, generator=self.noise), y])


class InstanceGenerators(Plain):
    def __init__(self):
        super().__init__()
        self.noise = torch.Generator().manual_seed(4)
        self.numpy_noise = np.random.default_rng(5)
        self.python_noise = random.Random(6)

    def training_step(self, batch, batch_idx):
        x, y = batch
        x = x + 0.05 * torch.randn(x.shape, generator=self.noise)
        x = x + 0.05 * self.numpy_noise.random() + 0.05 * self.python_noise.random()
        return self.loss([x, y])


class ScriptGenerator(Plain):
    def __init__(self):
        super().__init__()
        SCRIPT_GENERATOR.manual_seed(8)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return self.loss([x + 0.05 * torch.randn(x.shape, generator=SCRIPT_GENERATOR), y])


class HookedParameters(Plain):
    """Scales a gradient in a tensor hook and edits its weights after every batch."""

    def __init__(self):
        super().__init__()
        self.num_scaled = 0
        self.net[0].weight.register_hook(self.scale)

    def scale(self, grad):
        self.num_scaled += 1
        return grad * 0.5

    def on_train_batch_end(self, outputs, batch, batch_idx):
        with torch.no_grad():
            self.net[2].bias.clamp_(-0.1, 0.1)


class ChildModules(Plain):
    """Another LightningModule inside, which asks for the trainer, and a reference to it."""

    def __init__(self):
        super().__init__()
        self.child = AskingChild()
        self.my_trainer = None

    def on_fit_start(self):
        self.my_trainer = self.trainer

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) + self.child.penalty()

    def on_fit_end(self):
        self.my_trainer = None


class AskingChild(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7))

    def penalty(self):
        weight = 0.01 / (1 + self.trainer.current_epoch + self.global_step)
        return weight * self.scale**2


class DictResult(Plain):
    """Batches are nested dicts, the step takes no index and returns a dict."""

    def training_step(self, batch):
        loss = self.loss((batch["inputs"]["x"], batch["label"]))
        self.log_dict({"train_loss": loss})
        return {"loss": loss, "extra": loss.detach() * 2}


class Silent(Plain):
    """Logs nothing at all."""

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        pass


class SwallowsFailures(Plain):
    """Catches everything that goes wrong inside its own step."""

    def training_step(self, batch, batch_idx):
        try:
            self.trainer.logger.log_metrics({"inner": 1.0}, step=self.trainer.global_step)
        except Exception:  # a user's bad habit
            self.broken = True
        return super().training_step(batch, batch_idx)


class DataloaderIter(Plain):
    """Takes the iterator itself."""

    def training_step(self, dataloader_iter):
        batch, _, _ = next(dataloader_iter)
        return self.loss(batch)


class ReadsTrainer(Plain):
    """Weighs its loss by what trainer, scheduler and hyperparameters say."""

    def __init__(self, scale: float = 0.5):
        super().__init__()
        self.save_hyperparameters()

    def training_step(self, batch, batch_idx):
        done = self.trainer.global_step / self.trainer.estimated_stepping_batches
        epochs = self.current_epoch / self.trainer.max_epochs
        share = batch_idx / self.trainer.num_training_batches
        lr = self.lr_schedulers().get_last_lr()[0]
        factor = self.hparams.scale + 0.1 * (done + epochs + share + lr)
        return self.loss(batch) * factor + 0.0 * int(self.trainer.is_global_zero)

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.02)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=1)]


class KeepsInferenceTensor(Plain):
    """Remembers what validation computed in inference mode."""

    def __init__(self):
        super().__init__()
        self.remembered = None
        self.register_buffer("centre", torch.zeros(3), persistent=False)

    def validation_step(self, batch, batch_idx):
        self.remembered = self(batch[0])
        self.centre = self.remembered.mean(0)
        super().validation_step(batch, batch_idx)

    def training_step(self, batch, batch_idx):
        shift = 0.0 if self.remembered is None else float(self.remembered.mean())
        return super().training_step(batch, batch_idx) * (1 + 0.01 * shift)


class MadeInSetup(Plain):
    """Makes its layers late: in `setup`, and in `configure_model`."""

    def __init__(self):
        super().__init__(nn.Identity())
        self.first = None
        self.second = None

    def setup(self, stage):
        self.first = self.first or nn.Linear(4, 6)

    def configure_model(self):
        self.second = self.second or nn.Linear(6, 3)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


class ReseedsItself(Plain):
    """Seeds the global generators in its step."""

    def training_step(self, batch, batch_idx):
        torch.manual_seed(batch_idx)
        np.random.seed(batch_idx)  # noqa: NPY002
        return self.loss([batch[0] + 0.1 * torch.randn(4), batch[1]])
