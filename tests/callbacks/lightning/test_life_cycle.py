"""What else happens to a run: resumed, stopped, tuned, averaged, broken. Training stays equal."""

import functools

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.tuner import Tuner

from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.store.store import Store
from support import zoo_data as data
from support.bitwise import differences
from support.observers import Rude, make_monitor, stop_at
from support.training import make_trainer, quietly, record, record_case, seed_everything
from support.zoo import LIFE_CYCLE, find
from support.zoo_modules import Plain

CASE = find("dropout and BatchNorm")
COVERED: list[str] = []
WAYS = [
    pytest.param(False, id="tuner"),
    pytest.param(True, id="callback", marks=pytest.mark.slow),
]


def covers(name):
    """Ties a test to its line in the table of cases."""
    assert name in LIFE_CYCLE, name
    COVERED.append(name)
    return lambda test: test


def compare(tmp_path, *, build=CASE.build, loaders=CASE.loaders, monitor=None, **options):
    """Run with and without a monitor, demand that they are equal, and return the monitor."""
    made = []

    def monitors():
        made.append(make_monitor(tmp_path, **(monitor or {})))
        return made

    clean = record(build, loaders, tmp_path, **options)
    watched = record(build, loaders, tmp_path, monitors=monitors, **options)
    assert differences(clean, watched) == []
    return made[0], watched


def assert_measured(monitor, at_least=2):
    health = monitor.watch.health
    assert health.measurements["llc"] >= at_least, health
    assert health.measurements["weight_norm"] >= at_least, health
    assert health.measurement_failures.total() == 0, health


def stored_run(tmp_path):
    store = Store(str(tmp_path / "store.db"))
    try:
        return store.run("watched")
    finally:
        store.close()


@covers("fit called twice")
def test_fit_called_twice_is_one_run(tmp_path):
    def drive(trainer, module, data):
        trainer.fit(module, **data)
        trainer.fit_loop.max_epochs = 2
        trainer.fit(module, **data)

    monitor, watched = compare(tmp_path, drive=drive, max_epochs=1)
    assert watched.num_steps == 10
    assert_measured(monitor, at_least=4)
    steps = monitor.history("llc")[0]
    assert steps.min() < 5 < steps.max()
    assert len(set(steps)) == len(steps)
    store = Store(str(tmp_path / "store.db"))
    runs = store.runs()
    store.close()
    assert len({run.id for run in runs}) == 1
    assert stored_run(tmp_path).state is RunState.FINISHED


@covers("validate alone")
def test_validation_alone_starts_no_run(tmp_path):
    def drive(trainer, module, data):
        trainer.validate(module, data["val_dataloaders"], verbose=False)

    compare(tmp_path, drive=drive)
    assert not (tmp_path / "store.db").exists()


@covers("fast_dev_run")
def test_fast_dev_run(tmp_path):
    monitor, _ = compare(tmp_path, fast_dev_run=True, monitor={"every_n_steps": 1})
    assert_measured(monitor, at_least=1)


@covers("sanity check")
def test_the_sanity_check_is_no_observation(tmp_path):
    monitor, _ = compare(tmp_path, num_sanity_val_steps=-1)
    assert_measured(monitor)
    steps, values, _ = monitor.history("val_loss")
    assert list(steps) == [5, 10]
    assert np.isfinite(values).all()


@covers("validation in the middle of an epoch")
def test_each_validation_is_observed_once_at_its_step(tmp_path):
    monitor, _ = compare(tmp_path, val_check_interval=2)
    assert_measured(monitor)
    assert list(monitor.history("val_loss")[0]) == [2, 4, 7, 9]


def test_logged_losses_are_observed_at_every_step(tmp_path):
    monitor, watched = compare(tmp_path)
    steps, values, _ = monitor.history("train_loss")
    assert list(steps) == list(range(1, 11))
    logged = [
        entry[1]["train_loss"] for entry in watched.final["logged"] if "train_loss" in entry[1]
    ]
    assert [float(value).hex() for value in values] == logged


