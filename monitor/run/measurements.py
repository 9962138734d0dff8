"""Runs the observables that are due, and keeps account of what fails and what cannot be done."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from phasewatch.detectors.types import Direction
from phasewatch.monitor import observables as registry
from phasewatch.monitor.config.monitor import MonitorConfig
from phasewatch.monitor.core.columns import Column
from phasewatch.monitor.core.context import MeasureContext, StepRecord
from phasewatch.monitor.core.contracts import Observable
from phasewatch.monitor.core.errors import ConfigError, RefusedError
from phasewatch.monitor.core.estimates import Estimate, Observation
from phasewatch.monitor.core.forecast import ForecastRow, duration_in_words
from phasewatch.monitor.core.health import Health
from phasewatch.monitor.core.meaning import StreamMeaning, guess
from phasewatch.monitor.core.ownership import is_ours
from phasewatch.monitor.core.seeds import seed_from
from phasewatch.monitor.core.stray import let_through
from phasewatch.monitor.core.work import Cost, Steps, Work
from phasewatch.monitor.run.budget import Budget
from phasewatch.monitor.run.first_fall import FirstFall
from phasewatch.monitor.run.interrupts import Interrupts
from phasewatch.monitor.run.planner import SHORTEST, Account, Planner
from phasewatch.monitor.run.watchdog import Watchdog

if TYPE_CHECKING:
    from phasewatch.monitor.sampling.evaluation_cost import EvaluationCost

log = logging.getLogger("phasewatch")

TOLD_SECONDS = 2.0
"""A measurement that holds up training for longer shows itself, and again at each doubling."""

MAX_BACKOFF = 6
"""After k failures in a row an observable sits out 2^k − 1 of its turns, k up to this."""

MEMORY_SHARE = 0.4
"""Share of the training's own peak that a measurement may take beside it."""

FIRST_OF_ALL = "llc"
WEIGHT_OF_FIRST = 4.0
"""λ̂ gets so many times the budget of another observable that is not light."""

BY_CLASS: Mapping[Cost | None, Work] = {
    Cost.STEP: Work(weight_passes=2.0),
    Cost.WEIGHTS: Work(weight_passes=4.0),
    Cost.FORWARD: Work(forwards=1.0),
    Cost.GRADIENT: Work(gradients=30.0),
    Cost.SAMPLING: Work(gradients=1000.0),
}
"""What a measurement is taken to need where the observable tells only its class."""


@runtime_checkable
class Subject(Protocol):
    """A live model, its data and its loss: what a training loop has measured."""

    def guarded(self, step: int, turn: int) -> AbstractContextManager[None]:
        """Shield training from what is measured inside.

        Args:
            step: Optimizer steps completed.
            turn: Which turn of the run it is; seeds what is random inside.
        """

    def context(self, step: int, epoch: int | None) -> MeasureContext:
        """Copy the model as it is now. Called inside `guarded`."""

    def live_context(self, step: int, epoch: int | None) -> MeasureContext:
        """The weights as they are, for built-in observables that only read them."""


