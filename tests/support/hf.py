"""Trainings with `transformers.Trainer` for tests: small models, cases, what they are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

from phasewatch.callbacks.huggingface import TransitionCallback
from support.bitwise import Record, seed_everything
from support.pictures import freeze, generators, modes, weights

VOCABULARY, LENGTH, ROWS = 23, 8, 48
MACHINE = ("runtime", "per_second", "compilation")


class Tokens(Dataset):
    """Rows of tokens; with `ragged`, their ends are padding that the labels leave out."""

    def __init__(self, rows=ROWS, seed=0, *, ragged=False):
        generator = torch.Generator().manual_seed(seed)
        self.rows = torch.randint(0, VOCABULARY, (rows, LENGTH), generator=generator)
        self.lengths = torch.randint(3, LENGTH + 1, (rows,), generator=generator)
        self.ragged = ragged

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        tokens = self.rows[index]
        if not self.ragged:
            return {"input_ids": tokens, "labels": tokens}
        kept = torch.arange(LENGTH) < self.lengths[index]
        return {
            "input_ids": tokens,
            "attention_mask": kept.long(),
            "labels": tokens.where(kept, -100),
        }


class Stream(IterableDataset):
    """The same rows, of which nobody knows how many there are."""

    def __iter__(self):
        yield from Tokens()


class Sentences(Tokens):
    """Rows of tokens, each of one of three kinds."""

    def __getitem__(self, index):
        tokens = self.rows[index]
        return {"input_ids": tokens, "labels": tokens.sum() % 3}


class Points(Dataset):
    """Points of four dimensions, of one of three kinds."""

    def __init__(self, rows=ROWS):
        self.x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(3))

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return {"x": self.x[index], "labels": (self.x[index].sum() > 0).long()}


class PlainNet(nn.Module):
    """No model of transformers: a net whose forward gives a dict with its loss."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x, labels=None):
        logits = self.net(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def gpt(dropout=0.0, **more):
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=8, n_layer=1, n_head=2,
            bos_token_id=0, eos_token_id=0, resid_pdrop=dropout, embd_pdrop=dropout,
            attn_pdrop=dropout, **more,
        )
    )  # fmt: skip


def bert():
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=VOCABULARY, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=16, max_position_embeddings=LENGTH, num_labels=3,
            hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1,
        )
    )  # fmt: skip


def half_frozen():
    model = gpt()
    model.transformer.wte.weight.requires_grad_(False)
    return model


def lora():
    import peft

    adapters = peft.LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM")
    return peft.get_peft_model(gpt(), adapters)


class WeightedTrainer(Trainer):
    """Weighs the kinds of tokens; takes the labels out of its inputs; counts its calls."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.class_weights = torch.linspace(0.5, 1.5, VOCABULARY)
        self.calls = {"loss": 0}
        self.num_calls = 0

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = self.weighted(outputs.logits, labels)
        self.calls["loss"] += 1
        self.num_calls += 1
        return (loss, outputs) if return_outputs else loss

    def weighted(self, logits, labels):
        logits = logits[:, :-1].flatten(0, 1)
        return nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), self.class_weights)


def summed_loss(outputs, labels, num_items_in_batch=None):
    logits, labels = outputs["logits"][:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    total = nn.functional.cross_entropy(logits, labels, reduction="sum")
    return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)


def _left_in() -> int:
    """Labels of the probe that count, of the samples that a probe of 16 takes of ragged rows."""
    from phasewatch.monitor.isolation.probe import _choose

    data = Tokens(ragged=True)
    return sum(int(data.lengths[i]) - 1 for i in _choose(range(ROWS), 16, 0))


LEFT_IN = _left_in()


@dataclass(frozen=True)
class Case:
    """One way to train.

    Attributes:
        name: In words.
        arguments: Of `TrainingArguments`.
        model: Makes the model.
        data: Makes the training data.
        trainer: Class of the trainer.
        more: Further arguments of the trainer.
        terms: Terms of the probe loss, where they are known.
        needs: Package that the case needs.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    model: Callable[[], nn.Module] = gpt
    data: Callable[[], Any] = Tokens
    trainer: type[Trainer] = Trainer
    more: Mapping[str, Any] = field(default_factory=dict)
    terms: int | None = None
    needs: str | None = None