def _checkpoint_run(tmp_path, folder, monitors, **options):
    """Train a first part that leaves a checkpoint."""
    folder = tmp_path / folder
    saver = functools.partial(
        pl.callbacks.ModelCheckpoint, dirpath=folder, filename="part", every_n_train_steps=1
    )
    record_case(
        CASE,
        tmp_path,
        monitors=monitors,
        callbacks=lambda: [saver()],
        enable_checkpointing=True,
        **options,
    )
    return folder / "part.ckpt"


@pytest.mark.parametrize(
    ("first_steps", "resumed_at"), [(5, "after an epoch"), (3, "in the middle of an epoch")]
)
def test_resuming(first_steps, resumed_at, tmp_path):
    monitors = []

    def make():
        monitors.append(make_monitor(tmp_path))
        return monitors[-1:]

    clean_path = _checkpoint_run(tmp_path, "clean", list, max_steps=first_steps)
    watched_path = _checkpoint_run(tmp_path, "watched", make, max_steps=first_steps)

    def resume(path):
        return lambda trainer, module, data: trainer.fit(module, ckpt_path=str(path), **data)

    clean = record_case(CASE, tmp_path, drive=resume(clean_path))
    watched = record_case(CASE, tmp_path, monitors=make, drive=resume(watched_path))
    assert differences(clean, watched) == []
    first, second = monitors
    assert_measured(second)
    assert first.watch.run_id == second.watch.run_id
    steps = second.history("weight_norm")[0]
    assert list(steps) == sorted(set(steps))
    assert steps.min() <= first_steps < steps.max()
    losses = second.history("train_loss")[0]
    assert list(losses) == list(range(1, clean.num_steps + 1))
    assert stored_run(tmp_path).state is RunState.FINISHED


covers("resume after an epoch")
covers("resume in the middle of an epoch")


@covers("checkpoint loads with weights_only")
def test_a_checkpoint_loads_with_weights_only_and_differs_in_our_state_alone(tmp_path):
    clean = torch.load(_checkpoint_run(tmp_path, "clean", list), weights_only=True)
    path = _checkpoint_run(tmp_path, "watched", lambda: [make_monitor(tmp_path)])
    watched = torch.load(path, weights_only=True)
    ours = [key for key in watched["callbacks"] if "TransitionMonitor" in key]
    assert len(ours) == 1
    assert set(watched) == set(clean)
    assert set(watched["callbacks"]) - set(clean["callbacks"]) == set(ours)
    for key, value in clean["state_dict"].items():
        assert torch.equal(watched["state_dict"][key], value)


def test_resuming_without_the_monitor_and_adding_it_later_both_work(tmp_path):
    watched_path = _checkpoint_run(
        tmp_path, "watched", lambda: [make_monitor(tmp_path)], max_steps=5
    )
    clean_path = _checkpoint_run(tmp_path, "clean", list, max_steps=5)

    def resume(path):
        return lambda trainer, module, data: trainer.fit(module, ckpt_path=str(path), **data)

    late = make_monitor(tmp_path, run_name="late")
    without = record_case(CASE, tmp_path, drive=resume(watched_path))
    added = record_case(CASE, tmp_path, monitors=lambda: [late], drive=resume(clean_path))
    assert differences(without, added) == []
    assert_measured(late)


@covers("two monitors")
def test_two_monitors_watch_side_by_side(tmp_path):
    pair = [
        make_monitor(tmp_path, run_name="one"),
        make_monitor(tmp_path, run_name="two", every_n_steps=3),
    ]
    clean = record_case(CASE, tmp_path)
    watched = record_case(CASE, tmp_path, monitors=lambda: pair)
    assert differences(clean, watched) == []
    for monitor in pair:
        assert_measured(monitor)
    assert pair[0].watch.run_id != pair[1].watch.run_id


