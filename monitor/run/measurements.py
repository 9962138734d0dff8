"""Runs the observables that are due: in one go, or spread over several turns."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from phasewatch.monitor import observables as registry
from phasewatch.monitor.core.columns import Column
from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.contracts import Observable
from phasewatch.monitor.core.errors import RefusedError
from phasewatch.monitor.core.estimates import Estimate, Observation
from phasewatch.monitor.core.forecast import duration_in_words
from phasewatch.monitor.core.health import Health
from phasewatch.monitor.core.seeds import seed_from
from phasewatch.monitor.core.stray import let_through
from phasewatch.monitor.core.work import Steps
from phasewatch.monitor.run.first_fall import FirstFall
from phasewatch.monitor.run.interrupts import Interrupts
from phasewatch.monitor.run.planner import SHORTEST
from phasewatch.monitor.run.roster import Roster, measures_in_steps
from phasewatch.monitor.run.subject import Given, Seen, Subject
from phasewatch.monitor.run.watchdog import Watchdog

if TYPE_CHECKING:
    pass

log = logging.getLogger("phasewatch")

TOLD_SECONDS = 2.0
"""A measurement that holds up training for longer shows itself, and again at each doubling."""

MAX_BACKOFF = 6
"""After k failures in a row an observable sits out 2^k − 1 of its turns, k up to this."""

MEMORY_SHARE = 0.4
"""Share of the training's own peak that a measurement may take beside it."""

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
    """Takes the turns of one run's observables: begins, goes on, pauses and ends measurements.

    Args:
        roster: Which these are, and what each takes.
        health: Where successes and failures are counted.
        seed: Seed of the run.
    """

    def __init__(self, roster: Roster, health: Health, seed: int = 0) -> None:
        self._health = health
        self.roster = roster
        self.planner = roster.planner
        self.watchdog = Watchdog()
        self.interrupts = Interrupts()
        self._seed = seed
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

    def bound_turns(self, seconds: float) -> None:
        """Let no turn take longer, whatever the budget and the cadences say; others wait for it.

        What can be measured in steps is spread over more turns; what cannot, and takes longer, is
        not measured.
        """
        self._longest_turn = seconds
        self.planner.ledger.capacity = min(self.planner.ledger.capacity, seconds)

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
        live = [name for name in names if registry.reads_live(self.roster.observables[name])]
        rest = [name for name in names if name not in live]
        if live:
            begin = self.planner.ledger.clock()
            context = seen.added_to(subject.live_context(step, epoch))
            self.planner.took(live[0], self.planner.ledger.clock() - begin)
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
        due = [self.roster.observables[name] for name in self.planner.due_names(step)]
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
                self.roster.skip(name, self._too_long(account.predicted))
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
            steps=_steps_of(self.roster.observables[name], own),
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
            self.roster.skip(name, str(error))
        except BaseException as error:
            let_through(error)
            self.roster.failed(name, step, error)
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
            self.roster.predict(name, opened.context)  # the next one goes on where this one ended
        if failures := self.roster.failures_in_row.get(name, 0):
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
        self.roster.failures_in_row.pop(name, None)
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
        with (
            ledger.held_back(self.planner.closing_seconds),
            subject.guarded(step, self._num_turns),
            self.interrupts.listening(),
        ):
            if (opened := self._open) is not None:
                results += self._go_on(step)
                if self._open is not None:
                    opened.steps.close()
                    self._leave(opened)
                    self._closed(opened, step, cut_short=True)
                    self._open = None
            self._ending = False
            waiting = [
                name for name in self.planner.last_ones(step) if name in self.roster.observables
            ]
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

    def state_dict(self) -> dict[str, Any]:
        """Schedule and observables' own states, as plain containers."""
        own = {
            name: observable.state_dict()
            for name, observable in self.roster.observables.items()
            if hasattr(observable, "state_dict")
        }
        return {"planner": self.planner.state_dict(), "observables": own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.planner.load_state_dict(state["planner"])
        for name, own in state["observables"].items():
            observable = self.roster.observables.get(name)
            if observable is not None and hasattr(observable, "load_state_dict"):
                observable.load_state_dict(own)


def _steps_of(observable: Observable, context: MeasureContext) -> Steps[Any]:
    """The measurement in steps; as one, where the observable knows no others."""
    own: Any = observable
    if measures_in_steps(own):
        steps: Steps[Any] = own.measure_in_steps(context)
        return steps
    return _at_once(observable, context)


def _at_once(observable: Observable, context: MeasureContext) -> Steps[Any]:
    yield from ()
    return observable.measure(context)
