"""Folds, pruned trials, early stopping and renamed monitors under a Trainer."""

import sqlite3

import lightning.pytorch as pl
import pytest
import torch

from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.run import watch as watch_module
from phasewatch.monitor.store.store import Store
from support.observers import make_monitor
from support.training import make_trainer, quietly, seed_everything
from support.zoo import find

CASE = find("dropout and BatchNorm")


class TrialPruned(Exception):
    pass


def fit(tmp_path, monitor, callbacks=(), **options):
    seed_everything()
    trainer = make_trainer(tmp_path, [monitor, *callbacks], **({"max_epochs": 2} | options))
    quietly(lambda: trainer.fit(CASE.build(), **CASE.loaders()))
    return trainer


def state_of(tmp_path, name="watched"):
    with Store(tmp_path / "store.db") as store:
        return store.run(name).state


def test_one_callback_in_every_fold_watches_each_in_full(tmp_path):
    monitor = make_monitor(tmp_path, observables=["weight_norm"])
    for fold in range(3):
        trainer = fit(tmp_path, monitor)
        steps = monitor.history("train_loss")[0]
        assert steps.tolist() == [*range(1, trainer.global_step + 1)]
        assert len(monitor.history("weight_norm")[0]) == trainer.global_step // 2
        name = "watched" if fold == 0 else f"watched/{fold + 1}"
        assert monitor.watch.run_name == name
        assert monitor.watch.attempt == 1
    with Store(tmp_path / "store.db") as store:
        assert len(store.runs()) == 3


@pytest.mark.parametrize(
    ("error", "state"), [(TrialPruned, RunState.STOPPED), (ValueError, RunState.FAILED)]
)
def test_a_pruned_trial_is_stopped_and_no_failure(tmp_path, error, state):
    class Raising(pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            raise error("at the end of the first epoch")

    monitor = make_monitor(tmp_path, observables=["weight_norm"])
    with pytest.raises(error):
        fit(tmp_path, monitor, [Raising()])
    assert state_of(tmp_path) is state


@pytest.mark.parametrize(("when", "state"), [(1, RunState.STOPPED), (99, RunState.FINISHED)])
def test_early_stopping_is_told_from_the_end(tmp_path, when, state):
    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            if trainer.current_epoch + 1 >= when:
                trainer.should_stop = True

    monitor = make_monitor(tmp_path, observables=["weight_norm"])
    fit(tmp_path, monitor, [Stop()], max_epochs=3)
    assert state_of(tmp_path) is state


def test_a_monitor_with_another_name_goes_on_with_the_run_of_the_checkpoint(tmp_path):
    first = make_monitor(tmp_path, observables=["weight_norm"])
    fit(tmp_path, first, max_epochs=1).save_checkpoint(tmp_path / "part.ckpt")
    second = make_monitor(tmp_path, observables=["weight_norm"], run_name="cooldown")
    trainer = make_trainer(tmp_path, [second], max_epochs=2)
    quietly(
        lambda: trainer.fit(CASE.build(), **CASE.loaders(), ckpt_path=str(tmp_path / "part.ckpt"))
    )
    assert second.watch.run_id == first.watch.run_id
    assert second.watch.run_name == "cooldown"
    assert second.history("train_loss")[0].tolist() == [*range(1, trainer.global_step + 1)]
    assert torch.is_grad_enabled()


def resume(tmp_path, monitor, **options):
    trainer = make_trainer(tmp_path, [monitor], **options)
    checkpoint = str(tmp_path / "last.ckpt")
    quietly(lambda: trainer.fit(CASE.build(), **CASE.loaders(), ckpt_path=checkpoint))
    return trainer


@pytest.fixture
def ended_while_locked(tmp_path, monkeypatch):
    """A training that is killed at its end: only its last checkpoint holds the second epoch."""
    monkeypatch.setattr(watch_module, "CARRY_SECONDS", 0.1)
    store = tmp_path / "store.db"

    class Saves(pl.Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 1:
                monitor.watch.drain()
                assert monitor.watch.store.flush()
                self.lock = sqlite3.connect(store, isolation_level=None)
                self.lock.execute("BEGIN IMMEDIATE")

        def on_train_epoch_end(self, trainer, module):
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(tmp_path / "last.ckpt")
                with sqlite3.connect(store) as held, sqlite3.connect(tmp_path / "kept.db") as copy:
                    held.backup(copy)
                self.lock.close()

    monitor = make_monitor(tmp_path, observables=["weight_norm"])
    trainer = fit(tmp_path, monitor, [Saves()])
    for file in tmp_path.glob("store.db*"):
        file.unlink()
    (tmp_path / "kept.db").rename(store)
    return monitor.watch.run_id, [*range(1, trainer.global_step + 1)]


def test_a_resume_with_nothing_left_to_train_enters_what_the_checkpoint_holds(
    tmp_path, ended_while_locked
):
    run_id, steps = ended_while_locked
    monitor = make_monitor(tmp_path, observables=["weight_norm"])
    resume(tmp_path, monitor, max_epochs=2)
    with Store(tmp_path / "store.db") as store:
        assert store.history(run_id, "train_loss")[0].tolist() == steps
        assert store.holes(run_id) == []
        assert store.run(run_id).state is RunState.FINISHED


def test_a_resume_with_nothing_left_to_train_or_to_enter_is_no_attempt(tmp_path):
    first = make_monitor(tmp_path, observables=["weight_norm"])
    fit(tmp_path, first).save_checkpoint(tmp_path / "last.ckpt")
    resume(tmp_path, make_monitor(tmp_path, observables=["weight_norm"]), max_epochs=2)
    with Store(tmp_path / "store.db") as store:
        assert store.run(first.watch.run_id).attempt == 1
