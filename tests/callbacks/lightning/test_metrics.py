import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from phasewatch.callbacks.lightning.metrics import LoggedMetrics

pytestmark = pytest.mark.filterwarnings("ignore")


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        loss = self.linear(batch).square().mean()
        self.log("train_loss", loss)
        self.log("both", float(batch_idx), on_step=True, on_epoch=True)
        self.log("epoch_only", 10.0 + batch_idx, on_step=False, on_epoch=True)
        if batch_idx % 2 == 0:
            self.log("sometimes", 100.0 + batch_idx)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", 7.0 + self.current_epoch)
        self.log("val_both", 1.0, on_step=True, on_epoch=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Reader(pl.Callback):
    """Reads at the hooks at which the monitor does."""

    def __init__(self, own=True):
        self.metrics = LoggedMetrics()
        self.metrics.own_train_loss = own
        self.steps, self.epochs, self.validations = [], [], []

    @staticmethod
    def floats(values):
        return {name: float(value) for name, value in values.items()}

    def on_train_start(self, trainer, module):
        self.metrics.skip(trainer)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.steps.append(self.floats(self.metrics.of_step(trainer)))

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch:
            self.epochs.append(self.floats(self.metrics.of_epoch(trainer)))

    def on_train_end(self, trainer, module):
        self.epochs.append(self.floats(self.metrics.of_epoch(trainer)))

    def on_validation_start(self, trainer, module):
        self.metrics.before_validation(trainer)

    def on_validation_end(self, trainer, module):
        self.validations.append(self.floats(self.metrics.of_validation(trainer)))


@pytest.fixture(scope="module", params=[True, False])
def reader(request):
    reader = Reader(own=request.param)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        callbacks=[reader],
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    data = torch.utils.data.DataLoader(torch.ones(3, 1))
    trainer.fit(Net(), data, data)
    return reader


def test_values_of_steps_are_read_at_their_step_and_not_again(reader):
    loss = set() if reader.metrics.own_train_loss else {"train_loss"}
    assert [set(values) for values in reader.steps[:3]] == [
        {"both", "sometimes"} | loss,
        {"both"} | loss,
        {"both", "sometimes"} | loss,
    ]
    assert [values["both"] for values in reader.steps] == [0.0, 1.0, 2.0] * 2
    assert reader.steps[2]["sometimes"] == 102.0


def test_values_of_epochs_are_the_reduced_ones(reader):
    assert reader.epochs == [{"both_epoch": 1.0, "epoch_only": 11.0}] * 2


def test_each_validation_gives_its_own_values_under_one_name(reader):
    assert reader.validations == [
        {"val_loss": 7.0, "val_both": 1.0},
        {"val_loss": 8.0, "val_both": 1.0},
    ]