class _Tunable(Plain):
    def __init__(self):
        super().__init__()
        self.lr = 0.02
        self.batch_size = 4

    def train_dataloader(self):
        return data.loader(batch_size=self.batch_size)

    def val_dataloader(self):
        return data.val_loader()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)


@covers("learning-rate finder")
@pytest.mark.parametrize("as_callback", WAYS)
def test_the_learning_rate_finder(as_callback, tmp_path):
    def drive(trainer, module, data):
        if not as_callback:
            Tuner(trainer).lr_find(module, num_training=8, attr_name="lr")
        trainer.fit(module)

    def finder():
        tune = pl.callbacks.LearningRateFinder(num_training_steps=8, attr_name="lr")
        return [tune] if as_callback else []

    monitor, watched = compare(
        tmp_path, build=_Tunable, loaders=dict, drive=drive, callbacks=finder, max_epochs=1
    )
    assert_measured(monitor)
    assert watched.num_steps == 10
    assert list(monitor.history("train_loss")[0]) == list(range(1, 11))


@covers("batch-size finder")
@pytest.mark.parametrize("as_callback", WAYS)
def test_the_batch_size_finder(as_callback, tmp_path):
    options = {"mode": "power", "steps_per_trial": 2, "init_val": 4, "max_trials": 2}

    def drive(trainer, module, data):
        if not as_callback:
            Tuner(trainer).scale_batch_size(module, **options)
        trainer.fit(module)

    def finder():
        return [pl.callbacks.BatchSizeFinder(**options)] if as_callback else []

    monitor, _ = compare(
        tmp_path, build=_Tunable, loaders=dict, drive=drive, callbacks=finder, max_epochs=2
    )
    assert_measured(monitor)


def _averaging(stochastic):
    if stochastic:
        return [pl.callbacks.StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1)]
    return [pl.callbacks.EMAWeightAveraging(decay=0.5)]


@covers("weight averaging, monitor first")
@covers("weight averaging, monitor last")
@covers("stochastic weight averaging, monitor first")
@covers("stochastic weight averaging, monitor last")
@pytest.mark.parametrize(
    "stochastic",
    [
        pytest.param(False, id="exponential"),
        pytest.param(True, id="stochastic", marks=pytest.mark.slow),
    ],
)
def test_weight_averaging_in_both_orders(stochastic, tmp_path):
    norms = []
    for last in (False, True):
        folder = tmp_path / str(last)
        folder.mkdir()
        monitor, _ = compare(
            folder, callbacks=lambda: _averaging(stochastic), last=last, max_epochs=3
        )
        assert_measured(monitor)
        norms.append(monitor.history("weight_norm"))
    assert np.array_equal(norms[0][0], norms[1][0])
    assert np.array_equal(norms[0][1], norms[1][1])  # training weights in either order


@covers("early stopping and checkpoints")
def test_early_stopping_and_checkpoints(tmp_path):
    def callbacks():
        return [
            pl.callbacks.EarlyStopping("val_loss", patience=1, min_delta=10.0),
            pl.callbacks.ModelCheckpoint(dirpath=tmp_path / "saved", monitor="val_loss"),
        ]

    monitor, watched = compare(
        tmp_path, callbacks=callbacks, max_epochs=5, enable_checkpointing=True
    )
    assert watched.num_steps == 10
    assert_measured(monitor)


@covers("max_steps")
def test_max_steps(tmp_path):
    monitor, watched = compare(tmp_path, max_epochs=-1, max_steps=7)
    assert watched.num_steps == 7
    assert_measured(monitor)


@covers("no training batches")
def test_no_training_batches(tmp_path):
    monitor, watched = compare(tmp_path, limit_train_batches=0)
    assert watched.num_steps == 0
    assert monitor.watch is None or monitor.watch.store is None


class _Breaks(Plain):
    error: type[BaseException] = RuntimeError
    where = "training"

    def training_step(self, batch, batch_idx):
        # The copy that is measured is in eval mode.
        if self.where == "training" and self.training and self.trainer.global_step == 6:
            raise self.error("broken on purpose")
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        if self.where == "validation" and self.trainer.global_step == 10:
            raise self.error("broken on purpose")
        super().validation_step(batch, batch_idx)


