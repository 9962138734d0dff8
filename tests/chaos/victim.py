"""A training that is killed: `python victim.py JOB`, where JOB is a JSON file. Run by kills.py.

It observes a loss at every step that falls at a known step, saves a checkpoint every ten steps as
training does (written whole, then renamed), and says each on standard output. Where the job says
so its store is harmed for a while (faults.py), and it kills itself some time after a checkpoint.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from faults import STORE_FAULTS


def value(step: int, fall: int) -> float:
    """The loss at a step: the same in every life of the run."""
    noise = random.Random(step).uniform(-1, 1)
    return (3.0 if step <= fall else 0.02) * (1 + 0.01 * noise)


def die_after(seconds: float) -> None:
    """Kill this process in a while, wherever it then is."""

    def kill() -> None:
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()


class Life:
    """What happens between two kills."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.checkpoint = Path(job["checkpoint"])
        self.dies_at = job.get("dies_at")
        self.is_harmed = False

    def save(self, step: int, state: Any) -> None:
        part = self.checkpoint.with_suffix(".part")
        part.write_bytes(pickle.dumps((step, state)))
        part.replace(self.checkpoint)
        sys.stdout.write(f"checkpoint {step}\n")  # in one piece
        sys.stdout.flush()
        if self.dies_at is not None and step >= self.dies_at:
            die_after(self.job["delay"])
            self.dies_at = None

    def before(self, step: int) -> None:
        # Once: what looks at a model's loss runs its training step beside training.
        if step == self.job.get("fault_at") and not self.is_harmed:
            self.is_harmed = True
            store = Path(self.job["config"]["store"])
            STORE_FAULTS[self.job["fault"]](store, self.job["fault_seconds"])
            print("fault", flush=True)
        time.sleep(0.002)


def plain(life: Life) -> None:
    """The plain loop."""
    from phasewatch.monitor import Watch

    job = life.job
    watch, step = Watch(job["config"]), 0
    if life.checkpoint.exists():
        step, state = pickle.loads(life.checkpoint.read_bytes())
        watch.load_state_dict(state)
    watch.start(step)
    while step < job["steps"]:
        step += 1
        life.before(step)
        watch.observe(step, {"val_loss": value(step, job["fall"])})
        if step % 10 == 0:
            life.save(step, watch.state_dict())
    watch.finish()
    print("finished", flush=True)


def lightning(life: Life) -> None:
    """The same under a Trainer."""
    import lightning.pytorch as pl
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    from phasewatch.callbacks import TransitionMonitor

    job = life.job

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Linear(1, 1)

        def training_step(self, batch: Any, index: int) -> Any:
            step = self.trainer.global_step + 1
            life.before(step)
            self.log("val_loss", value(step, job["fall"]))
            return self.net(batch[0]).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 1e-3)

    class Save(pl.callbacks.Checkpoint):
        def on_train_batch_end(self, trainer, module, *_: Any) -> None:
            if trainer.global_step % 10 == 0:
                part = f"{life.checkpoint}.part"
                trainer.save_checkpoint(part)
                os.replace(part, life.checkpoint)
                sys.stdout.write(f"checkpoint {trainer.global_step}\n")
                sys.stdout.flush()
                if life.dies_at is not None and trainer.global_step >= life.dies_at:
                    die_after(job["delay"])
                    life.dies_at = None

    trainer = pl.Trainer(
        max_steps=job["steps"],
        max_epochs=-1,
        log_every_n_steps=1,
        logger=False,
        callbacks=[TransitionMonitor(job["config_file"]), Save()],
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    path = str(life.checkpoint) if life.checkpoint.exists() else None
    trainer.fit(Module(), DataLoader(TensorDataset(torch.ones(64, 1)), 1), ckpt_path=path)
    print("finished", flush=True)


if __name__ == "__main__":
    content = json.loads(Path(sys.argv[1]).read_text())
    {"plain": plain, "lightning": lightning}[content["lane"]](Life(content))
