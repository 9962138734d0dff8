"""What twelve kinds of projects see of a default monitor, and what it costs them.

    python tests/benchmarks/kinds_of_projects.py --steps 1500

Each project of `tests/projects` is trained in full twice from one seed: alone, and with
`TransitionMonitor()` as it is by default. Shown are the processor time of the process with it over
that without, the seconds by which it is more than the budget of 5 %, the λ̂ that were measured and
the share of them that is OK, whether the weights are equal bit for bit, and what was refused.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch

from phasewatch.callbacks import TransitionMonitor

sys.path.insert(0, str(Path(__file__).parents[1]))

from projects.table import PROJECTS, Project

from support.bitwise import seed_everything


def trained(project: Project, steps: int, folder: Path, monitor: object = None):
    """Processor and wall seconds of a training, and its weights at the end."""
    seed_everything()
    module, data = project.build(), project.data()
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, max_steps=steps, max_epochs=-1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=str(folder), callbacks=[] if monitor is None else [monitor],
        **project.trainer,
    )  # fmt: skip
    cpu, wall = time.process_time(), time.perf_counter()
    trainer.fit(module, **data)
    seconds = time.process_time() - cpu, time.perf_counter() - wall
    return *seconds, [p.detach().clone() for p in module.parameters()]


def row(project: Project, steps: int) -> str:
    """The project's line of the table."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        trained(project, 20, Path(one))  # imports and caches
        alone, wall, weights = trained(project, steps, Path(one))
        monitor = TransitionMonitor(exporter=False, store=str(Path(other) / "runs.db"))
        watched, _, own = trained(project, steps, Path(other), monitor)
        llc = monitor.history("llc", include_unconverged=True)
        ok = sum(status == "ok" for status in llc.statuses)
        reasons = monitor.watch.health.skip_reasons
    equal = all(map(torch.equal, weights, own))
    share = f"{ok / len(llc.steps):4.0%}" if len(llc.steps) else "   –"
    over = watched - 1.05 * alone
    return (
        f"{project.name:36s} {wall:6.1f} {watched / alone:6.2f} {over:6.1f} {len(llc.steps):4d} "
        f"{share}  {'yes' if equal else 'NO':5s}  {reasons.get('llc', '')[:80]}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=1_500)
    parser.add_argument("--only", default="", help="part of a name")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in ("phasewatch", "lightning.pytorch", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    print(f"{'project':36s} wall s  CPU ×    + s   λ̂   OK  equal  refused")
    for project in PROJECTS:
        if options.only in project.name:
            print(row(project, options.steps), flush=True)


if __name__ == "__main__":
    main()
