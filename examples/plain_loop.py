"""Watch a plain PyTorch loop, without Lightning.

    python examples/plain_loop.py

A deep linear network learns a matrix of rank two. It learns one direction after the other: the
loss rests on a plateau, falls, rests on the next, and falls again. On a plateau the weights are at
a saddle, not at a minimum: λ̂ comes out far below zero there, and is marked so. After the last fall
it is a proper number. It takes some seconds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from phasewatch.monitor import Watch
from phasewatch.monitor.reports.run_page import write_report
from phasewatch.monitor.store.store import Store

NOISE = 0.1


def make_data(seed: int) -> tuple[Tensor, Tensor]:
    """Inputs and noisy outputs of a linear map with singular values 2 and 0.7."""
    random = torch.Generator().manual_seed(seed)
    left, _ = torch.linalg.qr(torch.randn(6, 2, generator=random))
    right, _ = torch.linalg.qr(torch.randn(6, 2, generator=random))
    inputs = torch.randn(800, 6, generator=random)
    clean = inputs @ right @ torch.diag(torch.tensor([2.0, 0.7])) @ left.T
    return inputs, clean + NOISE * torch.randn(clean.shape, generator=random)


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Per-sample negative log-likelihood in nats: squared error over twice the noise variance."""
    inputs, targets = batch
    return (model(inputs) - targets).square().sum(dim=1) / (2 * NOISE**2)


def make_model(seed: int) -> nn.Module:
    """Three linear layers that begin near zero, where nothing is learnt yet."""
    torch.manual_seed(seed)
    model = nn.Sequential(*(nn.Linear(6, 6, bias=False) for _ in range(3)))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)
    return model


def main(arguments: list[str] | None = None) -> None:
    """Train, watched."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("phasewatch-plain"), help="output folder")
    parser.add_argument("--fast", action="store_true", help="fewer steps: shows no transition")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    steps, every = (60, 20) if options.fast else (1500, 50)

    torch.set_num_threads(1)
    inputs, targets = make_data(options.seed)
    batch, val_batch = (inputs[:600], targets[:600]), (inputs[600:], targets[600:])
    model = make_model(options.seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=3e-4)
    settings = {
        "run_name": f"plain-seed{options.seed}",
        "every_n_steps": every,
        "sampler": {"num_draws": 100, "max_draws": 200},
        "store": str(options.out / "phasewatch.db"),
    }
    with Watch(settings, probe=[batch], loss_fn=loss_fn) as watch:
        for step in range(1, steps + 1):
            loss = loss_fn(model, batch).mean()
            optimizer.zero_grad()
            loss.backward()
            watch.before_step(step, model.named_parameters())  # for the gradient norm
            optimizer.step()
            with torch.no_grad():
                val_loss = loss_fn(model, val_batch).mean()
            # Tensors are kept as they are and read later, many at once: this costs next to nothing.
            watch.observe(step, {"train_loss": loss.detach(), "val_loss": val_loss})
            if watch.due(step):
                watch.probe(step, model)  # measures copies: the model is not touched
            if step % (steps // 10) == 0:
                llc = "not yet"
                history = watch.history("llc", include_unconverged=True)
                if len(history.values):
                    value, error, status = (
                        column[-1] for column in (history.values, history.stderrs, history.statuses)
                    )
                    llc = f"{value:.2f} ± {error:.2f} ({status})"
                print(f"step {step:>5}  loss {loss.item():10.4f}  λ̂ {llc}")
    for transition in watch.transitions:
        print(
            f"{transition.kind} from step {transition.onset_step}, detected at "
            f"{transition.detected_step}: {', '.join(transition.evidence)}"
        )
    with Store(options.out / "phasewatch.db", create=False) as store:
        report = write_report(store, watch.run_id, options.out / "report.html")
    print(f"report: {report}")


if __name__ == "__main__":
    main()
