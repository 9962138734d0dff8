"""Checkpoints around a suspicion, by Lightning's own means: training stays equal, and resumes."""

import json

import lightning.pytorch as pl
import pytest
import torch

from phasewatch.monitor.backfill.checkpoints import find_checkpoints
from phasewatch.monitor.config.monitor import MonitorConfig
from phasewatch.monitor.core.errors import ConfigError
from phasewatch.monitor.run.keeper import NAME
from phasewatch.monitor.store.store import Store
from support.bitwise import differences
from support.observers import make_monitor, stop_at
from support.pictures import freeze
from support.scripted import Fall
from support.training import make_trainer, quietly, record, seed_everything
from support.zoo import find

CASE = find("dropout and BatchNorm")
AROUND = {"keep": 2, "every_n_steps": 1}


def watcher(folder, alarm_at=4, around=None, **options):
    """A monitor that keeps checkpoints, and suspects something at a step."""
    monitor = make_monitor(
        folder,
        detectors={"train_loss": Fall(alarm_at)},
        every_n_steps=1,
        observables=["weight_norm"],
        **options,
    )
    changes = {"checkpoint_on": "suspected", "around": AROUND | (around or {})}
    monitor._config = monitor.config.replace(**changes)
    return monitor


def compare(folder, *, callbacks=list, monitor=None, **options):
    """Run with and without a monitor; returns the differences and the monitor."""
    made = []

    def monitors():
        made.append((monitor or watcher)(folder / "watched"))
        return made

    more = {"callbacks": callbacks, **options}
    clean = record(CASE.build, CASE.loaders, folder / "clean", **more)
    watched = record(CASE.build, CASE.loaders, folder / "watched", monitors=monitors, **more)
    return differences(clean, watched), made[0]


def stored(folder):
    with Store(str(folder / "store.db"), create=False) as store:
        return store.transitions(store.run("watched").id)


def test_training_is_equal_and_the_record_says_where_they_are(tmp_path):
    found, monitor = compare(tmp_path)
    assert found == []
    (transition,) = stored(tmp_path / "watched")
    kept = find_checkpoints(transition.checkpoints)
    assert [c.step for c in kept] == [2, 3, 4, 5]
    assert monitor.transitions[0].checkpoints == transition.checkpoints
    assert {str(c.path) for c in kept} == set(transition.checkpoints)
    (folder,) = (tmp_path / "watched" / "phasewatch-checkpoints").iterdir()
    assert len(list(folder.glob("*.ckpt"))) == 4  # the others are gone when the run is over
    health = monitor.watch.health
    assert health.checkpoints_written == 10
    assert health.measurement_failures.total() == 0
    assert health.checkpoint_bytes == sum(c.path.stat().st_size for c in kept)


def test_the_users_own_checkpoints_are_what_they_would_be(tmp_path):
    def callbacks():
        return [
            pl.callbacks.ModelCheckpoint(
                monitor="loss", save_top_k=2, every_n_train_steps=2, save_last=True
            )
        ]

    def drive(trainer, module, data):
        trainer.fit(module, **data)
        states.append(trainer.checkpoint_callback.state_dict())
        files.append(sorted(p.name for p in trainer.default_root_dir_path.rglob("*.ckpt")
                            if "phasewatch" not in str(p)))  # fmt: skip

    states, files = [], []

    def driven(trainer, module, data):
        from pathlib import Path

        trainer.default_root_dir_path = Path(trainer.default_root_dir)
        drive(trainer, module, data)

    found, monitor = compare(tmp_path, callbacks=callbacks, drive=driven, enable_checkpointing=True)
    assert found == []
    assert monitor.watch.health.checkpoints_written == 10
    plain, watched = (json.dumps(state, default=str) for state in states)
    assert plain.replace("/clean/", "/watched/") == watched
    assert files[0] == files[1]


