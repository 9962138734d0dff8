"""λ̂ and transitions in the trainer's own loggers: TensorBoard, CSV, W&B, MLflow and others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from phasewatch.monitor.core.estimates import Estimate, EstimateStatus, Observation
from phasewatch.monitor.core.transitions import Transition, TransitionKind, TransitionStatus

PREFIX = "phasewatch/"
"""Begins every name that is logged: no name of the module's own is ever written to."""


class TrainerLoggers:
    """Writes into the loggers of a trainer, beside what the module logs, and never through it.

    Of λ̂: `phasewatch/llc` and `phasewatch/llc_stderr` where it passed its checks, else
    `phasewatch/llc_not_ok`. Of a transition, when it is confirmed: `phasewatch/transition_KIND`,
    its severity, and `phasewatch/transition_onset`; of one that is withdrawn later,
    `phasewatch/transition_withdrawn`, its onset. Steps are optimizer steps.

    Each fit may have a trainer of its own: `loggers` are those of the fit that goes on.
    """

    takes_scalars = False
    """Scalars are none of its business: it is not shown them."""

    def __init__(self) -> None:
        self.loggers: Sequence[Any] = ()
        self._told: dict[str, TransitionKind] = {}

    def emit(self, observation: Observation) -> None:
        """Log an estimate of λ̂."""
        if not isinstance(observation.detail, Estimate):
            return
        name = PREFIX + observation.name
        if observation.status is not EstimateStatus.OK:
            self._log({f"{name}_not_ok": observation.value}, observation.step)
            return
        values = {name: observation.value}
        if observation.stderr is not None:
            values[f"{name}_stderr"] = observation.stderr
        self._log(values, observation.step)

    def notify(self, transition: Transition) -> None:
        """Log a transition once it is confirmed, and again where its kind turns out another."""
        known = self._told.get(transition.id)
        if transition.status is TransitionStatus.WITHDRAWN:
            if self._told.pop(transition.id, None) is not None:
                values = {f"{PREFIX}transition_withdrawn": float(transition.onset_step)}
                self._log(values, transition.detected_step)
        elif transition.status is not TransitionStatus.SUSPECTED and known is not transition.kind:
            self._told[transition.id] = transition.kind
            values = {
                f"{PREFIX}transition_{transition.kind}": transition.severity,
                f"{PREFIX}transition_onset": float(transition.onset_step),
            }
            self._log(values, transition.detected_step)

    def flush(self) -> None:
        """Nothing is held back: loggers write when they please."""

    def close(self) -> None:
        """The loggers are the trainer's, which closes them."""

    def _log(self, values: Mapping[str, float], step: int) -> None:
        for logger in self.loggers:
            if any(kind.__name__ == "WandbLogger" for kind in type(logger).__mro__):
                _log_beside(logger, values, step)
            else:
                logger.log_metrics(dict(values), step=step)


def _log_beside(logger: Any, values: Mapping[str, float], step: int) -> None:
    """Log to W&B, whose own step counts the calls: these go with the next row, and move nothing."""
    run = logger.experiment
    run.define_metric(f"{PREFIX}*", step_metric=f"{PREFIX}step")
    run.log({**values, f"{PREFIX}step": step}, commit=False)
