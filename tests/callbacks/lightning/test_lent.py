"""What public training steps read of their trainer: lent to a muted copy, with the live values."""

import os

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from phasewatch.callbacks.lightning import lent
from phasewatch.callbacks.lightning.losses import ProbeLoss
from phasewatch.monitor.core.errors import RefusedError
from phasewatch.monitor.isolation import guard, measure_context
from phasewatch.monitor.observables.evaluation import at_weights

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice

BATCH = [torch.linspace(-1, 1, 32).reshape(8, 4), torch.arange(8) % 3]


class Average(pl.Callback):
    """A callback with settings and with a state, as one that averages weights has them."""

    def __init__(self):
        self.decay, self.history = 0.9, [1.0, 2.0]
        self.average = {"weight": torch.full((2,), 0.5)}
        self.teacher = nn.Linear(1, 1)

    def apply(self, value):
        return self.decay * value


class Reads(pl.LightningModule):
    """Its loss is multiplied by what it reads."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 3)
        self.read = lambda module: 1.0

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        return loss * self.read(self)

    def validation_step(self, batch, batch_idx):
        self.log("val", self.net(batch[0]).mean())

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), 1e-2)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)]


class Data(pl.LightningDataModule):
    classes = 3

    def loader(self):
        return DataLoader(TensorDataset(torch.randn(32, 4), torch.arange(32) % 3), 8)

    train_dataloader = val_dataloader = loader


def _found(kind):
    return lambda s: next(c for c in s.trainer.callbacks if isinstance(c, kind))


average = _found(Average)

READ = {
    "rate of a scheduler's optimizer": lambda s: s.trainer.lr_scheduler_configs[
        0
    ].scheduler.optimizer.param_groups[0]["lr"],
    "interval of a scheduler": lambda s: len(s.trainer.lr_scheduler_configs[0].interval),
    "last rate": lambda s: s.lr_schedulers().get_last_lr()[0],
    "a scheduler's settings": lambda s: (
        s.lr_schedulers().gamma * s.lr_schedulers().step_size * s.lr_schedulers().base_lrs[0]
    ),
    "rate of the trainer's optimizer": lambda s: s.trainer.optimizers[0].param_groups[0]["lr"],
    "rate of the module's optimizer": lambda s: s.optimizers().param_groups[0]["lr"],
    "kind of an optimizer": lambda s: 1 + isinstance(s.optimizers(), torch.optim.Adam),
    "first moment": lambda s: s.optimizers().state[s.net.weight]["exp_avg"].norm(),
    "steps of an optimizer": lambda s: sum(v["step"] for v in s.optimizers().state.values()),
    "weights of an optimizer": lambda s: sum(
        p.square().sum() for group in s.optimizers().param_groups for p in group["params"]
    ),
    "epochs": lambda s: (1 + s.trainer.current_epoch) / s.trainer.max_epochs,
    "batches": lambda s: s.trainer.num_training_batches + s.trainer.estimated_stepping_batches,
    "batches of validation": lambda s: sum(s.trainer.num_val_batches),
    "last batch": lambda s: 1 + s.trainer.is_last_batch,
    "steps": lambda s: s.trainer.global_step + s.global_step,
    "rank": lambda s: 1 + s.trainer.global_rank + s.trainer.is_global_zero,
    "metrics": lambda s: s.trainer.callback_metrics["val"] + len(s.trainer.logged_metrics),
    "data module": lambda s: s.trainer.datamodule.classes,
    "loader": lambda s: len(s.trainer.train_dataloader) + s.trainer.train_dataloader.batch_size,
    "data set": lambda s: len(s.trainer.train_dataloader.dataset),
    "labels": lambda s: s.trainer.train_dataloader.dataset.tensors[1].float().mean(),
    "kind of data set": lambda s: 1 + isinstance(s.trainer.train_dataloader.dataset, TensorDataset),
    "sampler": lambda s: len(s.trainer.train_dataloader.sampler),
    "loader of validation": lambda s: len(s.trainer.val_dataloaders),
    "reduced": lambda s: s.trainer.strategy.reduce(torch.full((), 3.0)),
    "decision": lambda s: 1 + s.trainer.strategy.reduce_boolean_decision(True),
    "broadcast": lambda s: s.trainer.strategy.broadcast(2.0),
    "barrier": lambda s: 2.0 if s.trainer.strategy.barrier() is None else 1.0,
    "moved": lambda s: s.trainer.strategy.batch_to_device(torch.ones(2)).sum(),
    "strategy": lambda s: 1 + s.trainer.strategy.root_device.type.count("c"),
    "place in the epoch": lambda s: 1 + s.trainer.fit_loop.epoch_loop.batch_idx,
    "place in the fit": lambda s: 1 + s.trainer.fit_loop.total_batch_idx,
    "progress": lambda s: s.trainer.fit_loop.epoch_loop.batch_progress.current.ready,
    "steps of the loop": lambda s: (
        s.trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer_steps
    ),
    "batches that stepped": lambda s: 1 + s.trainer.fit_loop.epoch_loop._batches_that_stepped,
    "model": lambda s: s.trainer.model.net.weight.square().sum(),
    "module": lambda s: s.trainer.lightning_module.net.weight.square().sum(),
    "model of the strategy": lambda s: s.trainer.strategy.model.net.bias.square().sum(),
    "checkpoint": lambda s: (
        len(s.trainer.checkpoint_callback.dirpath) * s.trainer.checkpoint_callback.save_top_k
    ),
    "best checkpoint": lambda s: s.trainer.checkpoint_callback.best_model_score,
    "checkpoints": lambda s: len(s.trainer.checkpoint_callbacks),
    "patience": lambda s: (
        s.trainer.early_stopping_callback.patience + s.trainer.early_stopping_callback.best_score
    ),
    "callbacks": lambda s: len(s.trainer.callbacks),
    "a callback's settings": lambda s: average(s).decay * average(s).history[1],
    "a callback's tensors": lambda s: average(s).average["weight"].sum(),
    "bar": lambda s: 1.0 if s.trainer.progress_bar_callback is None else 2.0,
    "log folder": lambda s: len(os.path.join(s.trainer.log_dir, "x")),
    "folder of the logger": lambda s: len(os.path.join(s.logger.log_dir, "x")),
    "name of the logger": lambda s: len(s.logger.name) + s.logger.version,
    "loggers": lambda s: len(s.trainer.loggers) * len(s.loggers[0].save_dir),
    "root": lambda s: len(s.trainer.default_root_dir),
    "stage": lambda s: len(s.trainer.state.stage.value),
    "precision": lambda s: len(s.trainer.precision_plugin.precision),
    "told to stop": lambda s: 1 + s.trainer.should_stop + s.trainer.received_sigterm,
    "profiled": lambda s: _profiled(s),
}


def _profiled(module):
    with module.trainer.profiler.profile("part"):
        return 2.0


class Look(pl.Callback):
    """Runs a function once, in the middle of a fit, after a validation."""

    def __init__(self, look):
        self.look, self.result = look, None

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == 6:
            self.result = self.look(trainer, module)


@pytest.fixture(scope="module")
def in_fit(tmp_path_factory):
    """Runs a function in the middle of a fit that has everything one can read."""

    def run(look):
        folder = tmp_path_factory.mktemp("fit")
        looking = Look(look)
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=2,
            default_root_dir=folder,
            callbacks=[
                looking,
                Average(),
                EarlyStopping("val", patience=7),
                ModelCheckpoint(folder / "kept", monitor="val"),
            ],
            logger=CSVLogger(folder / "logs", name="run", version=2),
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Reads(), datamodule=Data())
        return looking

    return run


def _copied(trainer, live):
    loss = ProbeLoss(live, trainer)
    context = measure_context(live, step=1, substitutes=loss.substitutes())
    return loss.attach(context.model), context


def _on_copy(trainer, live):
    """Loss and gradient of the muted copy's step."""
    loss, context = _copied(trainer, live)
    params = {name: value.clone().requires_grad_() for name, value in context.params.items()}
    value = at_weights(context, loss, BATCH, params=params)
    return value.detach(), torch.autograd.grad(value, list(params.values()))


