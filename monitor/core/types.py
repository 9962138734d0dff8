"""Names that have moved to modules of their own in this room."""

from __future__ import annotations

from phasewatch.monitor.core.context import (
    LossFn,
    MeasureContext,
    MicroBatches,
    SharedWork,
    StepRecord,
)
from phasewatch.monitor.core.contracts import Observable, Sink
from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.estimates import Estimate, EstimateStatus, Observation
from phasewatch.monitor.core.transitions import (
    Hindsight,
    HindsightVerdict,
    Recipient,
    Transition,
    TransitionKind,
    TransitionStatus,
)
from phasewatch.monitor.core.work import Cost, Steps, T, Work, run_through

__all__ = [
    "Cost",
    "Estimate",
    "EstimateStatus",
    "Hindsight",
    "HindsightVerdict",
    "LossFn",
    "MeasureContext",
    "MicroBatches",
    "Observable",
    "Observation",
    "Recipient",
    "RunState",
    "SharedWork",
    "Sink",
    "StepRecord",
    "Steps",
    "T",
    "Transition",
    "TransitionKind",
    "TransitionStatus",
    "Work",
    "run_through",
]
