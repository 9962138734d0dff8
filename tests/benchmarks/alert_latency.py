"""How long an alert takes from a training process to a webhook, through real servers.

    python tests/benchmarks/alert_latency.py

Prometheus scrapes and evaluates every second; Alertmanager waits one second for others of a group.
Needs the programs `prometheus` and `alertmanager` (or `prometheus-alertmanager`).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from phasewatch.monitor.core.errors import PhasewatchError
from phasewatch.monitor.operations.stack import ALERTMANAGER, PROMETHEUS, find_program
from support.alerting import Inbox, LiveRun, QuickStack, open_inbox, quick_stack
from support.records import wait_until

ROWS = {
    "sample": "run says it is ready → first sample in Prometheus",
    "transition": "transition confirmed in the process → webhook",
    "onset": "loss begins to fall → webhook",
    "resolved": "transition told → told that it is over (10 s window)",
    "crash": "kill -9 → webhook (rule waits 3 s)",
    "cleared": "target file removed → crash is told to be over",
}
PATIENCE = 120.0


def received(inbox: Inbox, status: str, name: str, run: str) -> float:
    """When the webhook heard of an alert first."""
    wait_until(
        lambda: inbox.alerts(status, alertname=name, run=run),
        seconds=PATIENCE,
        what=f"{name} of {run}",
    )
    return float(inbox.alerts(status, alertname=name, run=run)[0]["received"])


def once(name: str, folder: Path, stack: QuickStack, inbox: Inbox) -> dict[str, float]:
    """One run: seconds of each row."""
    run = LiveRun(name, folder, targets_dir=str(stack.targets))
    ready = time.time()
    wait_until(lambda: stack.state_of(name) == "running", seconds=PATIENCE, what="first sample")
    sample = time.time()
    time.sleep(3)  # some points before the loss falls
    run.tell("drop")
    onset, found = float(run.hear("onset")), float(run.hear("found"))
    told = received(inbox, "firing", "PhasewatchTransition", name)
    over = received(inbox, "resolved", "PhasewatchTransition", name)
    killed = time.time()
    run.kill()
    crash = received(inbox, "firing", "PhasewatchRunCrashed", name)
    for file in stack.targets.glob("*.json"):
        file.unlink()
    cleared = time.time()
    return {
        "sample": sample - ready,
        "transition": told - found,
        "onset": told - onset,
        "resolved": over - told,
        "crash": crash - killed,
        "cleared": received(inbox, "resolved", "PhasewatchRunCrashed", name) - cleared,
    }


def main() -> None:
    """Run, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    try:
        for names in (PROMETHEUS, ALERTMANAGER):
            find_program(names)
    except PhasewatchError as error:
        print(f"skipped: {error}")
        return
    with tempfile.TemporaryDirectory() as place, open_inbox() as inbox:
        folder = Path(place)
        with quick_stack(folder / "stack", inbox) as stack:
            found = [once(f"run-{index}", folder, stack, inbox) for index in range(options.repeats)]
    title = f"seconds, of {options.repeats} runs"
    print(f"{title:55s} {'median':>7s} {'least':>7s} {'most':>7s}")
    for key, text in ROWS.items():
        values = np.array([one[key] for one in found])
        print(f"{text:55s} {np.median(values):7.2f} {values.min():7.2f} {values.max():7.2f}")


if __name__ == "__main__":
    main()
