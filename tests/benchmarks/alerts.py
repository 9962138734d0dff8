"""Processor time that alerts take in the training process while no target takes them.

A loop of small steps is watched twice in one process: with two targets that fail (one answers 501,
at one nobody listens), and without any. A transition is told in every window of both. Windows
alternate; printed are the median difference of the process's processor time, all its threads
included, as a share of wall time, and the interval between the 5th and 95th percentile of its
bootstrap. The sending process counts for itself: its share is printed beside.
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from phasewatch.detectors.types import Alarm, AlarmKind, Direction
from phasewatch.monitor import Watch
from phasewatch.monitor.core.transitions import Transition, TransitionKind, TransitionStatus


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def transition(watch: Watch, number: int) -> Transition:
    """A confirmed transition."""
    alarm = Alarm(
        detected_step=number,
        onset_step=number,
        direction=Direction.DOWN,
        kind=AlarmKind.SHIFT,
        score=2.0,
        run_length=10,
        value_before=2.0,
        value_after=0.1,
    )
    return Transition(
        id=f"{watch.run_name}-{number}",
        run=watch.run_id,
        attempt=1,
        kind=TransitionKind.GENERALISATION,
        status=TransitionStatus.CONFIRMED,
        onset_step=number,
        detected_step=number,
        detected_at=time.time(),
        severity=1.3,
        evidence={"val_loss": alarm},
        before={"val_loss": 2.0},
        after={"val_loss": 0.1},
    )


def window(watch: Watch, number: int, seconds: float) -> float:
    """Processor seconds for a second of wall time in a window of training."""
    noise = np.random.default_rng(number)
    weights = noise.normal(size=(128, 128))
    watch._sinks.notify(transition(watch, number))
    started, used = time.perf_counter(), time.process_time()
    step = watch.health.step
    while time.perf_counter() < started + seconds:
        step += 1
        weights = np.tanh(weights @ weights.T / 128)
        watch.observe(step, {"train_loss": 1.0, "val_loss": 1.0})
        time.sleep(0.002)  # as when a device computes
    watch.drain()
    return (time.process_time() - used) / (time.perf_counter() - started)


def cpu_seconds(pid: int) -> float:
    """Processor time of another process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Run the windows and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=24, help="pairs of windows")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a window")
    options = parser.parse_args()
    logging.getLogger("phasewatch").setLevel(logging.ERROR)
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    quiet = {"observables": [], "exporter": {"enabled": False}}
    urls = [f"json://127.0.0.1:{port}", f"json://127.0.0.1:{free_port()}"]
    with tempfile.TemporaryDirectory() as folder:
        alerts = {"targets": urls, "grace_seconds": 0.0}
        told = Watch(quiet | {"store": f"{folder}/a.db", "run_name": "told", "alerts": alerts})
        mute = Watch(quiet | {"store": f"{folder}/b.db", "run_name": "mute"})
        told.start()
        mute.start()
        window(told, 0, options.seconds)  # the sender starts
        sender = told._sinks._alerts._process.pid
        before, began = cpu_seconds(sender), time.perf_counter()
        differences = []
        for pair in range(1, options.pairs + 1):
            order = (told, mute) if pair % 2 else (mute, told)
            used = {watch: window(watch, pair, options.seconds) for watch in order}
            differences.append(used[told] - used[mute])
        apart = (cpu_seconds(sender) - before) / (time.perf_counter() - began)
        told.finish()
        mute.finish()
    server.terminate()
    server.wait()
    values = np.asarray(differences)
    drawn = np.random.default_rng(0).choice(values, (2000, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.05, 0.95))
    print(f"{'pairs':>6s} {'in training':>12s} {'interval':>20s} {'sender':>8s} {'failed':>7s}")
    print(
        f"{len(values):6d} {np.median(values):12.3%} {f'{low:.3%} to {high:.3%}':>20s} "
        f"{apart:8.2%} {told.health.alert_failures:7d}"
    )


if __name__ == "__main__":
    main()
