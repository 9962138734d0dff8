"""One callback for both names under which Lightning is installed."""

import subprocess
import sys
import textwrap

import lightning.pytorch
import lightning.pytorch.cli
import pytest
import pytorch_lightning
import pytorch_lightning.cli
import torch
import yaml
from torch import nn
from torch.nn import functional as F

from phasewatch.callbacks import TransitionMonitor
from phasewatch.monitor.store.store import Store
from support.bitwise import differences, seed_everything
from support.observers import make_monitor
from support.training import make_trainer, quietly, record
from support.zoo_data import loader, val_loader

NAMESPACES = {"lightning.pytorch": lightning.pytorch, "pytorch_lightning": pytorch_lightning}


def _define(pl):
    class Small(pl.LightningModule):
        def __init__(self, width: int = 8):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, width), nn.Dropout(0.2), nn.Linear(width, 3))

        def loss(self, batch):
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def training_step(self, batch, batch_idx):
            loss = self.loss(batch)
            self.log("train_loss", loss)
            return loss

        def validation_step(self, batch, batch_idx):
            self.log("val_loss", self.loss(batch))

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.02)

        def train_dataloader(self):
            return loader()

        def val_dataloader(self):
            return val_loader()

    return Small


MODULES = {name: _define(pl) for name, pl in NAMESPACES.items()}


@pytest.fixture(params=NAMESPACES)
def namespace(request):
    return request.param


def test_in_a_list_training_is_not_touched(namespace, tmp_path):
    made = []

    def monitors():
        made.append(make_monitor(tmp_path))
        return made

    pl, build = NAMESPACES[namespace], MODULES[namespace]
    clean = record(build, dict, tmp_path, namespace=pl)
    watched = record(build, dict, tmp_path, monitors=monitors, namespace=pl)
    assert differences(clean, watched) == []
    assert made[0].watch.health.measurements["llc"] == 5


def test_bare(namespace, tmp_path):
    monitor = make_monitor(tmp_path)
    seed_everything()
    trainer = make_trainer(tmp_path, monitor, namespace=NAMESPACES[namespace])
    quietly(lambda: trainer.fit(MODULES[namespace]()))
    assert monitor.watch.health.measurements["llc"] == 5
    assert monitor in trainer.callbacks


def test_state_goes_through_a_checkpoint(namespace, tmp_path):
    pl = NAMESPACES[namespace]
    first, second = (make_monitor(tmp_path) for _ in range(2))
    saver = pl.callbacks.ModelCheckpoint(dirpath=tmp_path, filename="end", save_last=False)
    trainer = make_trainer(
        tmp_path, [first, saver], namespace=pl, enable_checkpointing=True, max_epochs=1
    )
    quietly(lambda: trainer.fit(MODULES[namespace]()))
    trainer = make_trainer(tmp_path, [second], namespace=pl, max_epochs=2)
    quietly(lambda: trainer.fit(MODULES[namespace](), ckpt_path=str(tmp_path / "end.ckpt")))
    assert first.watch.run_id == second.watch.run_id
    assert second.watch.health.measurements["llc"] >= 2


def test_it_is_a_callback_of_both(namespace):
    assert issubclass(TransitionMonitor, NAMESPACES[namespace].callbacks.Callback)


def test_built_from_yaml_by_the_command_line_interface(namespace, tmp_path):
    options = {
        "every_n_steps": 2,
        "run_name": "from-yaml",
        "observables": ["weight_norm", "llc"],
        "overhead": 1.0,
        "config": str(tmp_path / "monitor.yaml"),
    }
    (tmp_path / "monitor.yaml").write_text(
        yaml.safe_dump(
            {
                "store": str(tmp_path / "store.db"),
                "exporter": {"enabled": False},
                "sampler": {"num_chains": 2, "num_draws": 8},
                "probe": {"num_samples": 16},
            }
        )
    )
    trainer = {
        "callbacks": [
            {"class_path": "phasewatch.callbacks.TransitionMonitor", "init_args": options}
        ],
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": str(tmp_path),
    }
    (tmp_path / "cli.yaml").write_text(yaml.safe_dump({"trainer": trainer}))
    cli = quietly(
        lambda: NAMESPACES[namespace].cli.LightningCLI(
            MODULES[namespace],
            args=["fit", "--config", str(tmp_path / "cli.yaml")],
            save_config_callback=None,
        )
    )
    monitor = next(c for c in cli.trainer.callbacks if isinstance(c, TransitionMonitor))
    assert monitor.watch.health.measurements["llc"] == 2
    store = Store(str(tmp_path / "store.db"))
    assert store.run("from-yaml").last_step == 5
    store.close()


def test_the_command_line_interface_refuses_a_wrong_value(namespace, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        quietly(
            lambda: NAMESPACES[namespace].cli.LightningCLI(
                MODULES[namespace],
                args=[
                    "fit",
                    "--trainer.callbacks+=phasewatch.callbacks.TransitionMonitor",
                    "--trainer.callbacks.every_n_steps=often",
                ],
                save_config_callback=None,
            )
        )
    assert stopped.value.code == 2
    assert "every_n_steps" in capsys.readouterr().err


@pytest.mark.slow
def test_with_one_namespace_imported_the_other_is_not_needed(namespace, tmp_path):
    other = next(name for name in NAMESPACES if name != namespace)
    script = f"""
        import sys, warnings
        warnings.simplefilter("ignore")
        sys.modules[{other!r}] = None  # as if it were not installed
        import torch, {namespace} as pl
        from phasewatch.callbacks import TransitionMonitor
        class Small(pl.LightningModule):
            def __init__(self):
                super().__init__()
                self.net = torch.nn.Linear(4, 3)
            def training_step(self, batch, batch_idx):
                return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=0.1)
        data = torch.utils.data.TensorDataset(torch.randn(32, 4), torch.randint(3, (32,)))
        monitor = TransitionMonitor(every_n_steps=2, exporter=False)
        pl.Trainer(accelerator="cpu", max_epochs=1, callbacks=monitor, logger=False,
                   enable_checkpointing=False, enable_progress_bar=False,
                   default_root_dir={str(tmp_path)!r}).fit(
            Small(), torch.utils.data.DataLoader(data, batch_size=8))
        print("measured", monitor.watch.health.measurements["llc"])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "measured 2" in done.stdout
