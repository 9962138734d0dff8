"""Bad input: a clear error before the first step, or a counted and visible degradation."""

import contextlib
import json
import logging
import socket
import sqlite3

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from phasewatch.callbacks import TransitionMonitor
from phasewatch.monitor import MonitorConfig
from phasewatch.monitor.core.errors import ConfigError, UnknownNameError
from phasewatch.monitor.core.estimates import EstimateStatus
from phasewatch.monitor.store.store import Store
from support import zoo_data as data
from support.bitwise import differences
from support.observers import NORMS, make_monitor
from support.training import make_trainer, quietly, record, record_case
from support.zoo import find
from support.zoo_modules import Plain
from support.zoo_optimization import NonfiniteLoss

CASE = find("multilayer perceptron")


def compare(tmp_path, monitor, *, build=CASE.build, loaders=CASE.loaders, **options):
    """Training must go on, and be equal."""
    clean = record(build, loaders, tmp_path, **options)
    watched = record(build, loaders, tmp_path, monitors=lambda: [monitor], **options)
    assert differences(clean, watched) == []
    return watched


class _Steps(pl.Callback):
    """Counts batches: a configuration error must come before the first."""

    def __init__(self):
        self.count = 0

    def on_train_batch_start(self, *arguments):
        self.count += 1


def refused(tmp_path, make, match, *, build=CASE.build, error=ConfigError):
    """Making or starting the monitor must fail before the first step, with a clear message."""
    steps = _Steps()
    with pytest.raises(error, match=match):
        record(build, CASE.loaders, tmp_path, monitors=lambda: [*make(), steps])
    assert steps.count == 0


def test_a_loss_that_is_not_finite_is_counted_and_training_goes_on(tmp_path):
    monitor = make_monitor(tmp_path)
    watched = compare(tmp_path, monitor, build=NonfiniteLoss)
    health = monitor.watch.health
    assert watched.num_steps == 10
    assert health.measurements["llc"] >= 2
    assert health.estimates[EstimateStatus.OK] < health.measurements["llc"]
    steps, values, _ = monitor.history("weight_norm")
    assert np.isnan(values[steps > 6]).all()
    assert health.nonfinite["weight_norm"] >= 2


def test_a_logged_loss_that_is_not_finite_is_counted(tmp_path):
    class Logs(NonfiniteLoss):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("total_loss", loss)
            return loss

    monitor = make_monitor(tmp_path)
    compare(tmp_path, monitor, build=Logs)
    assert monitor.watch.health.nonfinite["total_loss"] == 5
    assert np.isnan(monitor.history("total_loss")[1]).sum() == 5


def _empty():
    return DataLoader(TensorDataset(torch.empty(0, 4), torch.empty(0, dtype=torch.long)))


def test_an_empty_training_dataset_harms_nobody(tmp_path):
    compare(tmp_path, make_monitor(tmp_path), loaders=lambda: {"train_dataloaders": _empty()})


@pytest.mark.parametrize("what", ["dataset", "loader", "batches"])
def test_an_empty_probe_is_refused(what, tmp_path):
    probe = {"dataset": _empty().dataset, "loader": _empty(), "batches": []}[what]
    refused(tmp_path, lambda: [make_monitor(tmp_path, probe=probe)], "probe")


class _FixedSize(Plain):
    """Takes batches of eight and nothing else."""

    def loss(self, batch):
        x, y = batch
        if len(x) != 8:
            raise ValueError(f"batch of {len(x)}, not 8")
        return F.cross_entropy(self(x), y)


def test_a_batch_the_loss_cannot_take_costs_the_llc_alone(tmp_path, caplog):
    caplog.set_level(logging.WARNING, logger="phasewatch")
    monitor = make_monitor(tmp_path)
    compare(tmp_path, monitor, build=_FixedSize)
    health = monitor.watch.health
    assert all(health.measurements[name] == 5 for name in NORMS)
    assert health.skipped["llc"] + health.measurement_failures["llc"] >= 1
    told = [r for r in caplog.records if "llc" in r.getMessage() and r.name == "phasewatch"]
    assert len(told) == 1
    assert "batch of 16, not 8" in told[0].getMessage()


def test_a_probe_the_loss_cannot_take_is_refused(tmp_path):
    probe = data.dataset(16)
    refused(
        tmp_path,
        lambda: [make_monitor(tmp_path, probe=probe, observables=["llc"])],
        "batch of 16, not 8",
        build=_FixedSize,
    )