class Given:
    """A subject of which the context is there already.

    Args:
        context: The context.
    """

    def __init__(self, context: MeasureContext) -> None:
        self._context = context

    def guarded(self, step: int, turn: int) -> AbstractContextManager[None]:  # noqa: ARG002
        """Nothing: whoever made the context has done it."""
        return nullcontext()

    def context(self, step: int, epoch: int | None) -> MeasureContext:  # noqa: ARG002
        """The given one."""
        return self._context

    live_context = context


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the training loop told beside the model.

    Attributes:
        record: What was seen just before the optimizer step.
        learning_rate: Of the coming step.
    """

    record: StepRecord | None = None
    learning_rate: float | None = None

    def added_to(self, context: MeasureContext) -> MeasureContext:
        """The context with what it lacks."""
        return replace(
            context,
            record=context.record or self.record,
            learning_rate=(
                self.learning_rate if context.learning_rate is None else context.learning_rate
            ),
        )


LAST_SHARE = 0.8
"""Of what the budget has left, the deadline of what is measured when training has ended."""


@dataclass(slots=True)
class Open:
    """A measurement that is spread over several turns.

    Attributes:
        name: The observable.
        context: What is measured.
        step: Step of the weights that are measured.
        epoch: Their epoch.
        steps: What is left of it.
        timestamp: Unix seconds at which it began.
        seconds: What it took so far.
    """

    name: str
    context: MeasureContext
    step: int
    epoch: int | None
    steps: Steps[list[Observation]]
    timestamp: float
    seconds: float = 0.0


class Measuring:
    """The observables of one run.

    Args:
        config: The run's configuration; names its observables.
        health: Where successes, failures and refusals are counted.
        given: Names or objects from the user's code; they take the place of the configured ones.

    Raises:
        ConfigError: A name is unknown, given twice, or an object is no observable.
    """

    def __init__(
        self,
        config: MonitorConfig,
        health: Health,
        given: Iterable[str | Observable] | None = None,
    ) -> None:
        self._health = health
        self.watchdog = Watchdog()
        self._seed = config.seed
        self._num_chains = config.sampler.num_chains
        self._observables: dict[str, Observable] = {}
        self._named: set[str] = set()
        self._offered: set[str] = set()
        wanted = list(config.observables if given is None else given)
        by_user = given is not None or "observables" in config.model_fields_set
        for item in sorted(wanted, key=lambda one: one == registry.ALL):  # a name goes before "all"
            if not isinstance(item, str):
                self._add(item)
                self._named.add(item.name)
                continue
            for name in registry.selected(item):
                if item == registry.ALL and name in self._observables:
                    continue
                self._add(registry.create(name, config))
                if item == registry.ALL:
                    self._offered.add(name)
                elif by_user:
                    self._named.add(name)
        self.planner = Planner(
            [self._account(name, config) for name in self._observables], Budget(config.budget)
        )
        self.interrupts = Interrupts()
        self.cost: EvaluationCost | None = None
        self._open: Open | None = None
        self._current: Open | None = None
        self._first_fall: FirstFall | None = FirstFall()
        self._ending = False
        self._num_turns = 0
        self._training_peak: int | None = None
        self._asked_at = self._turn_began = self._told_at = 0.0
        self._piece = 0.0
        self._longest_turn = math.inf
        self._previous: dict[str, Estimate] = {}
        self._failures_in_row: dict[str, int] = {}

    def _account(self, name: str, config: MonitorConfig) -> Account:
        settings, observable = config.observables.get(name), self._observables[name]
        own = settings.cadence if settings else None
        return Account(
            name=name,
            cadence=own or config.cadence,
            lifted=own is not None,
            expensive=_is_expensive(observable),
            spread=_measures_in_steps(observable),
            weight=WEIGHT_OF_FIRST if name == FIRST_OF_ALL else 1.0,
        )

    def _add(self, observable: Observable) -> None:
        if not isinstance(observable, Observable):
            raise ConfigError(
                f"observable {observable!r} lacks one of name, unit, measure(context); "
                "see phasewatch.monitor.core.contracts.Observable"
            )
        if observable.name in self._observables:
            raise ConfigError(f"observable {observable.name!r} is given twice; names must differ")
        better = getattr(observable, "better", None)
        if better is not None and better not in [*Direction]:
            raise ConfigError(
                f"observable {observable.name!r} says that {better!r} is better; it must say "
                '"up" or "down", or have no attribute `better`'
            )
        self._observables[observable.name] = observable

    def bound_turns(self, seconds: float) -> None:
        """Let no turn take longer, whatever the budget and the cadences say; others wait for it.

        What can be measured in steps is spread over more turns; what cannot, and takes longer, is
        not measured.
        """
        self._longest_turn = seconds
        self.planner.ledger.capacity = min(self.planner.ledger.capacity, seconds)

    @property
    def names(self) -> tuple[str, ...]:
        """Observables still measured, in order."""
        return tuple(self._observables)

    @property
    def declared(self) -> dict[str, StreamMeaning]:
        """What the observables declare of their streams."""
        found: dict[str, StreamMeaning] = {}
        for name, observable in self._observables.items():
            found |= getattr(observable, "streams", {})
            if (better := getattr(observable, "better", None)) is not None:
                known = found.get(name) or guess(name)
                found[name] = replace(known, better=Direction(better))
        return found

    @property
    def locates_by_itself(self) -> bool:
        """Whether telling where something moved runs no code of the user's."""
        return all(is_ours(o) for o in self._observables.values() if hasattr(o, "locate"))

    def locate(self, onset: int, end: int) -> tuple[tuple[str, float], ...]:
        """Where in the model something moved between two steps, if an observable can tell."""
        for name, observable in list(self._observables.items()):  # asked beside training
            locate = getattr(observable, "locate", None)
            if locate is None:
                continue
            try:
                found: tuple[tuple[str, float], ...] = tuple(locate(onset, end))
            except Exception as error:
                self._fail(name, end, error)
            else:
                return found
        return ()

    def check(self, context: MeasureContext, cost: EvaluationCost | None = None) -> None:
        """Ask each observable, before the first step, whether it can measure this model.

        One evaluation of the probe is timed, and from it what each measurement will take.

        Args:
            context: What will be measured.
            cost: What one evaluation takes, where that is known already.

        Raises:
            ConfigError: One that the user named cannot. One that is on by default is skipped.
        """
        self.cost = cost or _evaluation_cost(context)
        for name, observable in list(self._observables.items()):
            check = getattr(observable, "check", None)
            if check is None:
                continue
            try:
                check(context)
            except RefusedError as error:
                self.refuse(name, str(error))
            except BaseException as error:  # whatever it is: what is on by default kills no run
                let_through(error)
                self.refuse(name, f"{type(error).__name__}: {error}")
        for name in self._observables:
            self._predict(name, context)

    def probe_growth(
        self, context: MeasureContext, cost: EvaluationCost, expected_seconds: float
    ) -> float:
        """How many times as large a probe leaves the run enough of the most expensive measurement.

        Args:
            context: The model and the probe as they are now.
            cost: What one gradient of it takes.
            expected_seconds: Length of the run; inf where it is not known.
        """
        if not self.planner.ledger.limited:
            return math.inf
        growth = math.inf
        observable: Any
        for name, observable in self._observables.items():
            account = self.planner.accounts[name]
            if not account.expensive or account.lifted or not _has_method(observable, "work"):
                continue
            try:
                seconds = cost.of(observable.work(context))
            except Exception as error:  # what cannot be measured here is told by its check
                log.debug("what %s takes is not known: %s", name, error)
                continue
            affordable = self.planner.affordable_seconds(name, expected_seconds)
            growth = min(growth, affordable / max(seconds, 1e-9))
        return growth

    def _predict(self, name: str, context: MeasureContext) -> None:
        observable: Any = self._observables[name]
        kind = getattr(observable, "cost", None)
        try:
            tells = _has_method(observable, "work")
            work = observable.work(context) if tells else BY_CLASS.get(kind, Work(gradients=1.0))
        except Exception as error:  # the user's own, or one that cannot tell beforehand
            log.debug("what %s takes is not known before: %s", name, error)
            return
        if self.cost is None:
            return
        gradient = self.cost.gradient_seconds
        chains = self._num_chains if kind is Cost.SAMPLING else 1
        self.planner.predict(name, self.cost.of(work), chains * gradient)

    def look_at(self, columns: Mapping[str, Column]) -> None:
        """See in what was logged whether the training has begun to learn."""
        if self._first_fall is None:
            return
        for name in ("train_loss", "loss", "train/loss"):
            if name in columns:
                if self._first_fall.seen_in(columns[name].values):
                    self._first_fall = None
                    self.planner.loss_fell()
                return

    def forecast(self) -> list[ForecastRow]:
        """What the run will see of each observable, as far as is known now."""
        return [self._row(account) for account in self.planner.accounts.values()]

    def _row(self, account: Account) -> ForecastRow:
        planner, note = self.planner, ""
        expected = planner.expected_measurements(account.name)
        first = f"step {account.next_step}"
        if account.cadence is None and planner.ledger.limited and not account.light:
            if account.expensive:
                first = planner.begins_in_words()
            if planner.at_end(account.name):
                first, expected = "when training ends", 1.0
            if planner.never(account.name):
                first, expected = "–", 0.0
            if expected < 1.5:
                note = (
                    f"one takes {duration_in_words(account.predicted)}, this run's budget has "
                    f"{duration_in_words(planner.ledger.left_until(planner.seconds_left))} left; "
                    "raise overhead, or give it every_n_steps, which no budget holds back"
                )
        return ForecastRow(
            name=account.name,
            seconds=account.predicted,
            first=first,
            count=None if math.isinf(expected) else round(expected),
            note=note,
        )

    def refuse(self, name: str, reason: str) -> None:
        """Measure `name` no more: it cannot be measured here.

        Raises:
            ConfigError: The user named it.
        """
        if name in self._named:
            raise ConfigError(
                f"observable {name!r} cannot be measured here: {reason}. "
                "Mend that, or leave it out of `observables`"
            )
        self.skip(name, reason)

    def skip(self, name: str, reason: str) -> None:
        """Measure `name` no more, count it and say so once."""
        if name not in self._observables:
            return
        del self._observables[name]
        self.planner.drop(name)
        self._health.skipped[name] += 1
        self._health.skip_reasons[name] = reason
        # Of "all" observables many never fit: no news worth a warning.
        level = logging.INFO if name in self._offered else logging.WARNING
        log.log(level, "%s is not measured: %s", name, reason)

    def turn(
        self, step: int, subject: Subject, epoch: int | None = None, seen: Seen | None = None
    ) -> list[Observation]:
        """Go on with what is open, begin what is due. An exception is counted and said.

        Args:
            step: Optimizer steps completed.
            subject: What is measured.
            epoch: Epoch, if known.
            seen: What the training loop told beside it.

        Returns:
            What was completed, in order.
        """
        seen = seen or Seen()
        results: list[Observation] = []
        names = self.planner.due_names(step)
        live = [name for name in names if registry.reads_live(self._observables[name])]
        rest = [name for name in names if name not in live]
        if live:
            context = seen.added_to(subject.live_context(step, epoch))
            for name in live:
                results += self._whole(name, step, context)
        if rest or self.planner.goes_on(step):
            with subject.guarded(step, self._num_turns), self.interrupts.listening():
                self._num_turns += 1
                if self.planner.goes_on(step):
                    results += self._go_on(step)
                if rest:
                    results += self._begin_all(rest, step, subject, epoch, seen)
        if self.interrupts.requested:
            self._halt()
        self.planner.rest()
        return results

    def _halt(self) -> None:
        """The run was asked to stop: nothing more is measured in it."""
        self.planner.halt()
        if (opened := self._open) is not None:
            opened.steps.close()
            self._open = None

    def measure(self, step: int, context: MeasureContext) -> list[Observation]:
        """Take the turn of `step` on a context that is there already."""
        return self.turn(step, Given(context), context.epoch)

    def looks_before(self, step: int) -> tuple[bool, bool]:
        """Whether what begins at `step` needs a look just before it, and the weights of then."""
        due = [self._observables[name] for name in self.planner.due_names(step)]
        return (
            any(map(registry.needs_record, due)),
            any(map(registry.needs_params_before, due)),
        )

    def _begin_all(
        self, names: Iterable[str], step: int, subject: Subject, epoch: int | None, seen: Seen
    ) -> list[Observation]:
        begin = self.planner.ledger.clock()
        context = seen.added_to(subject.context(step, epoch))
        self.planner.shared(self.planner.ledger.clock() - begin)
        results: list[Observation] = []
        for name in names:
            if self.interrupts.requested:
                break
            account = self.planner.accounts[name]
            if account.spread and self._is_limited(name):
                if self._open is None:  # else its turn comes when the open one is through
                    results += self._begin(name, step, context)
            elif (account.predicted or 0.0) > self._longest_turn:
                self.skip(name, self._too_long(account.predicted))
            else:
                results += self._whole(name, step, context)
        return results

    def _is_limited(self, name: str) -> bool:
        if math.isfinite(self._longest_turn):
            return True
        return self.planner.ledger.limited and not self.planner.accounts[name].lifted

    def _too_long(self, seconds: float | None) -> str:
        return (
            f"one measurement takes about {duration_in_words(seconds)} in one piece, and the other "
            f"processes may wait for {duration_in_words(self._longest_turn)}; raise the timeout of "
            "the process group, or make the probe smaller"
        )

    def _whole(self, name: str, step: int, context: MeasureContext) -> list[Observation]:
        """Measure in one go; only an interrupt ends it before."""
        opened = self._opened(name, context)
        return self._advance(opened, step)

    def _begin(self, name: str, step: int, context: MeasureContext) -> list[Observation]:
        """Measure as far as the budget goes; the rest comes at later steps."""
        self._open = self._opened(name, context)
        self.planner.begin(name, step)
        return self._go_on(step)

    def _opened(self, name: str, context: MeasureContext) -> Open:
        context.generator.manual_seed(seed_from(self._seed, context.step, name))
        own = replace(
            context,
            deadline_seconds=min(context.deadline_seconds, self.planner.deadline(name)),
            pause=self._pause,
            over=lambda: self._ending,
            max_bytes=self._max_bytes(context),
            previous=self._previous.get(name),
        )
        return Open(
            name=name,
            context=own,
            step=context.step,
            epoch=context.epoch,
            steps=_steps_of(self._observables[name], own),
            timestamp=time.time(),
        )

    def _max_bytes(self, context: MeasureContext) -> int | None:
        """What may be taken beside the training; its peak is what it was before any chain ran."""
        if not self.planner.ledger.limited:
            return None
        if self._training_peak is None:
            from phasewatch.monitor.sampling.memory_budget import peak_bytes  # imports torch

            self._training_peak = peak_bytes(context.generator.device)
        return int(MEMORY_SHARE * self._training_peak)

    def _go_on(self, step: int) -> list[Observation]:
        if self._open is None:
            return []
        results = self._advance(self._open, step)
        if self.planner.open is None:
            self._open = None
        return results

    def _advance(self, opened: Open, step: int) -> list[Observation]:
        """Take steps until there is a reason to pause, or a result."""
        name, clock = opened.name, self.planner.ledger.clock
        before, account = opened.seconds, self.planner.accounts[name]
        begin = self._asked_at = clock()
        self._piece = account.piece
        self._turn_began, self._told_at = begin, begin + TOLD_SECONDS
        spread = opened is self._open
        done, cut_short, results = True, False, []
        self._current = opened
        try:
            found = self._steps_taken(opened)
            done = found is not None
            if found is not None:
                results = self._completed(opened, found[0], before + clock() - begin)
        except RefusedError as error:
            self.skip(name, str(error))
        except BaseException as error:
            let_through(error)
            self._fail(name, step, error)
        seconds = clock() - begin
        opened.seconds = before + seconds
        account.piece = self._piece
        self.planner.took(name, seconds)
        if not done and (not spread or self.interrupts.requested):
            opened.steps.close()
            self._leave(opened)
            done = cut_short = True
        if done:
            self._closed(opened, step, cut_short=cut_short)
        return results

    def _steps_taken(self, opened: Open) -> tuple[Any] | None:
        """The result of a measurement; None where there was a reason to pause before it."""
        what = f"the measurement of {opened.name} at step {opened.step}"
        while True:
            try:
                with self.watchdog.over(what):  # one step: what goes on does not hang
                    next(opened.steps)
            except StopIteration as finished:
                return (finished.value,)
            # What pauses by itself has asked already; asking twice does no harm.
            if self._pause():
                return None

    def _closed(self, opened: Open, step: int, *, cut_short: bool = False) -> None:
        name = opened.name
        self.planner.charge(name, step, opened.seconds, cut_short=cut_short)
        account = self.planner.accounts.get(name)
        if account is not None and account.expensive and not cut_short:
            self._predict(name, opened.context)  # the next one goes on where this one ended
        if failures := self._failures_in_row.get(name, 0):
            self.planner.postpone(name, 2 ** min(failures, MAX_BACKOFF) - 1)

    def _leave(self, opened: Open) -> None:
        """A measurement that was cut short for good: counted, and said."""
        self._health.unfinished[opened.name] += 1
        log.info(
            "%s of step %d was left unfinished after %.1f s: %s",
            opened.name,
            opened.step,
            opened.seconds,
            "the run was asked to stop" if self.interrupts.requested else "the run has ended",
        )

    def _pause(self) -> bool:
        """Whether training is to go on before the next evaluation."""
        now = self.planner.ledger.clock()
        piece, self._asked_at = now - self._asked_at, now
        self._piece = max(piece, 0.7 * self._piece)
        if self.interrupts.requested:
            return True
        if now >= self._told_at:
            self._tell_progress(now)
        if self._open is not self._current:  # measured in one go
            return False
        if now - self._turn_began + self._piece > self._longest_turn:
            return True
        return self.planner.ledger.level < self._piece

    def _tell_progress(self, now: float) -> None:
        if (opened := self._current) is None:
            return
        begun = self._turn_began
        predicted = self.planner.accounts[opened.name].predicted
        left = "" if predicted is None else f", about {max(predicted - now + begun, 0):.0f} s to go"
        self._told_at = begun + 2 * (now - begun)
        log.info("measuring %s of step %d: %.0f s%s", opened.name, opened.step, now - begun, left)

    def _completed(self, opened: Open, result: Any, seconds: float) -> list[Observation]:
        name = opened.name
        observations = [result] if isinstance(result, Observation) else list(result)
        if wrong := next((o for o in observations if not isinstance(o, Observation)), None):
            raise TypeError(f"measure() gave {wrong!r:.80}; it must give Observations")
        self._failures_in_row.pop(name, None)
        self._health.measured(name, seconds, opened.step)
        completed = []
        for observation in observations:
            if observation.detail is not None:
                self._previous[name] = observation.detail
                self._health.estimates[observation.detail.status] += 1
            completed.append(
                replace(
                    observation,
                    epoch=observation.epoch if observation.epoch is not None else opened.epoch,
                    timestamp=observation.timestamp or time.time(),
                    duration_seconds=observation.duration_seconds or seconds,
                )
            )
        return completed

    def last_turn(self, step: int, subject: Subject, epoch: int | None) -> list[Observation]:
        """The training has ended: complete what is open, measure what the run had no room for.

        Within what the budget has left. λ̂ of the final weights comes first.

        Args:
            step: Optimizer steps completed.
            subject: What is measured.
            epoch: Epoch, if known.
        """
        ledger = self.planner.ledger
        if self.interrupts.requested or not ledger.limited:
            return []
        results: list[Observation] = []
        self._ending = True
        self.planner.expect(0.0)
        with subject.guarded(step, self._num_turns), self.interrupts.listening():
            if (opened := self._open) is not None:
                results += self._go_on(step)
                if self._open is not None:
                    opened.steps.close()
                    self._leave(opened)
                    self._closed(opened, step, cut_short=True)
                    self._open = None
            self._ending = False
            waiting = [name for name in self.planner.last_ones(step) if name in self._observables]
            if not waiting or self.interrupts.requested:
                return results
            context = subject.context(step, epoch)
            for name in waiting:
                predicted = self.planner.accounts[name].predicted or 0.0
                if ledger.level < SHORTEST * predicted:
                    continue
                own = replace(context, deadline_seconds=LAST_SHARE * ledger.level)
                opened = self._opened(name, own)
                self._open = opened
                self.planner.begin(name, step)
                results += self._go_on(step)
                if self._open is not None:
                    opened.steps.close()
                    self._leave(opened)
                    self._closed(opened, step, cut_short=True)
                    self._open = None
        return results

    def _fail(self, name: str, step: int, error: BaseException) -> None:
        self._health.measurement_failures[name] += 1
        failures = self._failures_in_row[name] = self._failures_in_row.get(name, 0) + 1
        if failures == 1:
            log.warning(
                "measuring %s at step %d failed: %s: %s; training goes on, further failures are "
                "counted in phasewatch_measurement_failures_total",
                name,
                step,
                type(error).__name__,
                error,
                exc_info=log.isEnabledFor(logging.DEBUG),
            )

    def state_dict(self) -> dict[str, Any]:
        """Schedule and observables' own states, as plain containers."""
        own = {
            name: observable.state_dict()
            for name, observable in self._observables.items()
            if hasattr(observable, "state_dict")
        }
        return {"planner": self.planner.state_dict(), "observables": own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.planner.load_state_dict(state["planner"])
        for name, own in state["observables"].items():
            observable = self._observables.get(name)
            if observable is not None and hasattr(observable, "load_state_dict"):
                observable.load_state_dict(own)


def _steps_of(observable: Observable, context: MeasureContext) -> Steps[Any]:
    """The measurement in steps; as one, where the observable knows no others."""
    own: Any = observable
    if _measures_in_steps(own):
        steps: Steps[Any] = own.measure_in_steps(context)
        return steps
    return _at_once(observable, context)


def _measures_in_steps(observable: Observable) -> bool:
    """Whether its steps are its measurement: not where a subclass has a `measure` of its own."""
    for kind in type(observable).__mro__:
        if "measure_in_steps" in vars(kind):
            return callable(vars(kind)["measure_in_steps"])
        if "measure" in vars(kind):
            return False
    return False


def _has_method(observable: Observable, name: str) -> bool:
    """Whether its class has that method; an attribute of a user's own may have the same name."""
    return callable(getattr(type(observable), name, None))


def _at_once(observable: Observable, context: MeasureContext) -> Steps[Any]:
    yield from ()
    return observable.measure(context)


def _evaluation_cost(context: MeasureContext) -> EvaluationCost | None:
    """What one evaluation takes; None where there is nothing to evaluate."""
    from phasewatch.monitor.sampling.evaluation_cost import evaluation_cost  # imports torch

    try:
        return evaluation_cost(context)
    except Exception as error:  # the observables that need it say why themselves
        log.debug("no evaluation of the probe was timed: %s", error)
        return None


def _is_expensive(observable: Observable) -> bool:
    """Whether a measurement takes tens of gradients or more."""
    return getattr(observable, "cost", None) in (Cost.GRADIENT, Cost.SAMPLING)
