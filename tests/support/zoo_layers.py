"""The same MLP with the layers that need care."""

from __future__ import annotations

import warnings

import torch
import torchmetrics
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from support.zoo_modules import Plain


class DropoutBatchNorm(Plain):
    def __init__(self):
        super().__init__(
            nn.Sequential(
                nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3)
            )
        )


class SynchronisedBatchNorm(DropoutBatchNorm):
    """The layer that communicates when there is anybody to talk to."""

    def __init__(self):
        super().__init__()
        self.net = nn.SyncBatchNorm.convert_sync_batchnorm(self.net)


class FrozenBatchNorm(DropoutBatchNorm):
    """Keeps BatchNorm in eval mode inside a training module, and its scale frozen."""

    def on_train_epoch_start(self):
        self.net[1].eval()
        self.net[1].requires_grad_(False)


class WithTorchmetrics(Plain):
    def __init__(self):
        super().__init__()
        self.accuracy = torchmetrics.Accuracy(task="multiclass", num_classes=3)
        self.mean = torchmetrics.MeanMetric()

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y)
        self.accuracy(logits.softmax(-1), y)
        self.mean.update(loss.detach())
        self.log("accuracy", self.accuracy, on_step=True, on_epoch=True)
        self.log("mean_loss", self.mean, on_step=False, on_epoch=True)
        return loss


class OldWeightNorm(Plain):
    def __init__(self):
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.net[0] = nn.utils.weight_norm(self.net[0])


class NewWeightNorm(Plain):
    def __init__(self):
        super().__init__()
        self.net[0] = nn.utils.parametrizations.weight_norm(self.net[0])


class OldSpectralNorm(Plain):
    def __init__(self):
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.net[0] = nn.utils.spectral_norm(self.net[0])


class Checkpointed(Plain):
    def __init__(self, use_reentrant: bool):
        super().__init__()
        self.use_reentrant = use_reentrant

    def forward(self, x):
        if self.use_reentrant:
            x = x.requires_grad_()
        return checkpoint(self.net, x, use_reentrant=self.use_reentrant)


class Tied(Plain):
    """One matrix used as encoder and as decoder, registered under two names."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.decoder.weight = self.encoder.weight

    def forward(self, x):
        return self.net(self.decoder(torch.tanh(self.encoder(x))))


class Recurrent(Plain):
    def __init__(self):
        super().__init__(nn.Linear(6, 3))
        self.lstm = nn.LSTM(2, 6, num_layers=2, dropout=0.2, batch_first=True)

    def forward(self, x):
        return self.net(self.lstm(x.reshape(len(x), 2, 2))[0][:, -1])


class Attention(Plain):
    def __init__(self):
        super().__init__(nn.Linear(4, 3))
        self.block = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True)

    def forward(self, x):
        return self.net(self.block(x[:, None, :].expand(-1, 3, -1))[:, -1])


class Frozen(Plain):
    """Fine-tunes the head alone."""

    def __init__(self):
        super().__init__()
        self.net[0].requires_grad_(False)


class MaxNormEmbedding(Plain):
    """Rescales its weight in place inside forward."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(3, 4, max_norm=0.5)

    def loss(self, batch):
        x, y = batch
        return F.cross_entropy(self(x + self.embedding((x[:, 0] > 0).long())), y)


class CompiledNet(Plain):
    def __init__(self):
        super().__init__()
        self.net = torch.compile(self.net, backend="eager")


class SharedBlock(Plain):
    """One block registered under two names and applied twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = self.first

    def forward(self, x):
        return self.net(self.second(torch.tanh(self.first(x))))


class ComplexParameters(Plain):
    def __init__(self):
        super().__init__()
        self.phase = nn.Parameter(torch.randn(4, dtype=torch.complex64))

    def forward(self, x):
        return self.net((x * self.phase).abs())


class Scripted(Plain):
    def __init__(self):
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.net = torch.jit.script(self.net)


class Backbone(Plain):
    """What the finetuning callback wants: a backbone to thaw later, and a head."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(4, 4)

    def forward(self, x):
        return self.net(self.backbone(x))

    def configure_optimizers(self):
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=0.02)


class SparseGradients(Plain):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(3, 4, sparse=True)

    def loss(self, batch):
        x, y = batch
        return F.cross_entropy(self(x + self.embedding((x[:, 0] > 0).long())), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)
