"""Records to store, complete and with awkward values."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from phasewatch.detectors.types import Alarm, AlarmKind, Direction
from phasewatch.monitor.alerts.message import Alert
from phasewatch.monitor.core.estimates import Estimate, EstimateStatus, Observation
from phasewatch.monitor.core.transitions import Transition, TransitionKind, TransitionStatus

NAN, INF = float("nan"), float("inf")


def make_observation(step: int, value: float = 0.5, **changes: Any) -> Observation:
    values: dict[str, Any] = {
        "name": "train_loss",
        "unit": "nats",
        "timestamp": 1_700_000_000.25 + step,
    }
    return Observation(step=step, value=value, **(values | changes))


def make_estimate(step: int = 7, **changes: Any) -> Estimate:
    values: dict[str, Any] = {
        "lambda_hat": 12.5,
        "lambda_stderr": INF,
        "init_loss": 0.125,
        "n_beta": 100.0,
        "n_samples": 1024,
        "step_size": 1e-5,
        "localization": 1.0,
        "num_chains": 2,
        "num_draws": 3,
        "num_burnin": 1,
        "status": EstimateStatus.UNCONVERGED,
        "reason": "R-hat 1.7",
        "duration_seconds": 0.5,
        "nu_hat": -INF,
        "rhat": 1.7,
        "n_data": 60_000,
        "sampler": "baoab",
        "engine": "vmap",
        "chain_loss": np.array([[0.5, NAN, -INF], [0.1, 0.2, 0.30000000000000004]]),
    }
    return Estimate(step=step, **(values | changes))


def make_transition(
    run: str,
    detected_step: int = 90,
    *,
    transition_id: str = "t1",
    attempt: int = 1,
    **changes: Any,
) -> Transition:
    alarm = Alarm(
        detected_step=detected_step,
        onset_step=detected_step - 10,
        direction=Direction.DOWN,
        kind=AlarmKind.SHIFT,
        score=1.5,
        run_length=10,
        value_before=2.0,
        value_after=NAN,
        onset_interval=(detected_step - 11, detected_step - 10),
        effect_sigma=6.0,
        rule="2 of 1 points, linear",
    )
    values: dict[str, Any] = {
        "kind": TransitionKind.GENERALISATION,
        "status": TransitionStatus.SUSPECTED,
        "onset_step": detected_step - 10,
        "detected_at": 1_700_000_090.5,
        "severity": INF,
        "evidence": {"val_loss": alarm},
        "before": {"val_loss": 2.0},
        "after": {"val_loss": NAN},
        "where": (("block.1", 0.25), ("head", 0.125)),
    }
    return Transition(
        id=transition_id,
        run=run,
        attempt=attempt,
        detected_step=detected_step,
        **(values | changes),
    )


def start_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A process of its own that runs `code`; its pipes are closed by `communicate`.

    Like the tests it finds `support`.
    """
    found = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, found))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(condition: Any, *, seconds: float = 20.0, what: str = "it") -> None:
    """Poll until the condition holds; fail if it never does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {seconds} s"
        time.sleep(0.02)


def make_alert(
    run: str = "demo", *, state: TransitionStatus = TransitionStatus.CONFIRMED, **changes: Any
) -> Alert:
    """An alert of a made-up transition; `changes` are of the transition."""
    found = make_transition("demo", status=state, **changes)
    return Alert(key="k", title="T", body="B", run=run, state=state, transition=found)
