"""Watch a loop that scales its loss for half precision, on micro-batches.

    python examples/scaler_loop.py

The task is that of plain_loop.py. Under a `GradScaler` gradients are as many times too large as the
loss was scaled: `before_step` is told by how much, and the gradient norm is that of the loss. Two
micro-batches make a step: steps are counted where the optimizer steps.
"""

from __future__ import annotations

from typing import Any

import torch
from common import read_options
from plain_loop import loss_fn, make_data, make_model

from phasewatch.monitor import Watch

MICRO_BATCHES = 2


def main(arguments: list[str] | None = None) -> None:
    """Train, watched."""
    options = read_options(__doc__ or "", "scaler", arguments)
    steps = 60 if options.fast else 600
    inputs, targets = make_data(options.seed)
    micro_batches = list(zip(inputs.chunk(2), targets.chunk(2), strict=True))
    model = make_model(options.seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=3e-4)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    scaler = torch.amp.GradScaler(device)
    settings: dict[str, Any] = {
        "run_name": f"scaler-seed{options.seed}",
        "every_n_steps": steps // 3,
        "sampler": {"num_draws": 50, "max_draws": 50},
        "store": str(options.out / "phasewatch.db"),
    }
    with Watch(settings, probe=micro_batches, loss_fn=loss_fn) as watch:
        watch.check(model)  # what cannot be measured is said now
        for step in range(1, steps + 1):
            total = torch.zeros(())
            for batch in micro_batches:
                with torch.autocast(device, dtype=torch.bfloat16):
                    loss = loss_fn(model, batch).mean() / MICRO_BATCHES
                scaler.scale(loss).backward()
                total += loss.detach()
            watch.before_step(step, model.named_parameters(), loss_scale=scaler.get_scale())
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            watch.observe(step, {"train_loss": total, "loss_scale": scaler.get_scale()})
            if watch.due(step):
                watch.probe(step, model)
    _, norms, _ = watch.history("gradient_norm")
    print(f"loss scale {scaler.get_scale():g}, gradient norms {[round(n, 3) for n in norms]}")
    print(f"phasewatch show {watch.run_name} --store {options.out / 'phasewatch.db'}")


if __name__ == "__main__":
    main()
