"""λ̂ and transitions in the trainer's own loggers: TensorBoard, CSV, W&B, MLflow and others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from phasewatch.monitor.core.errors import PhasewatchError
from phasewatch.monitor.core.estimates import Estimate, EstimateStatus, Observation
from phasewatch.monitor.core.transitions import Transition, TransitionKind, TransitionStatus

PREFIX = "phasewatch/"
"""Begins every name that is logged: no name of the module's own is ever written to."""


class TrainerLoggers:
    """Writes into the loggers of a trainer, beside what the module logs, and never through it.

    Of λ̂: `phasewatch/llc` and `phasewatch/llc_stderr` where it passed its checks, else
    `phasewatch/llc_not_ok`. Of a transition, when it is confirmed: `phasewatch/transition_KIND`,
    its severity, and `phasewatch/transition_onset`; of one that is withdrawn later,
    `phasewatch/transition_withdrawn`, its onset. Steps are optimizer steps: in W&B those of
    `phasewatch/llc_step` and `phasewatch/transition_step`.

    Each fit may have a trainer of its own: `loggers` are those of the fit that goes on.
    """

    takes_scalars = False
    """Scalars are none of its business: it is not shown them."""

    def __init__(self) -> None:
        self.loggers: Sequence[Any] = ()
        self._told: dict[str, TransitionKind] = {}
        self._axes: set[tuple[int, str]] = set()
        self._rows: dict[tuple[int, str], int] = {}

    def emit(self, observation: Observation) -> None:
        """Log an estimate of λ̂."""
        if not isinstance(observation.detail, Estimate):
            return
        name = PREFIX + observation.name
        if observation.status is not EstimateStatus.OK:
            self._log({f"{name}_not_ok": observation.value}, observation.step, name)
            return
        values = {name: observation.value}
        if observation.stderr is not None:
            values[f"{name}_stderr"] = observation.stderr
        self._log(values, observation.step, name)

    def notify(self, transition: Transition) -> None:
        """Log a transition once it is confirmed, and again where its kind turns out another."""
        known = self._told.get(transition.id)
        name = f"{PREFIX}transition"
        if transition.status is TransitionStatus.WITHDRAWN:
            if self._told.pop(transition.id, None) is not None:
                values = {f"{name}_withdrawn": float(transition.onset_step)}
                self._log(values, transition.detected_step, name)
        elif transition.status is not TransitionStatus.SUSPECTED and known is not transition.kind:
            self._told[transition.id] = transition.kind
            values = {
                f"{name}_{transition.kind}": transition.severity,
                f"{name}_onset": float(transition.onset_step),
            }
            self._log(values, transition.detected_step, name)

    def flush(self) -> None:
        """Nothing is held back: loggers write when they please."""

    def close(self) -> None:
        """The loggers are the trainer's, which closes them."""

    def _log(self, values: Mapping[str, float], step: int, name: str) -> None:
        """Log what is known of `name`, λ̂ or the transitions, at a step."""
        replaces = False
        for logger in self.loggers:
            if any(kind.__name__ == "WandbLogger" for kind in type(logger).__mro__):
                replaces |= self._log_beside(logger.experiment, values, step, name)
            else:
                logger.log_metrics(dict(values), step=step)
        if replaces:
            raise PhasewatchError(
                f"W&B takes {name} with the next row of the trainer, and none came between two of "
                f"them: that of step {step} stands for both. Let the trainer log more often "
                "(log_every_n_steps), or measure less often; the run's own history has them all"
            )

    def _log_beside(self, run: Any, values: Mapping[str, float], step: int, name: str) -> bool:
        """Log to W&B, whose own step counts the rows: these go with the next, and move nothing.

        Each name has a step of its own, for what comes at different steps may share a row.

        Returns:
            Whether they take the place of others that no row has taken.
        """
        axis = f"{name}_step"
        for shown in values:
            if (id(run), shown) not in self._axes:
                self._axes.add((id(run), shown))
                run.define_metric(shown, step_metric=axis)
        run.log({**values, axis: step}, commit=False)
        replaces = bool(self._rows.get((id(run), name)) == run.step)
        self._rows[id(run), name] = run.step
        return replaces
