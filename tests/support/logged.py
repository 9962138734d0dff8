"""A small training that logs, for tests of what goes into its loggers."""

from __future__ import annotations

import lightning.pytorch as pl
import torch

from support.bitwise import quietly, seed_everything

STEPS = 12


class Net(pl.LightningModule):
    """A line that logs its loss as `my_loss`."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = torch.nn.functional.mse_loss(self.layer(x)[:, 0], y)
        self.log("my_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


def train(folder, logger, *, monitor=None):
    """Train it for `STEPS` steps, logged at every second.

    Args:
        folder: Where the trainer writes.
        logger: The trainer's logger, or loggers.
        monitor: A callback.

    Returns:
        The trained weights.
    """
    seed_everything()
    data = torch.utils.data.TensorDataset(torch.randn(64, 3), torch.randn(64))
    net = Net()
    trainer = quietly(
        lambda: pl.Trainer(
            accelerator="cpu",
            max_steps=STEPS,
            callbacks=[] if monitor is None else [monitor],
            logger=logger,
            enable_progress_bar=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            default_root_dir=folder,
            log_every_n_steps=2,
        )
    )
    quietly(lambda: trainer.fit(net, torch.utils.data.DataLoader(data, batch_size=8)))
    return [parameter.detach().clone() for parameter in net.parameters()]