def test_a_training_resumed_from_one_goes_on_as_if_nothing_had_been(tmp_path):
    whole = record(CASE.build, CASE.loaders, tmp_path / "clean")
    found, _ = compare(tmp_path)
    assert found == []
    (transition,) = stored(tmp_path / "watched")
    at = {c.step: c.path for c in find_checkpoints(transition.checkpoints)}

    def go():
        seed_everything()
        monitor = watcher(tmp_path / "watched")
        module, data = CASE.build(), CASE.loaders()
        trainer = make_trainer(tmp_path / "watched", [monitor])
        trainer.fit(module, **data, ckpt_path=at[5])  # the end of an epoch: data begin anew
        return monitor, trainer

    monitor, trainer = quietly(go)
    assert trainer.global_step == whole.num_steps == 10
    steps = monitor.history("train_loss")[0]
    assert steps.tolist() == list(range(1, 11))
    (again,) = monitor.transitions  # of before the checkpoint, and told once
    assert again.id == transition.id
    assert set(transition.checkpoints) <= set(again.checkpoints)
    saved = torch.load(at[5], weights_only=True)
    assert saved["global_step"] == 5
    assert saved["optimizer_states"]
    assert saved["callbacks"]


def test_they_hold_what_lightning_itself_would_have_saved_at_that_step(tmp_path):
    def callbacks():
        return [pl.callbacks.ModelCheckpoint(every_n_train_steps=1, save_top_k=-1)]

    found, monitor = compare(tmp_path, callbacks=callbacks, enable_checkpointing=True)
    assert found == []
    (transition,) = monitor.transitions
    theirs = {
        torch.load(path, weights_only=True)["global_step"]: path
        for path in (tmp_path / "watched").rglob("epoch=*.ckpt")
    }
    assert len(transition.checkpoints) == 4
    for checkpoint in find_checkpoints(transition.checkpoints):
        ours = freeze(torch.load(checkpoint.path, weights_only=True))
        own = freeze(torch.load(theirs[checkpoint.step], weights_only=True))
        for key in ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers"):
            assert ours[key] == own[key], key
        assert ours["loops"] == own["loops"]


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), RuntimeError("no")])
def test_a_checkpoint_that_cannot_be_written_stops_nothing(failure, tmp_path, monkeypatch, caplog):
    def save(self, *_, **__):
        raise failure

    with monkeypatch.context() as patched:
        patched.setattr(pl.Trainer, "save_checkpoint", save)
        found, monitor = compare(tmp_path)
    assert found == []
    health = monitor.watch.health
    assert health.checkpoints_written == 0
    assert health.measurement_failures[NAME] >= 1
    assert caplog.text.count("was not written") == 1
    assert str(failure) in caplog.text
    assert not list((tmp_path / "watched").rglob("*.ckpt"))


def test_what_the_users_own_hook_draws_while_one_is_written_is_drawn_again_in_training(tmp_path):
    class Drawing(pl.callbacks.Callback):
        def on_save_checkpoint(self, trainer, pl_module, checkpoint):
            checkpoint["drawn"] = torch.rand(3)

    found, monitor = compare(tmp_path, callbacks=lambda: [Drawing()])
    assert found == []
    assert monitor.watch.health.checkpoints_written == 10


def test_an_interrupted_training_keeps_what_it_has(tmp_path):
    found, _ = compare(tmp_path, callbacks=lambda: [stop_at(pl, 8)], monitor=lambda folder: watcher(
        folder, alarm_at=100
    ))  # fmt: skip
    assert found == []
    (folder,) = (tmp_path / "watched" / "phasewatch-checkpoints").iterdir()
    assert sorted(p.name for p in folder.glob("*.ckpt")) == ["step=7.ckpt", "step=8.ckpt"]


def test_by_default_nothing_is_written(tmp_path):
    made = []

    def monitors():
        made.append(make_monitor(tmp_path))
        return made

    record(CASE.build, CASE.loaders, tmp_path, monitors=monitors)
    assert not list(tmp_path.rglob("*.ckpt"))
    assert made[0].config.checkpoint_on is None


def test_a_rehearsal_writes_none(tmp_path, caplog):
    def go():
        seed_everything()
        module, data = CASE.build(), CASE.loaders()
        make_trainer(tmp_path, [watcher(tmp_path)], fast_dev_run=3).fit(module, **data)

    quietly(go)
    assert not (tmp_path / "phasewatch-checkpoints").exists()
    assert "no checkpoint was written" not in caplog.text


def test_a_wrong_setting_is_an_error_that_says_what_is_allowed():
    with pytest.raises(ConfigError, match=r"checkpoint_on: got 'always'.*'suspected'"):
        MonitorConfig.load({"checkpoint_on": "always"})
    with pytest.raises(ConfigError, match="keep"):
        MonitorConfig.load({"around": {"keep": 0}})
