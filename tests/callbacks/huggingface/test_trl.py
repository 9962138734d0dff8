"""Trainers that inherit from that of transformers: supervised fine-tuning by TRL."""

import pytest

pytest.importorskip("trl", reason="run by `make hf`")

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from support.bitwise import seed_everything
from support.hf import Kept, gpt, make_callback
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
    trainer.train()
    log = [
        {k: freeze(v) for k, v in entry.items() if "runtime" not in k and "per_second" not in k}
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
