"""Watch Hugging Face's Trainer while a small network groks modular addition. Needs transformers.

    python examples/hf_grokking.py

The task is that of grokking.py: the network knows half of all sums by heart within some hundred
steps, and finds the rule much later. The Trainer gets one callback and nothing else; it logs every
50 steps, the callback sees the loss of each.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from common import read_options, standing
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, default_data_collator

from phasewatch.callbacks.huggingface import TransitionCallback
from phasewatch.monitor.reports.run_page import write_report
from phasewatch.monitor.store.store import Store


class Sums(Dataset[dict[str, Tensor]]):
    """Some of the pairs (a, b), with the label a + b mod p."""

    def __init__(self, p: int, indices: Tensor) -> None:
        self.pairs = torch.cartesian_prod(torch.arange(p), torch.arange(p))[indices]
        self.labels = self.pairs.sum(dim=1) % p

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pairs": self.pairs[index], "labels": self.labels[index]}


class Adder(nn.Module):
    """Embeds both numbers, and maps them through one hidden layer of squares to the sums."""

    def __init__(self, p: int, embedding: int, hidden: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(p, embedding)
        self.hidden = nn.Linear(2 * embedding, hidden)
        self.unembed = nn.Linear(hidden, p, bias=False)

    def forward(self, pairs: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Logits, and the loss where labels are given."""
        logits = self.unembed(self.hidden(self.embed(pairs).flatten(1)).square())
        found = {"logits": logits}
        if labels is not None:
            found = {"loss": nn.functional.cross_entropy(logits, labels), **found}
        return found


def accuracy(evaluated: Any) -> dict[str, float]:
    """Share of sums that are right."""
    return {"accuracy": float((evaluated.predictions.argmax(-1) == evaluated.label_ids).mean())}


def main(arguments: Iterable[str] | None = None) -> None:
    """Train, watched."""
    options = read_options(__doc__ or "", "hf-grokking", arguments and [*arguments])
    p, embedding, hidden, steps = (11, 8, 16, 60) if options.fast else (53, 32, 64, 1800)
    torch.manual_seed(options.seed)
    order = torch.randperm(p * p, generator=torch.Generator().manual_seed(options.seed))
    train, val = order.tensor_split(2)
    callback = TransitionCallback(
        run_name=f"hf-grokking-seed{options.seed}", every_n_steps=steps // 45 or 10,
        config={"sampler": {"num_chains": 3, "num_draws": 40, "max_draws": 40}},
    )  # fmt: skip
    trainer = Trainer(
        model=Adder(p, embedding, hidden),
        args=TrainingArguments(
            output_dir=str(options.out), max_steps=steps, seed=options.seed,
            per_device_train_batch_size=len(train), per_device_eval_batch_size=len(val),
            learning_rate=5e-3, weight_decay=1.0, adam_beta2=0.98, warmup_steps=steps // 9,
            lr_scheduler_type="constant_with_warmup", max_grad_norm=0.0,
            eval_strategy="steps", eval_steps=max(5, steps // 360), logging_steps=50,
            save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True,
        ),
        train_dataset=Sums(p, train),
        eval_dataset=Sums(p, val),
        data_collator=default_data_collator,
        compute_metrics=accuracy,
        callbacks=[callback],
    )  # fmt: skip
    trainer.train()
    for transition in standing(callback.transitions):
        print(
            f"{transition.kind} from step {transition.onset_step}, detected at "
            f"{transition.detected_step}: {', '.join(transition.evidence)}"
        )
    assert callback.watch is not None
    with Store(options.out / "phasewatch.db", create=False) as store:
        print(f"report: {write_report(store, callback.watch.run_id, options.out / 'report.html')}")


if __name__ == "__main__":
    main()