def test_a_loss_function_that_cannot_be_called_is_refused(tmp_path):
    def broken(model, batch):
        raise KeyError("no such column")

    refused(
        tmp_path,
        lambda: [make_monitor(tmp_path, loss_fn=broken, observables=["llc"])],
        "no such column",
    )


class _NothingToTrain(Plain):
    """All its parameters are frozen; what is optimised is not one of them."""

    def __init__(self):
        super().__init__()
        self.requires_grad_(False)
        self.outside = [torch.zeros(1, requires_grad=True)]

    def loss(self, batch):
        return super().loss(batch) + self.outside[0].sum() ** 2

    def configure_optimizers(self):
        return torch.optim.SGD(self.outside, lr=0.1)


class _NoParameters(_NothingToTrain):
    """Has no parameters at all."""

    def __init__(self):
        super().__init__()
        self.net = nn.Flatten()


@pytest.mark.parametrize("build", [_NothingToTrain, _NoParameters])
def test_a_model_without_trainable_parameters_trains_on(build, tmp_path):
    monitor = make_monitor(tmp_path)
    compare(tmp_path, monitor, build=build)
    health = monitor.watch.health
    assert "llc" in health.skip_reasons
    assert (
        "requires_grad" in health.skip_reasons["llc"] or "trainable" in (health.skip_reasons["llc"])
    )
    assert len(monitor.history("train_loss")[0]) == 10


def test_a_model_without_trainable_parameters_is_refused_when_the_llc_was_named(tmp_path):
    refused(
        tmp_path,
        lambda: [make_monitor(tmp_path, observables=["llc"])],
        "parameters",
        build=_NothingToTrain,
    )


def test_a_named_store_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    refused(tmp_path, lambda: [make_monitor(tmp_path / "file")], "store")


def test_the_default_store_that_cannot_be_written_is_replaced_and_told(tmp_path, caplog):
    caplog.set_level(logging.WARNING, logger="phasewatch")
    (tmp_path / "phasewatch.db").mkdir()
    monitor = TransitionMonitor(
        {
            "exporter": {"enabled": False},
            "sampler": {"num_draws": 8, "max_draws": 8, "num_chains": 2},
        },
        every_n_steps=2,
    )
    compare(tmp_path, monitor)
    health = monitor.watch.health
    assert health.skipped["store"] == 1
    assert health.skip_reasons["store"]
    assert health.measurements["llc"] == 5
    assert sum("history" in r.getMessage() for r in caplog.records) == 1


def test_a_store_on_a_network_file_system_uses_a_rollback_journal_and_says_so(
    tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr("phasewatch.monitor.store.database.network_file_system", lambda _: "nfs4")
    caplog.set_level(logging.WARNING, logger="phasewatch")
    monitor = make_monitor(tmp_path)
    compare(tmp_path, monitor)
    assert monitor.watch.health.measurements["llc"] == 5
    with contextlib.closing(sqlite3.connect(tmp_path / "store.db")) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    assert sum("nfs4" in r.getMessage() for r in caplog.records) >= 1


def _busy():
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    return listener


def _exporting(tmp_path, port, **options):
    config = MonitorConfig.load(
        {
            "store": str(tmp_path / "store.db"),
            "exporter": {"port": port, "targets_dir": str(tmp_path / "targets"), **options},
            "sampler": {"num_draws": 8, "max_draws": 8, "num_chains": 2},
        }
    )
    return TransitionMonitor(config, every_n_steps=2, run_name="exported")


class _ReadTargets(pl.Callback):
    """Reads the target file while the run is alive."""

    def __init__(self, folder):
        self.folder = folder
        self.found = []

    def on_train_end(self, trainer, module):
        for path in self.folder.glob("*.json"):
            self.found += json.loads(path.read_text())[0]["targets"]


@pytest.mark.parametrize("num_ports", [20, 1])
def test_a_port_in_use_gives_way_to_another_and_the_target_file_tells_it(num_ports, tmp_path):
    with _busy() as listener:
        port = listener.getsockname()[1]
        reader = _ReadTargets(tmp_path / "targets")
        monitor = _exporting(tmp_path, port, num_ports=num_ports)
        clean = record_case(CASE, tmp_path, callbacks=lambda: [reader])
        reader.found.clear()
        watched = record_case(
            CASE, tmp_path, monitors=lambda: [monitor], callbacks=lambda: [reader]
        )
    assert differences(clean, watched) == []
    (target,) = reader.found
    chosen = int(target.rpartition(":")[2])
    assert chosen != port
    assert num_ports == 1 or port < chosen < port + num_ports
    assert list((tmp_path / "targets").iterdir()) == []


def test_an_address_of_another_machine_is_an_error(tmp_path):
    refused(tmp_path, lambda: [_exporting(tmp_path, 0, host="203.0.113.1")], "exporter.host")


def test_an_unknown_observable_lists_the_known_ones(tmp_path):
    refused(
        tmp_path,
        lambda: [make_monitor(tmp_path, observables=["weight_norm", "lcc"])],
        "'lcc'.*llc.*weight_norm",
        error=UnknownNameError,
    )


def test_an_unknown_detector_lists_the_known_ones(tmp_path):
    refused(
        tmp_path,
        lambda: [make_monitor(tmp_path, detectors={"train_loss": "slope"})],
        "'slope'.*slope_shift",
        error=UnknownNameError,
    )


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"every_n_steps": 0}, "every_n_steps"),
        ({"overhead": 1.5}, "overhead"),
        ({"every_n_steps": 2, "schedule": {"kind": "log"}}, "not both"),
        ({"schedule": {"kind": "weekly"}}, "schedule"),
        ({"n_samples": 0}, "n_samples"),
        ({"observables": "llc"}, "list"),
        ({"observables": [object()]}, "observable"),
        ({"observables": ["llc", "llc"]}, "twice"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_a_wrong_value_is_named(options, match, tmp_path):
    refused(tmp_path, lambda: [make_monitor(tmp_path, **options)], match)


def test_an_unknown_key_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"every_n_epochs.*unknown"):
        TransitionMonitor({"every_n_epochs": 1})


