"""One watched run: measure → store → detect → fuse → emit. The only place that knows the order."""

from __future__ import annotations

import html
import logging
import math
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from phasewatch.detectors.base import Detector
from phasewatch.monitor.config.alerts import resolve_targets
from phasewatch.monitor.config.monitor import MonitorConfig
from phasewatch.monitor.core.arguments import named_arguments
from phasewatch.monitor.core.columns import Column, chunked
from phasewatch.monitor.core.context import LossFn, MeasureContext, MicroBatches, StepRecord
from phasewatch.monitor.core.contracts import Observable, Sink
from phasewatch.monitor.core.ending import RunState, ended_by, reason_for
from phasewatch.monitor.core.errors import ConfigError, PhasewatchError, RefusedError, StoreError
from phasewatch.monitor.core.estimates import Estimate, Observation
from phasewatch.monitor.core.forecast import ForecastRow
from phasewatch.monitor.core.health import Health
from phasewatch.monitor.core.history import History
from phasewatch.monitor.core.meaning import DENSITY
from phasewatch.monitor.core.stray import let_through
from phasewatch.monitor.core.transitions import Transition
from phasewatch.monitor.observables.llc.values import Moment, beside, observed_llc
from phasewatch.monitor.run.budget import GRACE_SECONDS
from phasewatch.monitor.run.buffer import ScalarBuffer
from phasewatch.monitor.run.checkpoints import Checkpoints
from phasewatch.monitor.run.console import ensure_heard
from phasewatch.monitor.run.failures import Failures
from phasewatch.monitor.run.forecast import headline_of, table_of
from phasewatch.monitor.run.installed_sinks import open_installed
from phasewatch.monitor.run.keeper import Keeper
from phasewatch.monitor.run.last_look import look_back, say_goodbye
from phasewatch.monitor.run.measurements import Measuring
from phasewatch.monitor.run.notebook import open_notebook
from phasewatch.monitor.run.opening import (
    open_alerts,
    open_annotations,
    open_exporter,
    open_store,
    store_url,
)
from phasewatch.monitor.run.resuming import (
    CARRY_SECONDS,
    NOTHING,
    Saved,
    enter_what_is_missing,
    go_on,
)
from phasewatch.monitor.run.road import Road
from phasewatch.monitor.run.roster import Roster
from phasewatch.monitor.run.run_names import Runs, StepCount, new_name
from phasewatch.monitor.run.shown import as_card, in_a_line
from phasewatch.monitor.run.sinks import Sinks
from phasewatch.monitor.run.subject import Given, Seen, Subject
from phasewatch.monitor.store.store import Store
from phasewatch.monitor.transitions.pipeline import Detection
from phasewatch.monitor.transitions.thinning import Thinner

if TYPE_CHECKING:
    from torch import nn

    from phasewatch.monitor.reports.png import Picture
    from phasewatch.monitor.run.live_model import PlainSubject
    from phasewatch.monitor.sampling.evaluation_cost import EvaluationCost

log = logging.getLogger("phasewatch")

DETECTION_SHARE = 0.5
"""Of the budget, what detection may take; beyond it, it sees fewer points."""

CLOSING_SHARE, CLOSING_SECONDS = 0.6, GRACE_SECONDS / 2.0
"""What is kept for looking back at the end: it takes .5 to .7 of what the thread that detects took
in a short run, and less of a long one. Half of what a run may take at once is left for λ̂ of the
final weights in any case."""

STATE_SECONDS = 10.0
"""How long a checkpoint waits for detection."""


