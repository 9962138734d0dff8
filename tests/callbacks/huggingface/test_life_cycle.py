"""How a watched training with `transformers.Trainer` begins, ends, goes on, and is refused."""

import numpy as np
import pytest

pytest.importorskip("transformers", reason="run by `make hf`")

import torch
from transformers import (
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

from phasewatch.callbacks import TransitionMonitor
from phasewatch.callbacks.huggingface import TransitionCallback
from phasewatch.monitor.core.errors import ConfigError
from phasewatch.monitor.store.store import Store
from support.bitwise import seed_everything
from support.hf import PlainNet, Points, Tokens, gpt, make_callback

pytestmark = [pytest.mark.hf, pytest.mark.filterwarnings("ignore")]
NORMS = ["weight_norm", "gradient_norm"]


def make_trainer(folder, callbacks, *, model=PlainNet, data=Points, trainer=Trainer, **arguments):
    seed_everything()
    arguments = {
        "max_steps": 6, "per_device_train_batch_size": 8, "logging_steps": 3, "save_steps": 3,
        "report_to": [], "use_cpu": True, "disable_tqdm": True, "seed": 1,
    } | arguments  # fmt: skip
    return trainer(
        model=model(),
        args=TrainingArguments(output_dir=str(folder / "out"), **arguments),
        train_dataset=data(),
        eval_dataset=data(),
        data_collator=default_data_collator,
        callbacks=callbacks,
    )


class Fails(TrainerCallback):
    def on_step_begin(self, args, state, control, **_):
        if state.global_step == 4:
            raise RuntimeError("on purpose")


def test_a_resumed_training_goes_on_with_its_run_wherever_its_checkpoint_lies(tmp_path):
    first = make_callback(tmp_path, observables=NORMS)
    make_trainer(tmp_path, [first]).train()
    checkpoint = tmp_path / "out" / "checkpoint-3"
    elsewhere = checkpoint.rename(tmp_path / "elsewhere")
    second = make_callback(tmp_path, observables=NORMS)
    resumed = make_trainer(tmp_path / "second", [second])
    resumed.train(resume_from_checkpoint=str(elsewhere))
    assert second.watch.run_id == first.watch.run_id
    assert (first.watch.attempt, second.watch.attempt) == (1, 2)
    assert second.history("train_loss")[0].tolist() == [1, 2, 3, 4, 5, 6]
    np.testing.assert_array_equal(second.history("train_loss")[1], first.history("train_loss")[1])


def test_a_checkpoint_without_a_state_of_ours_begins_a_run(tmp_path):
    make_trainer(tmp_path, []).train()
    callback = make_callback(tmp_path, observables=NORMS)
    make_trainer(tmp_path, [callback]).train(
        resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3")
    )
    assert callback.watch.attempt == 1
    assert callback.history("train_loss")[0].tolist() == [4, 5, 6]


def test_nothing_in_a_state_file_is_run(tmp_path, caplog):
    make_trainer(tmp_path, [make_callback(tmp_path, observables=NORMS)]).train()
    checkpoint = tmp_path / "out" / "checkpoint-3"
    (file,) = checkpoint.glob("phasewatch*.pt")

    class Bad:
        def __reduce__(self):
            return (pytest.fail, ("it was run",))

    torch.save({"watch": Bad()}, file)
    callback = make_callback(tmp_path, observables=NORMS)
    make_trainer(tmp_path, [callback]).train(resume_from_checkpoint=str(checkpoint))
    assert "cannot be read" in caplog.text
    assert callback.watch.attempt == 1


def test_an_exception_anywhere_ends_the_attempt_as_failed_and_leaves_the_trainer(tmp_path):
    callback = make_callback(tmp_path, observables=NORMS)
    trainer = make_trainer(tmp_path, [callback, Fails()])
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer.train()
    with Store(f"sqlite:///{tmp_path / 'store.db'}", create=False) as store:
        (run,) = store.runs()
        assert run.state == "failed"
    assert callback.history("train_loss")[0].tolist() == [1, 2, 3, 4]
    assert "training_step" not in vars(trainer)


def test_two_trainings_of_one_trainer_are_two_runs(tmp_path):
    callback = make_callback(tmp_path, observables=NORMS)
    trainer = make_trainer(tmp_path, [callback])
    trainer.train()
    trainer.train()
    with Store(f"sqlite:///{tmp_path / 'store.db'}", create=False) as store:
        assert sorted(run.name for run in store.runs()) == ["watched", "watched/2"]


def test_it_may_be_added_to_a_trainer_that_is_there(tmp_path):
    callback = make_callback(tmp_path, observables=NORMS)
    trainer = make_trainer(tmp_path, [])
    trainer.add_callback(callback)
    trainer.train()
    assert callback.history("train_loss")[0].tolist() == [1, 2, 3, 4, 5, 6]
    assert callback.transitions == []


def test_an_early_stop_is_told_from_an_end(tmp_path):
    callback = make_callback(tmp_path, observables=NORMS)
    stopping = EarlyStoppingCallback(early_stopping_patience=1, early_stopping_threshold=1e9)
    make_trainer(
        tmp_path, [callback, stopping], max_steps=12, eval_strategy="steps", eval_steps=3,
        load_best_model_at_end=True, metric_for_best_model="loss",
    ).train()  # fmt: skip
    with Store(f"sqlite:///{tmp_path / 'store.db'}", create=False) as store:
        (run,) = store.runs()
        assert run.state == "stopped"
    assert callback.history("train_loss")[0].tolist() == [1, 2, 3, 4, 5, 6]


def test_the_norm_is_that_of_the_gradient_before_clipping(tmp_path):
    callback = make_callback(tmp_path, observables=NORMS, every_n_steps=1)
    trainer = make_trainer(tmp_path, [callback], logging_steps=1, max_grad_norm=1e-3)
    trainer.train()
    logged = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    np.testing.assert_allclose(callback.history("gradient_norm")[1], logged, rtol=1e-5)
    assert min(logged) > 1e-2  # the Trainer logs the norm before clipping, too


def test_a_loss_that_no_copy_can_have_is_refused_and_the_rest_goes_on(tmp_path):
    class Odd(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            self.optimizer.zero_grad  # noqa: B018
            return super().compute_loss(model, inputs, return_outputs)

    callback = make_callback(tmp_path, every_n_steps=2)
    make_trainer(tmp_path, [callback], trainer=Odd, model=gpt, data=Tokens).train()
    assert "self.optimizer" in callback.watch.health.skip_reasons["llc"]
    assert callback.watch.health.measurements["weight_norm"] == 3
    assert len(callback.history("train_loss")[0]) == 6


def test_what_was_named_and_cannot_be_measured_is_an_error_before_the_first_step(tmp_path):
    callback = make_callback(tmp_path, observables=["llc"], loss_fn=lambda model, batch: 1 / 0)
    trainer = make_trainer(tmp_path, [callback])
    with pytest.raises(ConfigError, match="loss_fn"):
        trainer.train()
    assert trainer.state.global_step == 0
    assert "training_step" not in vars(trainer)


def test_twins_need_names(tmp_path):
    twins = [make_callback(tmp_path, observables=NORMS) for _ in range(2)]
    with pytest.raises(ConfigError, match="run_name"):
        make_trainer(tmp_path, twins).train()


def test_it_can_be_disabled(tmp_path, monkeypatch):
    monkeypatch.setenv("PHASEWATCH_DISABLED", "1")
    callback = make_callback(tmp_path)
    make_trainer(tmp_path, [callback]).train()
    assert callback.watch is None
    assert callback.history("train_loss")[0].size == 0
    assert not (tmp_path / "store.db").exists()


def test_each_trainer_refuses_the_callback_of_the_other_and_names_its_own(tmp_path):
    with pytest.raises(ConfigError, match=r"huggingface\.TransitionCallback"):
        make_trainer(tmp_path, [TransitionMonitor(exporter=False)])
    import lightning.pytorch as pl
    from lightning.pytorch.demos.boring_classes import BoringModel

    with pytest.raises(ConfigError, match=r"callbacks\.TransitionMonitor"):
        pl.Trainer(
            default_root_dir=tmp_path, max_epochs=1, callbacks=[TransitionCallback(exporter=False)]
        ).fit(BoringModel())
