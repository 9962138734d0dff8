"""Watch a loop on Hugging Face Accelerate, with gradient accumulation. Needs accelerate.

    python examples/accelerate_loop.py

The task is that of plain_loop.py. Steps are counted where gradients are synchronised, which is
where the optimizer steps. In training on several processes only one watches:
`if accelerator.is_main_process`.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from common import read_options
from plain_loop import loss_fn, make_data, make_model
from torch.utils.data import DataLoader, TensorDataset

from phasewatch.monitor import Watch


def main(arguments: list[str] | None = None) -> None:
    """Train, watched."""
    options = read_options(__doc__ or "", "accelerate", arguments)
    steps = 60 if options.fast else 600
    accelerator = Accelerator(gradient_accumulation_steps=2)
    data = make_data(options.seed)
    module = make_model(options.seed)
    model, optimizer, loader = accelerator.prepare(
        module,
        torch.optim.SGD(module.parameters(), lr=3e-4),
        DataLoader(TensorDataset(*data), batch_size=400, shuffle=True),
    )
    settings: dict[str, Any] = {
        "run_name": f"accelerate-seed{options.seed}",
        "every_n_steps": steps // 3,
        "sampler": {"num_draws": 50, "max_draws": 50},
        "store": str(options.out / "phasewatch.db"),
    }
    step = 0
    with Watch(settings, probe=TensorDataset(*data), loss_fn=loss_fn) as watch:
        watch.check(module)  # what cannot be measured is said now
        while step < steps:
            for batch in loader:
                with accelerator.accumulate(model):
                    loss = loss_fn(model, batch).mean()
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        step += 1
                        watch.before_step(step, module.named_parameters())
                        accelerator.clip_grad_norm_(model.parameters(), 100.0)
                    optimizer.step()
                    optimizer.zero_grad()
                if accelerator.sync_gradients:
                    watch.observe(step, {"train_loss": loss.detach()})
                    if watch.due(step):
                        watch.probe(step, module)
    _, norms, _ = watch.history("gradient_norm")
    print(f"gradient norms before clipping {[round(n, 3) for n in norms]}")
    print(f"phasewatch show {watch.run_name} --store {options.out / 'phasewatch.db'}")


if __name__ == "__main__":
    main()