def _alive(live):
    value = live.training_step(BATCH, 0)
    return value.detach(), torch.autograd.grad(value, list(live.parameters()))


def test_a_copy_reads_what_the_live_step_reads_and_gives_its_loss_and_gradient(in_fit):
    def look(trainer, live):
        wrong, expected, before = {}, {}, live.read
        for name, read in READ.items():
            live.read = read
            expected[name] = value, _ = _alive(live)
            assert torch.isfinite(value)
            assert value != 0
        for name, read in READ.items():
            live.read = read
            with guard(live, seed=0) as report:
                try:
                    torch.testing.assert_close(_on_copy(trainer, live), expected[name])
                except Exception as error:
                    wrong[name] = f"{type(error).__name__}: {error}"
            assert report.repairs == []
        live.read = before
        return wrong

    assert in_fit(look).result == {}


WRITE = {
    "rate": lambda s: s.optimizers().param_groups[0].update(lr=7.0),
    "rate of the trainer": lambda s: s.trainer.optimizers[0].param_groups[0].update(lr=7.0),
    "state": lambda s: s.optimizers().state[s.net.weight]["exp_avg"].fill_(7.0),
    "stop": lambda s: setattr(s.trainer, "should_stop", True),
    "counter": lambda s: setattr(s.trainer.fit_loop.epoch_loop, "_batches_that_stepped", 99),
    "progress": lambda s: s.trainer.fit_loop.epoch_loop.batch_progress.increment_ready(),
    "callback": lambda s: average(s).history.append(7.0),
    "callback's tensor": lambda s: average(s).average["weight"].fill_(7.0),
    "metrics": lambda s: s.trainer.callback_metrics.clear(),
    "scheduler": lambda s: s.lr_schedulers().step(),
    "bar": lambda s: s.trainer.progress_bar_callback,
    "logger": lambda s: s.logger.experiment.add_scalar("x", 1.0),
    "print": lambda s: s.trainer.print("said"),
}


