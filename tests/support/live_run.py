"""A watched run that does as it is told on its standard input, in a process of its own.

`drop` lets the validation loss fall as in grokking, `nan` makes the training loss NaN, `hang`
stops stepping, `save` writes a checkpoint, `raise` fails, `end` ends well. What it says:
"ready ADDRESS", then "onset TIME" (Unix seconds) for `drop`, "found TIME" when the watch has
confirmed the transition, and "saved STEP". Where there is a checkpoint, it goes on from there.
"""

from __future__ import annotations

import json
import math
import pickle
import queue
import sys
import threading
import time
from pathlib import Path

import numpy as np

from phasewatch.monitor import Watch

RATE = 500
"""Steps a second."""

FALL = 60.0
"""Width of the fall of the loss, in steps; its middle is six of them after the command."""


def losses(step: int, dropped_at: int | None, noise: np.random.Generator) -> tuple[float, float]:
    """Training and validation loss: noise around a level each, until the validation loss falls."""
    val = math.log(4.0)
    if dropped_at is not None:
        val -= math.log(400.0) / (1.0 + math.exp(-(step - dropped_at - 6 * FALL) / FALL))
    return 0.01 * math.exp(0.05 * noise.normal()), math.exp(val + 0.02 * noise.normal())


def main() -> None:
    config = json.loads(sys.argv[1])
    checkpoint = Path(sys.argv[2])
    commands: queue.Queue[str] = queue.Queue()
    threading.Thread(
        target=lambda: [commands.put(line.strip()) for line in sys.stdin], daemon=True
    ).start()
    noise = np.random.default_rng(0)
    dropped_at, told, nan, step = None, False, False, 0
    watch = Watch(config)
    if checkpoint.exists():
        step, state = pickle.loads(checkpoint.read_bytes())
        watch.load_state_dict(state)
        watch.start(step)
    with watch:
        print("ready", watch.metrics_url, flush=True)
        begin = time.monotonic() - step / RATE
        while True:
            command = "" if commands.empty() else commands.get()
            if command == "drop":
                dropped_at = step
                print("onset", time.time(), flush=True)
            elif command == "nan":
                nan = True
            elif command == "hang":
                commands.get()
            elif command == "save":
                checkpoint.write_bytes(pickle.dumps((step, watch.state_dict())))
                print("saved", step, flush=True)
            elif command == "raise":
                raise ValueError("as told")
            elif command == "end":
                return
            step += 1
            train, val = losses(step, dropped_at, noise)
            scalars = {"train_loss": math.nan if nan else train}
            if step % 5 == 0:
                scalars["val_loss"] = val
            watch.observe(step, scalars)
            if sum(watch.health.transitions.values()) and not told:
                told = True
                print("found", time.time(), flush=True)
            time.sleep(max(0.0, begin + step / RATE - time.monotonic()))


if __name__ == "__main__":
    main()