@pytest.mark.parametrize("name", [None, "same"])
def test_two_monitors_of_one_name_are_refused(name, tmp_path):
    steps = _Steps()
    with pytest.raises((ConfigError, RuntimeError), match=r"run_name|state_key"):
        record_case(
            CASE,
            tmp_path,
            monitors=lambda: [
                make_monitor(tmp_path, run_name=name),
                make_monitor(tmp_path, run_name=name),
                steps,
            ],
        )
    assert steps.count == 0


def test_a_probe_too_large_is_shrunk_and_told(tmp_path, caplog):
    caplog.set_level(logging.WARNING, logger="phasewatch")
    row = 4 * 4 + 8
    monitor = make_monitor(tmp_path, probe_config={"num_samples": 40, "max_bytes": 10 * row})
    compare(tmp_path, monitor)
    store = Store(str(tmp_path / "store.db"))
    (first, *_) = store.observations(store.run("watched").id, "llc")
    store.close()
    assert 1 <= first.detail.n_samples <= 10
    assert any("probe" in r.getMessage() and "max_bytes" in r.getMessage() for r in caplog.records)


def test_chains_too_large_for_memory_cost_the_llc_alone(tmp_path):
    monitor = make_monitor(tmp_path, sampler={"max_bytes": 16})
    compare(tmp_path, monitor)
    health = monitor.watch.health
    assert all(health.measurements[name] == 5 for name in NORMS)
    assert "llc" in health.skip_reasons
    assert "max_bytes" in health.skip_reasons["llc"]


class _BadSink:
    """Fails at everything."""

    def emit(self, observation):
        raise OSError("no route")

    notify = emit

    def flush(self):
        raise OSError("no route")

    def close(self):
        raise OSError("no route")


def test_a_sink_that_fails_is_counted_and_told_once(tmp_path, caplog):
    caplog.set_level(logging.WARNING, logger="phasewatch")
    monitor = make_monitor(tmp_path, sinks=[_BadSink()])
    compare(tmp_path, monitor)
    assert monitor.watch.health.sink_failures["_BadSink"] >= 10
    assert sum("no route" in r.getMessage() for r in caplog.records) == 1
    assert monitor.watch.health.measurements["llc"] == 5


def test_a_measurement_that_always_fails_is_told_once_and_backs_off(tmp_path, caplog):
    from support.observers import Rude

    caplog.set_level(logging.WARNING, logger="phasewatch")
    rude = Rude("early")
    monitor = make_monitor(tmp_path, observables=["weight_norm", rude], every_n_steps=1)
    compare(tmp_path, monitor)
    health = monitor.watch.health
    assert health.measurements["weight_norm"] == 10
    assert 2 <= health.measurement_failures["rude"] < 10
    assert sum("raised on purpose" in r.getMessage() for r in caplog.records) == 1


def test_a_monitor_without_a_trainer_says_what_it_is_for(tmp_path):
    monitor = make_monitor(tmp_path)
    trainer = make_trainer(tmp_path, [monitor])
    assert monitor in trainer.callbacks
    assert monitor.transitions == []
    quietly(lambda: trainer.fit(CASE.build(), **CASE.loaders()))
    assert monitor.watch.store is None
