"""A run history filled by hand: what a grokking run leaves in the store."""

from __future__ import annotations

import dataclasses
import math
import time

import numpy as np

from phasewatch.detectors.types import Alarm, Direction
from phasewatch.monitor.core.columns import unit_of
from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.estimates import Estimate, EstimateStatus, Observation
from phasewatch.monitor.core.transitions import Transition, TransitionKind, TransitionStatus
from phasewatch.monitor.store.store import Store

RUN_ID = "0123456789abcdef0123456789abcdef"


def estimate(step: int, value: float, status: EstimateStatus = EstimateStatus.OK) -> Estimate:
    chains = 0.1 + 0.01 * np.random.default_rng(step).standard_normal((4, 32))
    return Estimate(
        step=step,
        lambda_hat=value,
        lambda_stderr=abs(value) * 0.05 if math.isfinite(value) else math.nan,
        init_loss=0.05,
        n_beta=190.0,
        n_samples=1400,
        step_size=1e-3,
        localization=100.0,
        num_chains=4,
        num_draws=32,
        num_burnin=8,
        status=status,
        reason="" if status is EstimateStatus.OK else "drift 0.31 is above 0.2",
        duration_seconds=0.5,
        chain_loss=chains,
        rhat=1.02,
        ess=40.0,
        virial=0.98,
        drift=0.03,
        sampler="baoab",
        engine="vmap",
    )


def transition(
    *,
    kind: TransitionKind = TransitionKind.GENERALISATION,
    status: TransitionStatus = TransitionStatus.ENDED,
    onset: int = 500,
    detected: int = 600,
    end: int | None = 900,
    stream: str = "val_loss",
) -> Transition:
    alarm = Alarm(
        detected_step=detected,
        onset_step=onset,
        direction=Direction.DOWN,
        score=2.5,
        run_length=10,
        value_before=9.0,
        value_after=0.5,
    )
    return Transition(
        id=f"{kind}-{onset}",
        run=RUN_ID,
        attempt=1,
        kind=kind,
        status=status,
        onset_step=onset,
        detected_step=detected,
        end_step=end,
        detected_at=time.time(),
        severity=1.25,
        evidence={stream: alarm},
        before={stream: 9.0},
        after={stream: 0.5},
        where=(("net.0.weight", 0.41),),
    )


def fill(
    store: Store,
    *,
    name: str = "by hand",
    steps: int = 1000,
    every: int = 10,
    extra: str | None = None,
    transitions: tuple[Transition, ...] | None = None,
    run_id: str = RUN_ID,
) -> str:
    """Write one finished run; `extra` is the name of one more stream."""
    store.begin_run(name=name, run_id=run_id, attempt=1, config={"seed": 7, "note": name})
    for step in range(every, steps + 1, every):
        done = 1 / (1 + math.exp((step - 0.6 * steps) / (0.05 * steps)))
        values = {
            "train_loss": 4 * math.exp(-step / (0.05 * steps)) + 1e-6,
            "val_loss": 1e-3 + 9 * done,
            "val_accuracy": 1 - done,
            "gradient_norm": 0.1,
            "weight_norm": 30.0 - step / steps,
            "weight_norm/net.0": 20.0,
        }
        if extra is not None:
            values[extra] = 1.0
        for stream, value in values.items():
            observation = Observation(name=stream, step=step, value=value, unit=unit_of(stream))
            store.add_observation(run_id, 1, observation)
        if step % (4 * every) == 0:
            _add_llc(store, run_id, step, 200 * done + 1, EstimateStatus.OK)
    _add_llc(store, run_id, steps // 4 + 1, 150.0, EstimateStatus.UNCONVERGED)
    _add_llc(store, run_id, steps // 3, math.nan, EstimateStatus.DIVERGED)
    for one in (transition(),) if transitions is None else transitions:
        store.add_transition(dataclasses.replace(one, run=run_id, id=f"{run_id[:4]}-{one.id}"))
    store.end_run(run_id, 1, RunState.FINISHED)
    return run_id


def _add_llc(store: Store, run_id: str, step: int, value: float, status: EstimateStatus) -> None:
    detail = estimate(step, value, status)
    store.add_observation(
        run_id,
        1,
        Observation(
            name="llc",
            step=step,
            value=value,
            stderr=detail.lambda_stderr,
            status=status,
            reason=detail.reason,
            detail=detail,
        ),
    )