CASES = [
    Case("plain", terms=16 * (LENGTH - 1)),
    Case("accumulation with a remainder", {"gradient_accumulation_steps": 4, "max_steps": 5}),
    Case("clipping", {"max_grad_norm": 0.05}),
    Case("no clipping", {"max_grad_norm": 0.0}),
    Case("bf16", {"bf16": True}),
    Case("dropout", model=lambda: gpt(dropout=0.2)),
    Case("labels left out", data=lambda: Tokens(ragged=True), terms=LEFT_IN),
    Case("label smoothing", {"label_smoothing_factor": 0.1}),
    Case("own compute_loss", trainer=WeightedTrainer),
    Case("own loss function", more={"compute_loss_func": summed_loss}),
    Case("stream", {"max_steps": 6}, data=Stream),
    Case("gradient checkpointing", {"gradient_checkpointing": True}),
    Case("sentences", model=bert, data=Sentences),
    Case("net of one's own", model=PlainNet, data=Points),
    Case("half of it frozen", model=half_frozen),
    Case("adapters", model=lora, needs="peft"),
    Case("adafactor", {"optim": "adafactor"}),
    Case("log every step", {"logging_steps": 1, "logging_first_step": True}),
    Case(
        "epochs, best model at the end",
        {
            "max_steps": -1, "num_train_epochs": 2, "eval_strategy": "epoch",
            "save_strategy": "epoch", "load_best_model_at_end": True, "save_total_limit": 1,
        },
    ),
    Case("loss that turns into NaN", {"learning_rate": 1e20, "max_grad_norm": 0.0}),
]  # fmt: skip


def make_callback(folder: Path, **options: Any) -> Any:
    """A callback that measures often and cheaply, and serves nothing."""
    config = {
        "store": str(folder / "store.db"),
        "exporter": {"enabled": False},
        "sampler": {
            "num_chains": 2, "num_draws": 8, "max_draws": 8, "engine": "loop", "step_size": 1e-4,
        },
        "probe": {"num_samples": 16, **options.pop("probe_config", {})},
    }  # fmt: skip
    options = {"every_n_steps": 2, "run_name": "watched"} | options
    return TransitionCallback(config, **options)


class Kept:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def emit(self, observation):
        self.seen.append(observation)

    def notify(self, transition):
        pass

    def flush(self):
        pass

    def close(self):
        pass


class Recorder(TrainerCallback):
    """Writes down what every hook could see."""

    def __init__(self, record: Record) -> None:
        self.record = record

    def _see(self, hook, state, model, **more):
        seen = {"generators": generators(), "modes": modes(), "weights": weights(model)}
        self.record.events.append((hook, seen | {"step": state.global_step} | more))

    def on_step_begin(self, args, state, control, model=None, **_):
        self._see("step_begin", state, model)

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        gradients = {n: freeze(p.grad) for n, p in model.named_parameters() if p.grad is not None}
        self._see("pre_optimizer_step", state, model, gradients=gradients)

    def on_step_end(self, args, state, control, model=None, optimizer=None, **_):
        self._see("step_end", state, model, optimizer=freeze(optimizer.state_dict()))

    def on_evaluate(self, args, state, control, model=None, **_):
        self._see("evaluate", state, model)


def record_case(
    case: Case, folder: Path, callbacks: Callable[[], list[Any]] = list
) -> tuple[Record, Trainer, list[float]]:
    """Train, and write down everything.

    Returns:
        The record, the trainer, and the loss of every optimizer step.
    """
    seed_everything()
    record, losses, held = Record(), [], []
    model = case.model()

    class Spy(TrainerCallback):
        def on_step_end(self, *_, **__):
            losses.append(float(sum(held)))
            held.clear()

    arguments = {
        "max_steps": 6, "per_device_train_batch_size": 4, "logging_steps": 3,
        "eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps", "save_steps": 6,
        "report_to": [], "use_cpu": True, "disable_tqdm": True, "seed": 1, "learning_rate": 1e-3,
    } | dict(case.arguments)  # fmt: skip

    class Spied(case.trainer):  # type: ignore[name-defined, misc]
        def training_step(self, *args, **kwargs):
            loss = super().training_step(*args, **kwargs)
            held.append(float(loss))
            return loss

    trainer = Spied(
        model=model,
        args=TrainingArguments(output_dir=str(folder / "out"), **arguments),
        train_dataset=case.data(),
        eval_dataset=_evaluated(case),
        data_collator=default_data_collator,
        callbacks=[*callbacks(), Recorder(record), Spy()],
        **case.more,
    )
    trainer.train()
    record.final = {
        "weights": weights(model),
        "optimizer": freeze(trainer.optimizer.state_dict()),
        "generators": generators(),
        "log": [
            {k: freeze(v) for k, v in entry.items() if not any(m in k for m in MACHINE)}
            for entry in trainer.state.log_history
        ],
        "calls": getattr(trainer, "calls", None),
        "num_calls": getattr(trainer, "num_calls", None),
        "attributes": sorted(key for key in vars(trainer) if key != "train"),
        "callbacks": sorted(
            type(c).__name__
            for c in trainer.callback_handler.callbacks
            if not isinstance(c, TransitionCallback)
        ),
    }
    return record, trainer, losses


def _evaluated(case: Case) -> Any:
    return Tokens(8, 5) if case.data is Stream else case.data()
