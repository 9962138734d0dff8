"""λ̂ and transitions in the TensorBoard that a `transformers.Trainer` reports to."""

import pytest

pytest.importorskip("transformers", reason="run by `make hf`")
pytest.importorskip("tensorboard", reason="part of the `dev` extra")

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import Trainer, TrainingArguments, default_data_collator

from phasewatch.monitor.core.errors import ConfigError
from support.bitwise import seed_everything
from support.hf import MACHINE, PlainNet, Points, make_callback

pytestmark = [pytest.mark.hf, pytest.mark.filterwarnings("ignore")]


def train(folder, monkeypatch, callback=None, *, report_to=("tensorboard",), beside=()):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(folder / "board"))
    seed_everything()
    arguments = TrainingArguments(
        output_dir=str(folder / "out"), max_steps=12, per_device_train_batch_size=8,
        logging_steps=3, save_strategy="no", report_to=list(report_to), use_cpu=True,
        disable_tqdm=True, seed=1,
    )  # fmt: skip
    trainer = Trainer(
        model=PlainNet(),
        args=arguments,
        train_dataset=Points(),
        data_collator=default_data_collator,
        callbacks=[*([] if callback is None else [callback]), *(make() for make in beside)],
    )
    trainer.train()
    return trainer


def llc_callback(folder, **settings):
    return make_callback(folder, observables=["llc"], every_n_steps=4, **settings)


def scalars(folder):
    accumulator = EventAccumulator(str(folder / "board")).Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }


def history(trainer):
    return [
        {k: v for k, v in row.items() if not any(word in k for word in MACHINE)}
        for row in trainer.state.log_history
    ]


def without_times(board):
    return {tag: points for tag, points in board.items() if not any(w in tag for w in MACHINE)}


@pytest.mark.parametrize("order", ["board first", "board last"])
def test_the_board_has_the_coefficient_and_the_log_history_stays(tmp_path, monkeypatch, order):
    from transformers.integrations import TensorBoardCallback

    settings = (
        {"report_to": ["tensorboard"]}
        if order == "board first"
        else {"report_to": [], "beside": [TensorBoardCallback]}
    )
    callback = llc_callback(tmp_path / "watched", loggers=True)
    watched = train(tmp_path / "watched", monkeypatch, callback, **settings)
    bare = train(tmp_path / "bare", monkeypatch, **settings)
    for mine, other in zip(watched.model.parameters(), bare.model.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert history(watched) == history(bare)

    seen = callback.history("llc", include_unconverged=True)
    assert seen.steps.tolist() == [4, 8, 12], "the last one, too: it is measured at the end"
    board = without_times(scalars(tmp_path / "watched"))
    own = {tag: board.pop(tag) for tag in [*board] if tag.startswith("phasewatch/")}
    assert board == without_times(scalars(tmp_path / "bare"))
    values = own.get("phasewatch/llc", []) + own.get("phasewatch/llc_not_ok", [])
    expected = zip(seen.steps.tolist(), seen.values, strict=True)
    assert sorted(values) == [(step, pytest.approx(value, rel=1e-6)) for step, value in expected]
    assert len(own.get("phasewatch/llc_stderr", [])) == seen.ok.sum()
    assert callback.watch.health.sink_failures["TrainerLoggers"] == 0


def test_a_setting_keeps_the_board_alone(tmp_path, monkeypatch):
    callback = llc_callback(tmp_path, loggers=False)
    train(tmp_path, monkeypatch, callback)
    assert callback.history("llc").steps.size == 3
    assert not [tag for tag in scalars(tmp_path) if "phasewatch" in tag]


def test_a_second_training_writes_into_the_board_of_its_own(tmp_path, monkeypatch):
    callback = llc_callback(tmp_path / "first")
    for folder in ("first", "second"):
        train(tmp_path / folder, monkeypatch, callback)
        own = [tag for tag in scalars(tmp_path / folder) if tag.startswith("phasewatch/llc")]
        assert own


def test_loggers_that_are_asked_for_and_not_there_are_refused_before_the_first_step(
    tmp_path, monkeypatch
):
    with pytest.raises(ConfigError, match="reports to no TensorBoard"):
        train(tmp_path, monkeypatch, llc_callback(tmp_path, loggers=True), report_to=())
    callback = llc_callback(tmp_path)
    train(tmp_path, monkeypatch, callback, report_to=())
    assert callback.watch.health.sink_failures["TrainerLoggers"] == 0
