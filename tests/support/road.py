"""The road of a number: what runs between a hook that sees `train_loss` and the alert it makes.

    python tests/support/road.py CHECKOUT FOLDER

Prints the number of functions, and of the files they lie in. They are not read from the source but
met: a small Lightning run whose loss jumps, with the sender of alerts and a stand-in for the
service. Every function of the checkout counts once that is called after the first
`on_train_batch_end` in the process that trains, and any that is called in the process that sends.
What has no name of its own does not count: comprehensions, generator expressions and lambdas,
some of which later versions of Python do not call at all.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

INSIDE = 0x01  # CO_OPTIMIZED: a function, and not the body of a class or module
VARIABLE = "PHASEWATCH_ROAD"


class Met:
    """Notes functions of the checkout as they are called, in every thread."""

    def __init__(self, root: str, folder: str) -> None:
        self._tops = tuple(f"{root}/{part}/" for part in ("callbacks", "detectors", "monitor"))
        self._folder = folder
        self.functions: set[str] = set()
        self.is_noting = False

    def start(self) -> None:
        """Listen from now on, also in threads to come; what is met counts once `is_noting`."""
        threading.setprofile(self._note)
        sys.setprofile(self._note)

    def write(self) -> None:
        """Leave what was met in the folder."""
        sys.setprofile(None)
        threading.setprofile(None)
        path = Path(self._folder) / f"met-{os.getpid()}"
        path.write_text("\n".join(sorted(self.functions)), encoding="utf-8")

    def _note(self, frame: Any, event: str, _: Any) -> None:
        code = frame.f_code
        if not self.is_noting or event != "call" or code.co_name.startswith("<"):
            return
        if code.co_flags & INSIDE and code.co_filename.startswith(self._tops):
            self.functions.add(f"{code.co_filename}:{code.co_qualname}")


def attend() -> None:
    """Note everything this process does, from now to its end; for the process that sends.

    That one leaves by `os._exit`, past all that is done at an exit. Another, which only checks
    targets before the first step, leaves as usual, and is no part of the road.
    """
    met = Met(*os.environ[VARIABLE].split(os.pathsep))
    leave = os._exit

    def write_and_leave(code: int) -> None:
        met.write()
        leave(code)

    os._exit = write_and_leave  # type: ignore[assignment]
    met.is_noting = True
    met.start()


def train(root: str, folder: str) -> None:
    """Train for 200 steps with a loss that jumps at the 100th, until somebody is told."""
    import lightning.pytorch as pl
    import torch

    from phasewatch.callbacks import TransitionMonitor
    from support.targets import http_target

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def training_step(self, batch: Any, index: int) -> Any:
            level = 1.0 if self.global_step < 100 else 100.0
            noise = 0.01 * ((self.global_step * 7) % 5)
            loss = 0.0 * self.layer(batch[0]).sum() + level * (1.0 + noise)
            self.log("train_loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    met = Met(root, folder)

    class Walk(pl.Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            met.is_noting |= trainer.global_step == 2

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            watch = monitor.watch
            watch.drain()
            end = time.monotonic() + 60.0
            while watch.transitions and not target.seen and time.monotonic() < end:
                watch.drain()
                time.sleep(0.05)
            if target.seen:
                met.is_noting = False
                trainer.should_stop = True

    with http_target() as target:
        monitor = TransitionMonitor(
            config={
                "store": f"{folder}/runs.db",
                "observables": [],
                "exporter": {"enabled": False},
                "alerts": {"targets": [target.url], "picture": False},
            }
        )
        met.start()
        data = torch.utils.data.TensorDataset(torch.zeros(200, 1))
        trainer = pl.Trainer(
            max_epochs=1,
            accelerator="cpu",
            callbacks=[monitor, Walk()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Module(), torch.utils.data.DataLoader(data))
        assert target.seen, "nobody was told"
    met.write()


def main() -> None:
    """Train in a process of its own, whose child attends too; print what both met."""
    root, folder = sys.argv[1:3]
    if os.environ.get(VARIABLE):
        train(root, folder)
        return
    import subprocess

    tests = str(Path(__file__).parents[1])
    (Path(folder) / "sitecustomize.py").write_text(
        "import sys\n"
        "if any('worker' in word or 'alert_sender' in word for word in sys.orig_argv):\n"
        "    from support import road\n"
        "    road.attend()\n",
        encoding="utf-8",
    )
    environment = os.environ | {
        VARIABLE: os.pathsep.join((root, folder)),
        "PYTHONPATH": os.pathsep.join((folder, tests)),
    }
    command = [sys.executable, __file__, root, folder]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, cwd=folder)
    met: set[str] = set()
    for path in Path(folder).glob("met-*"):
        met |= set(path.read_text(encoding="utf-8").splitlines())
    print(len(met), len({line.partition(":")[0] for line in met}))


if __name__ == "__main__":
    main()
