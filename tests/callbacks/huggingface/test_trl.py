"""Trainers that inherit from that of transformers: TRL's, for fine-tuning and for rewards."""

import pytest

pytest.importorskip("trl", reason="run by `make hf`")

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from support.bitwise import seed_everything
from support.hf import Kept, Tokens, gpt, make_callback
from support.pictures import freeze, generators, weights

pytestmark = [pytest.mark.hf, pytest.mark.filterwarnings("ignore")]
WORDS = ["<pad>", "<eos>", "the", "cat", "dog", "sat", "ran", "on", "under", "a", "mat", "and"]
WORDS += ["then", "slept", "far"]


def tokenizer():
    whole = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<pad>"))
    whole.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=whole, pad_token="<pad>", eos_token="<eos>", unk_token="<pad>"
    )


def fine_tune(folder, callbacks):
    seed_everything()
    texts = [f"the {a} {b} {c} a mat" for a in ("cat", "dog") for b in ("sat", "ran", "slept")
             for c in ("on", "under", "far", "and then")]  # fmt: skip
    trainer = SFTTrainer(
        model=gpt(),
        args=SFTConfig(
            output_dir=str(folder), max_steps=6, per_device_train_batch_size=4, logging_steps=3,
            report_to=[], use_cpu=True, bf16=False, disable_tqdm=True, max_length=8, seed=1,
        ),
        train_dataset=Dataset.from_dict({"text": texts}),
        processing_class=tokenizer(),
        callbacks=callbacks,
    )  # fmt: skip
    return trained(trainer)


def reinforce(folder, callbacks):
    """Completions of prompts that name a cat are rewarded."""
    seed_everything()
    prompts = [f"the {a} {b}" for a in ("cat", "dog") for b in ("sat", "ran", "slept")]
    trainer = GRPOTrainer(
        model=gpt(),
        reward_funcs=lambda completions, **_: [float("cat" in text) for text in completions],
        args=GRPOConfig(
            output_dir=str(folder), max_steps=4, per_device_train_batch_size=4, num_generations=2,
            max_completion_length=3, logging_steps=2, learning_rate=1e-3, report_to=[],
            use_cpu=True, bf16=False, disable_tqdm=True, seed=1,
        ),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer(),
        callbacks=callbacks,
    )  # fmt: skip
    return trained(trainer)


def trained(trainer):
    """What is left of the training, but for what it took."""
    trainer.train()
    machine = ("runtime", "per_second", "step_time")
    log = [
        {k: freeze(v) for k, v in entry.items() if not k.endswith(machine)}
        for entry in trainer.state.log_history
    ]
    return {"weights": weights(trainer.model), "generators": generators(), "log": log}


def test_supervised_fine_tuning_is_watched_and_not_touched(tmp_path):
    kept = Kept()
    callback = make_callback(tmp_path, sinks=[kept])
    plain = fine_tune(tmp_path / "plain", [])
    watched = fine_tune(tmp_path / "watched", [callback])
    assert plain == watched
    assert callback.history("train_loss")[0].tolist() == [1, 2, 3, 4, 5, 6]
    assert callback.watch.health.measurements["llc"] >= 2, callback.watch.health.skip_reasons
    (unit,) = {o.detail.sample_unit for o in kept.seen if o.name == "llc"}
    assert unit == "token"
    assert callback.history("mean_token_accuracy")[0].tolist() == [3, 6]


def test_training_on_rewards_is_watched_and_not_touched(tmp_path):
    callback = make_callback(tmp_path)
    plain = reinforce(tmp_path / "plain", [])
    watched = reinforce(tmp_path / "watched", [callback])
    assert plain == watched
    assert callback.history("train_loss")[0].tolist() == [1, 2, 3, 4]
    assert callback.history("reward")[0].tolist() == [2, 4]
    assert callback.watch.health.measurements["gradient_norm"] == 2
    assert len(callback.history("step_time")[0]) == 0
    # Its loss is of completions that each step generates: there are no data to measure it on.
    reason = callback.watch.health.skip_reasons["llc"]
    assert "made while it trains" in reason
    assert "give the callback probe=, batches of tokens, and loss_fn=" in reason


def of_tokens(model, batch):
    logits = model(input_ids=batch["input_ids"]).logits[:, :-1]
    return nn.functional.cross_entropy(
        logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="none"
    )


def test_training_on_rewards_is_measured_on_data_that_are_given(tmp_path):
    rows = Tokens().rows
    probe = [{"input_ids": rows, "labels": rows}]
    callback = make_callback(tmp_path, probe=probe, loss_fn=of_tokens)
    plain = reinforce(tmp_path / "plain", [])
    watched = reinforce(tmp_path / "watched", [callback])
    assert plain == watched
    assert callback.watch.health.measurements["llc"] >= 2, callback.watch.health.skip_reasons
