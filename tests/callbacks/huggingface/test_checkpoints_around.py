"""Checkpoints around a suspicion, by the Trainer's own means: it stays equal, and resumes."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("transformers", reason="run by `make hf`")

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments, default_data_collator

from phasewatch.callbacks.huggingface import hooks
from phasewatch.callbacks.huggingface.saves import refusal, save_checkpoint
from phasewatch.monitor.backfill.checkpoints import find_checkpoints
from phasewatch.monitor.run.keeper import NAME
from support.bitwise import differences, quietly, seed_everything
from support.hf import CASES, PlainNet, Points, gpt, make_callback, record_case
from support.pictures import freeze, weights
from support.scripted import Fall

pytestmark = [pytest.mark.hf, pytest.mark.filterwarnings("ignore")]
NAMES = ("plain", "dropout", "net of one's own", "adapters", "epochs, best model at the end")


def watcher(folder, alarm_at=3):
    callback = make_callback(
        folder,
        observables=["weight_norm"],
        every_n_steps=1,
        detectors={"train_loss": Fall(alarm_at)},
    )
    around = {"keep": 2, "every_n_steps": 1}
    callback._config = callback.config.replace(checkpoint_on="suspected", around=around)
    return callback


def compare(case, folder):
    made = []

    def callbacks():
        made.append(watcher(folder / "watched"))
        return made

    plain, _, _ = quietly(lambda: record_case(case, folder / "plain"))
    watched, trainer, _ = quietly(lambda: record_case(case, folder / "watched", callbacks))
    return differences(plain, watched), made[0], trainer


@pytest.mark.parametrize("name", NAMES)
def test_training_is_equal_and_the_users_own_checkpoints_are_what_they_would_be(name, tmp_path):
    case = next(case for case in CASES if case.name == name)
    if case.needs:
        pytest.importorskip(case.needs)
    found, callback, trainer = compare(case, tmp_path)
    assert found == []
    assert callback.watch.health.measurement_failures.total() == 0
    assert callback.watch.health.checkpoints_written == trainer.state.global_step
    (transition,) = callback.transitions
    assert len(transition.checkpoints) == 4
    folders = {p.name: p for p in (tmp_path / "plain" / "out").iterdir()}
    others = {
        p.name: p
        for p in (tmp_path / "watched" / "out").iterdir()
        if p.name != "phasewatch-checkpoints"
    }
    assert folders.keys() == others.keys()
    for folder in (name for name in folders if name.startswith("checkpoint-")):
        states = [json.loads((where[folder] / "trainer_state.json").read_text())
                  for where in (folders, others)]  # fmt: skip
        for key in ("best_model_checkpoint", "log_history"):
            for state in states:
                state.pop(key)
        assert states[0] == states[1]
        config = folders[folder] / "config.json"
        if config.exists():
            assert config.read_text() == (others[folder] / "config.json").read_text()
    if name != "adapters":
        steps = [checkpoint.step for checkpoint in find_checkpoints(transition.checkpoints)]
        assert len(steps) == 4


def make_trainer(folder, callbacks):
    seed_everything()
    return Trainer(
        model=PlainNet(),
        args=TrainingArguments(
            output_dir=str(folder / "out"), max_steps=8, per_device_train_batch_size=8,
            logging_steps=2, save_steps=5, report_to=[], use_cpu=True, disable_tqdm=True, seed=1,
            eval_strategy="steps", eval_steps=2, metric_for_best_model="loss",
            load_best_model_at_end=False, save_strategy="steps",
        ),
        train_dataset=Points(), eval_dataset=Points(), data_collator=default_data_collator,
        callbacks=[*callbacks, EarlyStoppingCallback(100)],
    )  # fmt: skip


def test_a_training_resumed_from_one_ends_where_the_whole_one_does(tmp_path):
    first = watcher(tmp_path / "a")
    whole = make_trainer(tmp_path / "a", [first])
    whole.train()
    at = {int(path.rpartition("=")[2]): path for path in first.transitions[0].checkpoints}
    assert sorted(at) == [1, 2, 3, 4]
    second = watcher(tmp_path / "a")
    resumed = make_trainer(tmp_path / "b", [second])
    resumed.train(resume_from_checkpoint=at[4])
    assert weights(resumed.model) == weights(whole.model)
    assert freeze(resumed.optimizer.state_dict()) == freeze(whole.optimizer.state_dict())
    assert second.watch.run_id == first.watch.run_id
    np.testing.assert_array_equal(second.history("train_loss")[1], first.history("train_loss")[1])
    assert [t.id for t in second.transitions] == [t.id for t in first.transitions]


def test_they_hold_what_the_trainer_itself_saves_at_that_step(tmp_path):
    callback = watcher(tmp_path, alarm_at=5)
    make_trainer(tmp_path, [callback]).train()
    (ours,) = (p for p in callback.transitions[0].checkpoints if p.endswith("step=5"))
    theirs = tmp_path / "out" / "checkpoint-5"
    ours = Path(ours)
    names = {p.name for p in theirs.iterdir()}
    assert {p.name for p in ours.iterdir()} == names
    own, other = (load_file(folder / "model.safetensors") for folder in (ours, theirs))
    assert freeze(own) == freeze(other)
    for name in ("optimizer.pt", "scheduler.pt"):
        own, other = (torch.load(folder / name, weights_only=True) for folder in (ours, theirs))
        assert freeze(own) == freeze(other)
    own, other = (
        json.loads((folder / "trainer_state.json").read_text()) for folder in (ours, theirs)
    )
    own_callbacks = own.pop("stateful_callbacks")["EarlyStoppingCallback"]
    assert own_callbacks == other.pop("stateful_callbacks")["EarlyStoppingCallback"]
    assert own == other


def test_a_checkpoint_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch, caplog):
    def save(self, *_, **__):
        raise OSError(28, "No space left on device")

    callback = watcher(tmp_path)
    trainer = make_trainer(tmp_path, [callback])
    trainer.args.save_strategy = "no"
    monkeypatch.setattr(Trainer, "save_model", save)
    trainer.train()
    assert trainer.state.global_step == 8
    assert callback.watch.health.measurement_failures[NAME] >= 1
    assert caplog.text.count("was not written") == 1


@pytest.mark.parametrize(
    ("trainer", "said"),
    [
        (None, "not known"),
        (SimpleNamespace(is_fsdp_enabled=True), "with FSDP all processes must write together"),
        (SimpleNamespace(is_deepspeed_enabled=True), "with DeepSpeed"),
        (SimpleNamespace(), "this version of transformers has no Trainer._save_optim"),
    ],
)
def test_a_trainer_that_cannot_is_refused_with_the_reason(trainer, said):
    assert said in refusal(trainer)


def test_a_refusal_is_counted_and_said_and_nothing_is_written(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(hooks, "refusal", lambda _: "of this reason")
    callback = watcher(tmp_path)
    make_trainer(tmp_path, [callback]).train()
    assert "checkpoint_on: no checkpoint is written: of this reason" in caplog.text
    assert callback.watch.health.skipped["checkpoints"] == 1
    assert callback.watch.health.checkpoints_written == 0
    assert not (tmp_path / "out" / "phasewatch-checkpoints").exists()


def test_a_model_of_transformers_keeps_its_config(tmp_path):
    trainer = make_trainer(tmp_path, [])
    trainer.model = model = gpt()
    before = dict(vars(model.config))
    trainer.create_optimizer_and_scheduler(2)
    save_checkpoint(trainer, trainer.state, tmp_path / "one")
    assert dict(vars(model.config)) == before