class Watch:
    """Watches one training run: keeps what it sees, and says when the model changes in kind.

    In a plain training loop:

        with Watch(probe=batches, loss_fn=loss_fn) as watch:
            watch.check(model)  # what cannot be measured is said now
            for step, batch in enumerate(loader, start=1):
                ...  # forward, backward
                watch.before_step(step, model.named_parameters())
                optimizer.step()
                watch.observe(step, {"train_loss": loss.detach()})
                if watch.due(step):
                    watch.probe(step, model)

    Args:
        config: A `MonitorConfig`, a mapping, or the path of a YAML file.
        probe: Data on which a plain loop's model is measured: dataset, loader or batches.
        val_probe: The same of validation data.
        loss_fn: `loss_fn(model, batch)`, per-sample losses or their mean, in nats.
        n_samples: Number of terms that the loss averages over in a plain loop's probe; None
            counts samples. Give it for losses per token.
        agree: Joint measuring on several ranks: told whether this rank's measurement succeeded,
            it answers whether all did. None measures alone.
        observables: Names or objects, in place of those of the configuration.
        detectors: Detector, or its name, by stream name.
        sinks: Further places that results go to.
        root: Folder under which a relative store path lies.
        save: Writes a checkpoint of the whole training to the path that it is given: a file, ending
            in ".pt". Called from `probe`, where `checkpoint_on` is set.

    Raises:
        ConfigError: The configuration is wrong, or names something nobody registered.
    """

    @named_arguments
    def __init__(
        self,
        config: MonitorConfig | Mapping[str, Any] | str | Path | None = None,
        *,
        probe: Any = None,
        val_probe: Any = None,
        loss_fn: LossFn | None = None,
        n_samples: int | None = None,
        agree: Callable[[bool], bool] | None = None,
        observables: Iterable[str | Observable] | None = None,
        detectors: Mapping[str, Detector | str] | None = None,
        sinks: Sequence[Sink] = (),
        root: Path | None = None,
        save: Callable[[Path], object] | None = None,
    ) -> None:
        self.config = MonitorConfig.load(config)
        self._alert_targets = resolve_targets(self.config.alerts)
        self.health = Health(overhead_budget=self.config.budget)
        self.run_id = uuid.uuid4().hex
        self.run_name = self.config.run_name or new_name()
        self.attempt = 0
        self._runs = Runs(self.run_name)
        self._saved: Saved | None = None
        self._durable: Mapping[str, Any] = NOTHING
        self._steps = StepCount()
        self._told_repeats = False
        self._probe = probe
        self._val_probe = val_probe
        self._loss_fn = loss_fn
        self._n_samples = n_samples
        self._agree = agree
        self._user_sinks = tuple(sinks)
        self._root = root
        self.failures = Failures(self.health)
        self._headline = ""
        if save is not None and not callable(save):
            raise ConfigError(f"save: got {save!r}; give a function that writes to a path")
        self._save = save
        self.checkpoints: Checkpoints | None = None
        if save is not None:
            self.keep_checkpoints(".pt")
        self._given = (observables if observables is None else [*observables], detectors)
        self._make_parts()
        self._buffer = ScalarBuffer()
        self._road: Road | None = None
        self._beside_before = 0.0
        self._record: StepRecord | None = None
        self._micro_batches: tuple[int, MicroBatches] | None = None
        self._learning_rate: float | None = None
        self._sinks: Sinks | None = None
        self._ended_store: Store | None = None
        self._expected_steps: float = math.inf
        self._drained = (0, time.perf_counter())
        self._plain: PlainSubject | None = None
        self._subject: Subject | None = None

    def _make_parts(self) -> None:
        """Make what observes one run: its measuring and its detection."""
        observables, detectors = self._given
        roster = Roster(self.config, self.health, observables)
        self._measuring = Measuring(roster, self.health, self.config.seed)
        self._measuring.watchdog.patience_seconds = self.config.patience_seconds
        self._planner = self._measuring.planner
        self._detection = Detection(
            self.config,
            detectors,
            self.run_id,
            self.health,
            locate=self._measuring.roster.locate,
            declared=self._measuring.roster.declared,
        )
        self._thinner = Thinner(self._detection.meanings)
        self._runs.make_fresh(*self._given)
        if self.checkpoints is not None:
            self.keep_checkpoints(self.checkpoints.keeper.suffix)

    # ---- life cycle

    def start(self, step: int = 0, *, expected_steps: float = math.inf) -> None:
        """Begin an attempt of this run, or go on with it, at `step`.

        Steps that go back without the state of a checkpoint are a new run, such as the next of
        several folds: it is watched from its beginning, under the name `NAME/2`, `NAME/3` and on.

        Args:
            step: Optimizer steps completed so far.
            expected_steps: Step at which the run is expected to end, if known.

        Raises:
            ConfigError: A store or exporter that the user named cannot be used.
        """
        if self._sinks is not None:
            return
        if self.config.checkpoint_on is not None and self.checkpoints is None:
            raise ConfigError(
                f"checkpoint_on: got {self.config.checkpoint_on!r}, and this loop has not said how "
                "a checkpoint is written; give Watch(save=lambda path: torch.save({'step': …, "
                "'model': model.state_dict(), 'optimizer': optimizer.state_dict()}, path)), or "
                "leave checkpoint_on out"
            )
        ensure_heard()
        if self._save is not None and self.checkpoints is None:
            log.info("save is given and checkpoint_on is not set: no checkpoints are kept")
        if self.attempt and self._saved is None and step < self.health.step:
            self._begin_anew(step)
        self._steps = StepCount()
        self._expected_steps = expected_steps
        self._planner.start(step, expected_steps)
        with self.spending():
            self._open(step, expected_steps)

    def _open(self, step: int, expected_steps: float) -> None:
        """Open the store and the sinks of an attempt that begins."""
        self._drained = (step, time.perf_counter())
        self.health.state = RunState.RUNNING
        self.health.step = step
        self.health.last_step_timestamp = time.time()
        resumed_step = step if self.attempt else None
        if resumed_step is None:
            self._detection.expect(step, expected_steps)
        store = open_store(
            self.config, self._root, self.health, lambda store: self._begin(store, resumed_step)
        )
        self._detection.start(self.run_id, self.attempt)
        self.health.born(
            self._measuring.roster.names, [type(sink).__name__ for sink in self._user_sinks]
        )
        try:
            alerts = open_alerts(self.config, self._alert_targets, store, self.run_id, self.health)
            sinks = [
                *open_annotations(
                    self.config,
                    self.run_name,
                    self.health,
                    self._detection.meanings,
                    run_id=self.run_id,
                ),
                *open_exporter(
                    self.config,
                    self.run_name,
                    self.health,
                    self._detection.meanings,
                    run_id=self.run_id,
                    attempt=self.attempt,
                ),
            ]
            own_sinks = [
                *open_installed(self.config, self.run_name, self.health),
                *self._open_notebook(),
                *self._user_sinks,
            ]
        except BaseException as error:
            store.end_run(self.run_id, self.attempt, RunState.FAILED, str(error))
            store.close()
            raise
        self._sinks = Sinks(
            store,
            sinks,
            self.health,
            self.run_id,
            self.attempt,
            alerts,
            own_sinks,
            watchdog=self._measuring.watchdog,
        )
        if resumed_step is not None:
            saved, self._saved = self._saved, None
            if saved is not None:
                enter_what_is_missing(
                    store,
                    saved,
                    (self.run_id, self.attempt),
                    self.transitions,
                    keep=self._sinks.keep,
                    notify=self._sinks.notify,
                )
            self._catch_up(self._sinks, resumed_step)
        self._road = Road(
            self._buffer,
            self._sinks,
            self._detection,
            self._thinner,
            self.health,
            share=DETECTION_SHARE * self.config.budget,
            beside=self._detection.is_ours and self._measuring.roster.locates_by_itself,
            look=self._measuring.look_at,
            tell=self._tell_around,
        )
        if self.checkpoints is not None:
            folder = (self._root or Path()) / self.config.around.folder / self.run_id
            self.checkpoints.keeper.open(folder, step, self.attempt, expected_steps)

    def _open_notebook(self) -> Sequence[Sink]:
        """The table of this fit where it is called from a notebook, if it is wanted there."""
        if not self.config.notebook:
            return ()
        key = f"phasewatch-{self.run_id}-{self.attempt}"
        return open_notebook(self.run_name, self.health, self._detection.meanings, key=key)

    def _begin_anew(self, step: int) -> None:
        """Steps have gone back: from here on it is another run."""
        before, last = self.run_name, self.health.step
        self.run_id, self.run_name = uuid.uuid4().hex, self._runs.next_name()
        self.attempt, self._durable = 0, NOTHING
        self.health = Health(overhead_budget=self.config.budget)
        self.failures = Failures(self.health)
        self._make_parts()
        log.info(
            "steps go back from %d to %d without a checkpoint: run %s is over, this is run %s",
            last,
            step,
            before,
            self.run_name,
        )

    def _catch_up(self, sinks: Sinks, step: int) -> None:
        """Detect on what was observed at `step` after the checkpoint, such as its validation."""
        try:
            stored = list(sinks.store.in_order(self.run_id, step=step, attempt=self.attempt))
        except StoreError as error:
            log.warning("what was observed at step %d is not looked at again: %s", step, error)
            return
        for chunk in chunked(filter(self._detection.is_new, stored)):
            for transition in self._detection.take_chunk(chunk):
                sinks.notify(transition)

    def _begin(self, store: Store, resumed_step: int | None) -> None:
        # A database URL may hold a password; what is kept names the place without it.
        config = self.config.model_dump(mode="json") | {
            "store": store.where,
            "detectors": self._detection.streams.settings(),
            "streams": self._detection.meanings.settings(),
            "horizon": self._detection.streams.horizon,
        }
        name = self.run_name
        if resumed_step is None:
            self.run_id, self.attempt = store.begin_run(
                name=name, run_id=self.run_id, attempt=self.attempt + 1, config=config
            )
            return
        saved = self._saved = self._saved or Saved(
            run_id=self.run_id, name=name, attempt=self.attempt, durable=self._durable
        )
        begun = go_on(
            store,
            saved,
            name=name,
            step=resumed_step,
            config=config,
            transitions=self.transitions,
        )
        self.run_id, self.attempt, self.run_name = begun.run_id, begun.attempt, begun.name

    def finish(self, state: RunState = RunState.FINISHED, reason: str = "") -> None:
        """End the attempt: everything observed is stored, every sink closed. Idempotent."""
        if self._sinks is not None:
            with self.spending():
                self._close(self._sinks, state, reason)

    def _close(self, sinks: Sinks, state: RunState, reason: str) -> None:
        store = sinks.store
        try:
            if state is RunState.FINISHED and self._subject is not None:
                self.measure_last(self.health.step, self._subject, self.health.epoch)
            if self._road is not None:
                self._road.close()
            for transition in self._detection.finish():
                self._tell_around(transition)
                sinks.notify(transition)
            if self.checkpoints is not None:
                is_over = state in (RunState.FINISHED, RunState.STOPPED)
                self.checkpoints.keeper.close(is_over=is_over)
                self.checkpoints.enter_changed()
            for transition in self._detection.grown():
                sinks.keep(transition)  # it grew since it was told: no news for a sink
            if state in (RunState.FINISHED, RunState.STOPPED):
                look_back(
                    sinks,
                    self._detection,
                    self.transitions,
                    run_id=self.run_id,
                    attempt=self.attempt,
                )
        finally:
            self._refresh_health(sinks)
            self._beside_before = self.health.beside_seconds_total
            self._sinks = self._road = None
            self.health.state = state
            sinks.flush()
            store.end_run(self.run_id, self.attempt, state, reason)
            sinks.close()
            self._durable = store.carry(self.run_id, 0.0)
            if store.is_in_memory:
                self._ended_store = store  # closing would lose the only copy
            else:
                store.close()
            self._refresh_health(sinks)  # after the last write: what was lost is counted by now
        say_goodbye(self.run_name, state, self.transitions, store)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.finish(RunState.FINISHED)
        else:
            self.finish(ended_by(error, self.config.stop_exceptions), reason_for(error))

    # ---- what training calls

    def observe(self, step: int, scalars: Mapping[str, Any], epoch: int | None = None) -> None:
        """Keep one step's scalars; a thread beside training reads, stores and detects them.

        Args:
            step: Optimizer steps completed.
            scalars: Floats or detached 0-dim tensors, by stream name; not read here, so that a
                tensor must not be changed in place. A float
                named "lr" is the learning rate of the coming step, for observables that ask.
            epoch: Epoch, if known.
        """
        if "lr" in scalars and isinstance(scalars["lr"], float):
            self._learning_rate = scalars["lr"]
        if (counted := self._steps.passed(step, scalars)) != step:
            step = self._count_on(counted)
        if self._buffer.append(step, scalars, epoch):
            self._hand_over()

    def observe_estimate(self, step: int, estimate: Estimate, epoch: int | None = None) -> None:
        """Take up λ̂ that the training loop measured by itself, as the stream "llc".

        So it is watched where this process cannot measure alone: `estimate_llc` on every process
        of a sharded model, this in the one that has the watch. It is stored, detected on and told
        like what the watch measures. Measure within `spending`, so that it counts as overhead.

        Args:
            step: Optimizer steps completed at the weights that were measured.
            estimate: What `estimate_llc` gave.
            epoch: Epoch, if known.
        """
        with self.spending(), self.failures.surviving(step):
            step = self._steps.at(step)
            self._hand_over()
            self.health.measured("llc", estimate.duration_seconds, step)
            self.health.estimates[estimate.status] += 1
            estimate, when = replace(estimate, step=step), Moment(step, epoch)
            self._take_up([observed_llc(when, "llc", estimate), *beside(when, "llc", estimate)])

    def _count_on(self, step: int) -> int:
        """Say once that the steps of this loop repeat; the run's go on."""
        if not self._told_repeats:
            self._told_repeats = True
            log.warning(
                "steps begin anew without a checkpoint: a loop that counts from the first step in "
                "each epoch. They are counted on: this is step %d of the run. Count steps through "
                "all epochs to choose the numbers yourself",
                step,
            )
        return step

    def due(self, step: int) -> bool:
        """Whether something is to be measured at `step`; the answer for a step does not change."""
        if step < self.failures.resumes_at:
            return False
        at = self._steps.at(step)
        if self._planner.due(at):
            return True
        kept = self.checkpoints  # adapters ask for these by themselves
        return self._save is not None and kept is not None and kept.keeper.due(at)

    def before_step(
        self,
        step: int,
        named_parameters: Iterable[tuple[str, Any]],
        *,
        loss_scale: float = 1.0,
    ) -> None:
        """Look at gradients and weights just before the optimizer steps to `step`, if it is due.

        Args:
            step: Count of optimizer steps after the coming one.
            named_parameters: The live parameters; read, never written.
            loss_scale: What a gradient scaler multiplied the loss by, where the gradients are not
                unscaled yet: `scaler.get_scale()`.
        """
        step = self._steps.at(step)
        if step < self.failures.resumes_at or not self._planner.due(step):
            return
        record, keeps = self._measuring.looks_before(step)
        if not record:
            return
        with self.spending(), self.failures.surviving(step):
            from phasewatch.monitor.observables.weights.norms import record_step  # imports torch

            self._record = record_step(
                step, named_parameters, keep_params=keeps, loss_scale=loss_scale
            )

    def after_backward(
        self,
        step: int,
        named_parameters: Iterable[tuple[str, Any]],
        num_samples: int,
        *,
        loss_scale: float = 1.0,
        num_replicas: int = 1,
    ) -> None:
        """Look at the gradient of the first of several micro-batches that make up a step.

        For the gradient noise scale: call it after the backward pass of each micro-batch.

        Args:
            step: Count of optimizer steps after the coming one.
            named_parameters: The live parameters; read, never written.
            num_samples: Samples of this micro-batch; 0 spoils the step, for it is not known.
            loss_scale: What a gradient scaler multiplied the loss by: `scaler.get_scale()`.
            num_replicas: Processes whose gradients are averaged only after the last micro-batch.
        """
        step = self._steps.at(step)
        if not self._planner.due(step):
            return
        if self._micro_batches is None or self._micro_batches[0] != step:
            from phasewatch.monitor.observables.weights.norms import gradient_norm  # imports torch

            with self.spending():
                norm = gradient_norm(named_parameters) / loss_scale
            seen = MicroBatches(first_norm=norm, num_samples=(), num_replicas=num_replicas)
        else:
            seen = self._micro_batches[1]
        seen = replace(seen, num_samples=(*seen.num_samples, num_samples))
        self._micro_batches = (step, seen)

    def bound_turns(self, seconds: float) -> None:
        """Let no turn of measuring take longer: other processes wait for this one meanwhile.

        Call it before `start`.
        """
        self._measuring.bound_turns(seconds)

    def spending(self) -> AbstractContextManager[None]:
        """Count the time inside as overhead."""
        return self._planner.spending()

    def check(
        self,
        context: MeasureContext | nn.Module,
        *,
        loss: str = "loss_fn",
        step_seconds: float | None = None,
        cost: EvaluationCost | None = None,
    ) -> None:
        """Ask every observable, before the first step, whether it can measure this model.

        What the run will see is logged as one table, and kept with the run.

        Args:
            context: What will be measured; in a plain loop, the live model.
            loss: Where the loss comes from, for the table.
            step_seconds: What a training step is expected to take; None takes it from the
                probe's gradient.
            cost: What one gradient of the probe takes; None times it.

        Raises:
            ConfigError: One that the user named cannot.
        """
        with self.spending():
            if isinstance(context, MeasureContext):
                self._measuring.roster.check(context, cost)
                self._forecast(context, loss, step_seconds)
                return
            subject = self._subject = self._subject_of(context)
            try:
                with subject.guarded(0, 0):
                    subject.size(self)
                    copied = subject.context(0, None)
                    self._measuring.roster.check(copied, cost or subject.cost)
                    self._forecast(copied, loss, step_seconds or subject.step_seconds)
            except ConfigError:
                raise
            except BaseException as error:  # whatever it is: what is on by default kills no run
                let_through(error)
                is_ours = isinstance(error, RefusedError)
                self.refuse(str(error) if is_ours else f"{type(error).__name__}: {error}")

    def _forecast(self, context: MeasureContext, loss: str, step_seconds: float | None) -> None:
        """Log and keep what the run will see."""
        cost = self._measuring.roster.cost
        if step_seconds is None and cost is not None:
            step_seconds = cost.gradient_seconds
        if step_seconds is not None:
            steps_left = max(0.0, self._expected_steps - context.step)
            self._planner.expect(steps_left * step_seconds)
        self._headline = headline_of(self.run_name, context, loss, cost, self._planner.budget)
        rows = self.forecast()
        around = self._around_in_words()
        skipped = self.health.skip_reasons.items()
        log.info("%s", table_of(self._headline, rows, skipped, around))
        if self._sinks is None:
            return
        try:
            self._sinks.store.add_to_config(
                self.run_id,
                self.attempt,
                forecast=[row.as_dict() for row in rows],
                measured_on=self._headline,
                measured_around=around,
            )
        except StoreError as error:
            log.warning("what the run will see is not kept: %s", error)

    def _around_in_words(self) -> str:
        kept = self.checkpoints
        said = [self._planner.density.in_words, "" if kept is None else kept.keeper.in_words]
        shown = "; ".join(filter(None, said))
        return f"around a suspected transition: {shown}" if shown else ""

    @property
    def has_budget(self) -> bool:
        """Whether measuring is limited to a share of wall time."""
        return self._planner.ledger.limited

    def probe_growth(
        self, context: MeasureContext, cost: EvaluationCost, step_seconds: float
    ) -> float:
        """How many times as large a probe the budget allows; inf without a budget.

        Args:
            context: The model and the probe as they are now.
            cost: What one gradient of it takes.
            step_seconds: What a training step should take.
        """
        steps_left = max(0.0, self._expected_steps - context.step)
        return self._measuring.roster.probe_growth(context, cost, steps_left * step_seconds)

    def forecast(self) -> list[ForecastRow]:
        """What this run will see of each observable, as far as is known now."""
        return self._measuring.roster.forecast()

    def refuse(self, reason: str) -> None:
        """Measure nothing: the model as it is cannot be measured. Scalars are still observed.

        Raises:
            ConfigError: The user named an observable.
        """
        for name in self._measuring.roster.names:
            self._measuring.roster.refuse(name, reason)

    def probe(
        self, step: int, context: MeasureContext | Subject | nn.Module, epoch: int | None = None
    ) -> None:
        """Measure what is due at `step`. Never raises into training, never changes it.

        A measurement that takes long is spread over several steps; it is of the weights at which
        it began.

        Args:
            step: Optimizer steps completed.
            context: What to measure; in a plain loop, the live model.
            epoch: Epoch, if known.
        """
        step = self._steps.at(step) if not isinstance(context, MeasureContext) else step
        with self.spending(), self.failures.surviving(step, backs_off=True):
            subject = self._subject = self._as_subject(context)
            self._measure(step, subject, epoch)
        if self._save is None or self.checkpoints is None:
            return
        if (place := self.checkpoints.place(step)) is not None:
            self.checkpoints.write(place, self._save)

    def measure_last(
        self, step: int, context: MeasureContext | Subject | nn.Module, epoch: int | None = None
    ) -> None:
        """Training ends at `step`: measure what the run had no room for, as the budget allows.

        Args:
            step: Optimizer steps completed.
            context: What to measure; in a plain loop, the live model.
            epoch: Epoch, if known.
        """
        self._subject = None  # once is enough
        with self.spending(), self.failures.surviving(step):
            self._hand_over()
            subject = self._as_subject(context)
            self._take_up(self._measuring.last_turn(step, subject, epoch))

    # ---- checkpoints around a suspicion

    def keep_checkpoints(self, suffix: str) -> None:
        """For adapters: checkpoints are written by them, where `checkpoint_on` is set.

        Args:
            suffix: How the names of files end; empty where a checkpoint is a folder.
        """
        if self.config.checkpoint_on is not None:
            around, budget = self.config.around, self.config.budget
            keeper = Keeper(around, self.health, budget=budget, suffix=suffix)
            self.checkpoints = Checkpoints(keeper, self.spending, self._enter_checkpoints)

    def _enter_checkpoints(self, transition: str, paths: tuple[str, ...]) -> None:
        if self._road is not None:
            self._road.enter_checkpoints(transition, paths)

    def _tell_around(self, transition: Transition) -> None:
        """A transition has changed; told by the thread that detects."""
        self._planner.density.told(transition)
        if self.checkpoints is not None:
            self.checkpoints.keeper.told(transition)

    # ---- measuring

    def _as_subject(self, given: MeasureContext | Subject | nn.Module) -> Subject:
        if isinstance(given, MeasureContext):
            return Given(given)
        return given if isinstance(given, Subject) else self._subject_of(given)

    def _subject_of(self, model: nn.Module) -> PlainSubject:
        from phasewatch.monitor.run.live_model import PlainSubject  # imports torch

        if self._plain is None or self._plain.model is not model:
            self._plain = PlainSubject(
                model,
                self._probe,
                self._val_probe,
                self._loss_fn,
                self._n_samples,
                self.config,
                self.health,
            )
        return self._plain

    def _measure(self, step: int, subject: Subject, epoch: int | None) -> None:
        record, micro = self._record, self._micro_batches
        self._record = self._micro_batches = None
        if record is not None and record.step == step:
            if micro is not None and micro[0] == step:
                record = replace(record, micro_batches=micro[1])
        else:
            record = None
        self._hand_over()  # before, so that the planner knows how fast training is
        seen = Seen(record=record, learning_rate=self._learning_rate)
        observations = self._measuring.turn(step, subject, epoch, seen)
        if self._agree is not None and not self._agree(bool(observations)):
            self.health.measurement_failures["joint"] += 1
            return
        self._take_up(observations)

    def _take_up(self, observations: Iterable[Observation]) -> None:
        if self._road is None:
            return
        for observation in observations:
            self._road.put(observation)

    # ---- the road of a number

    def drain(self) -> None:
        """Wait until everything observed so far is stored and detected."""
        if self._sinks is not None and self._road is not None:
            with self.spending():
                self._road.drain()
                self._refresh_health(self._sinks)

    def _hand_over(self) -> None:
        """Send what is buffered on its way."""
        if self._sinks is not None and self._road is not None:
            with self.spending():
                self._road.hand_over()
                self._refresh_health(self._sinks)

    def _refresh_health(self, sinks: Sinks) -> None:
        health, store, latest = self.health, sinks.store, self._buffer.latest
        if latest is not None:
            health.step = max(health.step, latest[0])
            health.epoch = latest[1]
            health.last_step_timestamp = latest[2]
        old_step, old_time = self._drained
        now = time.perf_counter()
        if health.step > old_step and now > old_time:
            health.steps_per_second = (health.step - old_step) / (now - old_time)
            self._drained = (health.step, now)
            remaining = max(0.0, self._expected_steps - health.step)
            self._planner.expect(remaining / health.steps_per_second)
        while self._planner.density.changes:
            at, factor = self._planner.density.changes.popleft()
            sinks.keep_column(DENSITY, Column([at], [float(factor)], [health.epoch], [time.time()]))
        if self._road is not None:
            before = health.beside_seconds_total
            health.beside_seconds_total = (
                self._beside_before + self._road.cpu_seconds + store.writer_cpu_seconds
            )
            self._planner.ledger.spend_beside(health.beside_seconds_total - before)
            closing = CLOSING_SHARE * self._road.cpu_seconds
            self._planner.closing_seconds = min(closing, CLOSING_SECONDS)
        health.overhead_ratio = self._planner.ledger.overhead_ratio
        health.monitor_seconds_total = self._planner.ledger.total_seconds
        health.store_queue_depth = store.queue_depth
        health.store_dropped = store.num_dropped
        health.store_failed = store.num_failed

    # ---- reading

    @property
    def store(self) -> Store | None:
        """The open store; None before the start and after the end."""
        return self._sinks.store if self._sinks else None

    @property
    def metrics_url(self) -> str | None:
        """Where the metrics are served while the run goes on; None where they are not."""
        return self._sinks.metrics_url if self._sinks else None

    @property
    def transitions(self) -> list[Transition]:
        """Transitions found so far, in the order of their onset."""
        with self._alone():
            return self._detection.transitions

    def _alone(self) -> AbstractContextManager[object]:
        """Keep the thread beside training from detecting meanwhile."""
        return nullcontext() if self._road is None else self._road.lock

    def history(self, name: str, *, include_unconverged: bool = False) -> History:
        """Everything stored of one stream.

        Args:
            name: Stream name, for example "llc".
            include_unconverged: Show also the values whose status is not OK, which are NaN else.

        Returns:
            Steps, values and standard errors (NaN where a value has none), each of shape (n,), with
            the status of every value.
        """
        with self._reading() as store:
            return store.history(
                self.run_id, name, attempt=self.attempt, include_unconverged=include_unconverged
            )

    @contextmanager
    def _reading(self) -> Iterator[Store]:
        """The store, with everything that was observed so far."""
        self.drain()
        if self._sinks is not None:
            self._sinks.store.flush()
            yield self._sinks.store
        elif self._ended_store is not None:
            yield self._ended_store
        else:
            with Store(store_url(self.config, self._root), create=False) as store:
                yield store

    def plot(self) -> Picture:
        """Losses, λ̂ with its error, and transitions so far: a figure of matplotlib.

        A notebook shows it by itself; `plot().savefig("run.png")` writes it.

        Raises:
            PhasewatchError: The run has not begun.
        """
        from phasewatch.monitor.reports.data import read_run
        from phasewatch.monitor.reports.png import draw  # slow to import

        if not self.attempt:
            raise PhasewatchError("plot: nothing has been watched yet; start the run first")
        with self._reading() as store:
            return draw([read_run(store, self.run_id)])

    def __repr__(self) -> str:
        said = (
            in_a_line(self.run_name, self.health, self.transitions)
            if self.attempt
            else (f"{self.run_name!r}: not begun")
        )
        return f"<{type(self).__name__} {said}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: state, latest λ̂ and transitions."""
        if not self.attempt:
            return f"<p>{html.escape(repr(self))}</p>"
        llc = self.history("llc", include_unconverged=True)
        with self._reading() as store:
            config = store.run(self.run_id).config or {}
        return as_card(self.run_name, self.health, self.transitions, llc, config)

    # ---- resume

    def state_dict(self) -> dict[str, Any]:
        """Identity, schedule, detectors and transitions, as plain containers.

        Waits, at most two seconds, until the store holds everything that the state speaks of; what
        it does not hold then is in the state.
        """
        if self._road is not None and not self._road.drain(STATE_SECONDS):
            log.warning(
                "detection is %d points behind this checkpoint: a run resumed from it does not "
                "look at them again",
                self._road.num_waiting,
            )
        if self._sinks is not None:
            with self.spending():
                self._durable = self._sinks.store.carry(self.run_id, CARRY_SECONDS)
        with self._alone():
            detection, thinning = self._detection.state_dict(), self._thinner.state_dict()
        return {
            "run_id": self.run_id,
            "run_name": self.run_name,
            "attempt": self.attempt,
            "measuring": self._measuring.state_dict(),
            "detection": detection,
            "thinning": thinning,
            "durable": dict(self._durable),
            "keeping": None if self.checkpoints is None else self.checkpoints.keeper.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the run that `state_dict` was taken from. Opens nothing; idempotent."""
        saved = self._saved = Saved.of(state)
        self.run_id, self.attempt = saved.run_id, saved.attempt
        self.run_name = self.config.run_name or saved.name
        self._runs.go_on_from(self.run_name)
        self._measuring.load_state_dict(state["measuring"])
        self._detection.load_state_dict(state["detection"])
        self._thinner.load_state_dict(state["thinning"])
        if self.checkpoints is not None and state.get("keeping"):
            self.checkpoints.keeper.load_state_dict(state["keeping"])