def test_what_a_step_writes_stays_with_the_copy(in_fit, capsys):
    def state(trainer, live):
        optimizer = trainer.optimizers[0]
        loop = trainer.fit_loop.epoch_loop
        return repr(
            [
                optimizer.param_groups[0]["lr"],
                optimizer.state[live.net.weight]["exp_avg"].tolist(),
                trainer.should_stop,
                loop._batches_that_stepped,
                loop.batch_progress,
                trainer.callbacks[1].history,
                trainer.callbacks[1].average,
                sorted(trainer.callback_metrics),
                trainer.lr_scheduler_configs[0].scheduler.last_epoch,
                live.logger.experiment.metrics,
            ]
        )

    def look(trainer, live):
        before, read = state(trainer, live), live.read
        capsys.readouterr()
        for write in WRITE.values():
            live.read = lambda module, write=write: (write(module), 1.0)[1]
            with guard(live, seed=0) as report:
                loss, context = _copied(trainer, live)
                at_weights(context, loss, BATCH)
            assert report.repairs == []
        live.read = read
        return before, state(trainer, live), capsys.readouterr().out

    before, after, said = in_fit(look).result
    assert after == before
    assert said == ""


def test_everything_that_is_lent_is_there_and_nothing_else_is(in_fit):
    def look(trainer, live):
        view = lent.Lent(trainer).trainer
        missing = [name for name in lent._TRAINER if not hasattr(trainer, name)]
        missing += [name for name in lent._FIT_LOOP if not hasattr(trainer.fit_loop, name)]
        loop = trainer.fit_loop.epoch_loop
        missing += [name for name in lent._EPOCH_LOOP if not hasattr(loop, name)]
        kinds = {}
        for name in dir(trainer):
            if name.startswith("_"):
                continue
            try:
                kinds[name] = type(getattr(view, name)).__name__
            except RefusedError:
                kinds[name] = "refused"
        return missing, kinds

    missing, kinds = in_fit(look).result
    assert missing == []
    refused = {name for name, kind in kinds.items() if kind == "refused"}
    assert refused == {
        "enable_autolog_hparams", "fit", "init_module", "predict", "save_checkpoint", "scaler",
        "test", "validate",
    }  # fmt: skip
