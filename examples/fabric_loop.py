"""Watch a loop on Lightning Fabric.

    python examples/fabric_loop.py

The task is that of plain_loop.py. Fabric wraps the model; what is watched is the model inside. In
training on several processes only one watches: `if fabric.is_global_zero`.
"""

from __future__ import annotations

from typing import Any

import torch
from common import read_options
from lightning.fabric import Fabric
from plain_loop import loss_fn, make_data, make_model

from phasewatch.monitor import Watch


def main(arguments: list[str] | None = None) -> None:
    """Train, watched."""
    options = read_options(__doc__ or "", "fabric", arguments)
    steps = 60 if options.fast else 600
    fabric = Fabric(accelerator="auto", devices=1, precision="bf16-mixed")
    module = make_model(options.seed)
    optimizer: Any = torch.optim.SGD(module.parameters(), lr=3e-4)
    model, optimizer = fabric.setup(module, optimizer)
    batch = fabric.to_device(make_data(options.seed))
    settings: dict[str, Any] = {
        "run_name": f"fabric-seed{options.seed}",
        "every_n_steps": steps // 3,
        "sampler": {"num_draws": 50, "max_draws": 50},
        "store": str(options.out / "phasewatch.db"),
    }
    with Watch(settings, probe=[batch], loss_fn=loss_fn) as watch:
        watch.check(module)  # what cannot be measured is said now
        for step in range(1, steps + 1):
            loss = loss_fn(model, batch).mean()
            fabric.backward(loss)
            watch.before_step(step, module.named_parameters())
            fabric.clip_gradients(model, optimizer, max_norm=100.0)
            optimizer.step()
            optimizer.zero_grad()
            watch.observe(step, {"train_loss": loss.detach()})
            if watch.due(step):
                watch.probe(step, module)
    _, norms, _ = watch.history("gradient_norm")
    print(f"gradient norms before clipping {[round(n, 3) for n in norms]}")
    print(f"phasewatch show {watch.run_name} --store {options.out / 'phasewatch.db'}")


if __name__ == "__main__":
    main()