@covers("exception in training")
@covers("exception in validation")
@covers("Ctrl-C in training")
@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("training", RuntimeError),
        ("validation", RuntimeError),
        ("training", KeyboardInterrupt),
    ],
    ids=["exception in training", "exception in validation", "Ctrl-C in training"],
)
def test_a_broken_run_is_marked_failed_and_its_store_closed(where, error, tmp_path):
    def build():
        module = _Breaks()
        module.where, module.error = where, error
        return module

    monitor, watched = compare(
        tmp_path, build=build, catch=(RuntimeError, SystemExit, KeyboardInterrupt)
    )
    assert watched.error is not None
    assert_measured(monitor)
    assert monitor.watch.store is None
    run = stored_run(tmp_path)
    stopped = error is KeyboardInterrupt
    assert run.state is (RunState.INTERRUPTED if stopped else RunState.FAILED)
    assert ("broken on purpose" if error is RuntimeError else "KeyboardInterrupt") in run.reason
    assert run.last_step == watched.num_steps


@covers("Ctrl-C in a measurement")
def test_ctrl_c_in_a_measurement_stops_the_run_untouched(tmp_path):
    rude = Rude("late", KeyboardInterrupt, from_step=4)
    monitor = make_monitor(tmp_path, observables=["weight_norm", "llc", rude])
    clean = record_case(CASE, tmp_path, monitors=lambda: [stop_at(pl, 4)])
    watched = record_case(CASE, tmp_path, monitors=lambda: [monitor])
    assert differences(clean, watched) == []
    assert isinstance(watched.error, SystemExit)
    assert rude.steps == [2, 4]
    assert stored_run(tmp_path).state is RunState.INTERRUPTED


@covers("barebones")
def test_barebones(tmp_path):
    monitor, _ = compare(
        tmp_path,
        barebones=True,
        logger=False,
        log_every_n_steps=0,
        num_sanity_val_steps=0,
    )
    assert_measured(monitor)


@covers("measured at every step")
def test_measured_at_every_step(tmp_path):
    monitor, watched = compare(tmp_path, monitor={"every_n_steps": 1})
    assert monitor.watch.health.measurements["llc"] == watched.num_steps


@covers("overhead budget")
def test_by_default_measurements_follow_the_budget(tmp_path):
    monitor, _ = compare(tmp_path, monitor={"every_n_steps": None})
    assert_measured(monitor, at_least=1)


@covers("disabled by the environment")
def test_disabled_by_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("PHASEWATCH_DISABLED", "1")
    monitor, _ = compare(tmp_path)
    assert not (tmp_path / "store.db").exists()
    assert monitor.transitions == []


@covers("progress bar")
def test_under_a_progress_bar(tmp_path, capfd):
    monitor, _ = compare(
        tmp_path,
        callbacks=lambda: [pl.callbacks.TQDMProgressBar()],
        enable_progress_bar=True,
        enable_model_summary=True,
    )
    assert_measured(monitor)
    assert "Epoch 1" in "".join(capfd.readouterr())


def test_making_a_monitor_draws_no_random_number(tmp_path):
    from support.bitwise import generators

    seed_everything()
    before = generators()
    make_monitor(tmp_path)
    assert generators() == before


def test_one_monitor_in_two_trainers_in_turn(tmp_path):
    monitor = make_monitor(tmp_path)
    for _ in range(2):
        seed_everything()
        trainer = make_trainer(tmp_path, [monitor], max_epochs=1)
        quietly(lambda trainer=trainer: trainer.fit(CASE.build(), **CASE.loaders()))
    assert monitor.watch.health.measurements["weight_norm"] >= 2


def test_every_line_of_the_table_is_covered():
    assert set(COVERED) == set(LIFE_CYCLE)
