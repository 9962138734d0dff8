"""A job that is told to stop while it measures stops measuring at once."""

import contextlib
import os
import signal
import threading

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from phasewatch.callbacks import TransitionMonitor
from phasewatch.monitor import MonitorConfig

pytest.importorskip("phasewatch.monitor.run.interrupts")

pytestmark = pytest.mark.filterwarnings("ignore")

ENDLESS = {"num_chains": 2, "num_draws": 10**6, "max_draws": 10**6, "engine": "vmap"}
"""A λ̂ that would take hours."""


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 2)
        self.steps = 0

    def training_step(self, batch, batch_idx):
        self.steps += 1
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Told:
    """The probe loss; in the middle of the first λ̂ another thread sends the process a signal."""

    def __init__(self, number, after):
        self.number, self.after = number, after
        self.trainer = None
        self.before = self.since = 0
        self.sent = False

    def __call__(self, model, batch):
        if self.trainer.global_step:
            if self.sent:
                self.since += 1
            self.before += not self.sent
        if self.before == self.after and not self.sent:
            self.sent = True
            sender = threading.Thread(target=os.kill, args=(os.getpid(), self.number))
            sender.start()
            sender.join()
        return nn.functional.cross_entropy(model.net(batch[0]), batch[1], reduction="none")


@pytest.mark.parametrize("after", [1, 200])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("budget", [{"every_n_steps": 1}])
def test_a_signal_ends_a_measurement_within_one_evaluation(budget, number, after, tmp_path):
    told, module = Told(number, after), Net()
    config = MonitorConfig.load({"sampler": ENDLESS, "observables": {"llc": {}}})
    monitor = TransitionMonitor(
        config, loss_fn=told, store=str(tmp_path / "run.db"), exporter=False, **budget
    )
    told.trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=5000,
        max_epochs=-1,
        callbacks=[monitor],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    data = TensorDataset(torch.randn(64, 4), torch.arange(64) % 2)
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        told.trainer.fit(module, DataLoader(data, 16))
    assert told.sent
    assert told.since <= 1
    assert module.steps < 5000  # and the training has heard it, too
    assert monitor.watch.health.state.value in ("interrupted", "failed", "finished")
    assert len(monitor.history("llc")[0]) == 0
