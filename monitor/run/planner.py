"""When each observable is measured, within the budget and by its cadence."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from phasewatch.monitor.config.schedule import EveryNSteps, LogSpaced
from phasewatch.monitor.run.budget import Budget
from phasewatch.monitor.run.density import Density

MAX_TURNS = 300
"""Without a cadence an observable is measured so often in a run at most."""

LIGHT_SECONDS = 0.05
"""What takes no longer than this is measured together with its like; the rest one at a time."""

LIGHT_SHARE = 0.15
"""Share of the budget that light observables may take together, where there are others."""

SHORT_SLICE = 0.1
"""A measurement that is spread goes on when at least so many seconds of it are earned."""

MARGIN = 1.25
"""Costs vary: what cannot be left in the middle begins when so many times its cost is there."""

WANTED_MEASUREMENTS = 20
"""Of an expensive observable a run should see so many: a single one takes no more of the budget."""

WHOLE_SHARE = 0.9
"""A measurement that is this share of what the bucket holds, or more, is begun by pieces."""

SHORTEST = 0.17
"""A measurement of which the budget leaves less than this share is not begun at all."""

LONG_RUN_SECONDS = 1800.0
"""A run of this length or more, or of unknown length, sees enough measurements of any size that is
affordable in this time."""

UNKNOWN_SECONDS = 0.5
"""What is set aside for a first measurement of which nothing is known."""

BEGINS_AFTER = 0.1
"""What is expensive begins at this share of the run, if the loss has not fallen before."""

BEGINS_AFTER_SECONDS = 10.0
"""The same where the length of the run is not known."""


@dataclass(slots=True)
class Account:
    """What the planner knows of one observable.

    Attributes:
        name: Its name.
        cadence: Its cadence; None is "as the budget allows".
        lifted: Whether its cadence was asked for: no budget holds it back.
        expensive: Whether a measurement takes tens of gradients or more.
        spread: Whether a measurement may be spread over several turns.
        weight: Its share of the budget against that of others.
        told: Seconds of one measurement by what it does; None where nothing is known.
        correction: What the latest one took, over what was told of it.
        predicted: Seconds of the next one; None where nothing is known.
        piece: Seconds of one evaluation within it.
        last_step: Step of the last turn.
        next_step: First step of the next turn.
        count: Measurements so far.
        seconds: What they took.
        aside: Of that, what is not held against it when the next turn is given.
        put_off: Whether the next turn is later than usual, for the latest have failed.
    """

    name: str
    cadence: EveryNSteps | LogSpaced | None = None
    lifted: bool = False
    expensive: bool = False
    spread: bool = False
    weight: float = 1.0
    told: float | None = None
    correction: float = 1.0
    predicted: float | None = None
    piece: float = 0.0
    last_step: int = 0
    next_step: int = 0
    count: int = 0
    seconds: float = 0.0
    aside: float = 0.0
    put_off: bool = False

    @property
    def light(self) -> bool:
        """Whether it is measured together with its like."""
        return not self.expensive and (self.predicted or 0.0) <= LIGHT_SECONDS

    @property
    def needed(self) -> float:
        """Seconds that must be there before it begins."""
        if self.predicted is None:
            return UNKNOWN_SECONDS
        return MARGIN * self.predicted

    @property
    def slice(self) -> float:
        """Seconds with which it goes on, once it has begun."""
        return max(SHORT_SLICE, 2.0 * self.piece)


class Planner:
    """Decides which observables have a turn at which step.

    One with a cadence has its turns there; where the cadence was asked for by name, nothing holds
    it back. The others share what the budget earns. Light ones are measured together, `MAX_TURNS`
    times a run at most. Of the expensive ones, the one that has had least for its weight is next:
    it begins when the budget has room for it, or for its first evaluations where it can be spread,
    and never on the initialisation. What the run will never have room for waits for its end.

    Around a suspected transition turns come more often, within the same budget; of the expensive
    ones λ̂ goes first there, and what it takes then is not held against it.

    Args:
        accounts: The observables, in order.
        budget: The ledger.
        density: When a transition is suspected; None is never.
    """

    def __init__(
        self, accounts: Iterable[Account], budget: Budget, density: Density | None = None
    ) -> None:
        self._accounts = {account.name: account for account in accounts}
        self.ledger = budget
        self.density = density or Density(1)
        self.open: str | None = None
        self.closing_seconds = 0.0  # what the end of the run will take, after the last measurement
        self._steps_at_end = math.inf
        self._seconds_left = math.inf
        self._common = 0.0
        self._opening: float | None = None
        self._begun = False
        self._halted = False
        self._decided = -1
        self._due: tuple[str, ...] = ()
        self._goes_on = False
        self._next_step = 0
        self._next_time = -math.inf
        self.start(0)

    @property
    def budget(self) -> float:
        """Share of wall time that may be spent; 1 is no budget."""
        return self.ledger.share

    @property
    def accounts(self) -> Mapping[str, Account]:
        """What is known of each observable, by name."""
        return self._accounts

    # ---- the run

    def start(self, step: int, expected_steps: float = math.inf) -> None:
        """Begin, or go on, at `step`; nothing is due at or before it.

        Args:
            step: Optimizer steps completed.
            expected_steps: Step at which the run should end.
        """
        self._steps_at_end = expected_steps
        self._seconds_left = math.inf
        self._begun = step > 0
        self._halted = False
        self.open = None
        for account in self._accounts.values():
            account.last_step = max(account.last_step, step)
            account.next_step = self._after(account, step)
        self._decided = step
        self._due, self._goes_on = (), False
        self._next_step = min((a.next_step for a in self._accounts.values()), default=2**63)
        self._next_time = math.inf
        self.ledger.start()

    def expect(self, seconds: float) -> None:
        """Tell how long the rest of the run is expected to take; inf if that is not known."""
        self._seconds_left = seconds

    def loss_fell(self) -> None:
        """The training has begun to learn: what is expensive may begin."""
        if not self._begun:
            self._begun = True
            self._next_time = -math.inf

    def predict(self, name: str, seconds: float, piece: float) -> None:
        """Tell what a measurement of `name` is expected to take, and one evaluation within it.

        Args:
            name: Name of the observable.
            seconds: The whole measurement, in seconds.
            piece: One evaluation, in seconds: it cannot be stopped within.
        """
        if account := self._accounts.get(name):
            account.told, account.piece = seconds, piece
            account.predicted = account.correction * seconds
            if account.spread:
                self.ledger.enlarge(2.0 * piece)

    def halt(self) -> None:
        """Nothing more has a turn: the run was asked to stop."""
        self._halted = True
        self._due, self._goes_on, self.open = (), False, None
        self._next_step, self._next_time = 2**63, math.inf

    def drop(self, name: str) -> None:
        """Measure `name` no more."""
        self._accounts.pop(name, None)
        self._due = tuple(other for other in self._due if other != name)
        if self.open == name:
            self.open = None

    @property
    def seconds_left(self) -> float:
        """How long the rest of the run is expected to take; inf if that is not known."""
        return self._seconds_left

    # ---- whose turn it is

    def due(self, step: int) -> bool:
        """Whether anything is to be measured at `step`.

        The answer for a step is given once and kept: asked before the optimizer steps and again
        after it, or once per micro-batch, it does not change, and after `charge` it is no.
        """
        if step == self._decided:
            return bool(self._due) or self._goes_on
        self._decided = step
        if (
            step < self._next_step
            and self.ledger.clock() < self._next_time
            and not self.density.news
        ):
            self._due, self._goes_on = (), False
            return False
        self._decide(step)
        return bool(self._due) or self._goes_on

    def due_names(self, step: int) -> tuple[str, ...]:
        """What begins at `step`, in the order of registration."""
        return self._due if self.due(step) else ()

    def goes_on(self, step: int) -> bool:
        """Whether the open measurement has a turn at `step`."""
        return self.due(step) and self._goes_on

    def _decide(self, step: int) -> None:
        if self._halted:
            return
        if self._opening is None:
            self._opening = self.ledger.seconds
        if self.density.look(step, self._length(step)):
            self._bring_forward(step)
        ready = [a for a in self._accounts.values() if step >= a.next_step > a.last_step]
        free = [a for a in ready if a.lifted or not self.ledger.limited]
        begins = [a for a in free if a.name != self.open]
        waiting = [a for a in ready if a not in begins and a.name != self.open]
        times = []
        light = [a for a in waiting if a.light]
        if light and (wait := self._until_their_share(light)) > 0.0:
            times.append(wait)
            light = []
        light_cost = min(self._cost_of(light), 0.9 * self.ledger.capacity) if light else 0.0
        opened = self._accounts.get(self.open) if self.open else None
        head = self._head(waiting, step) if opened is None else None
        self._goes_on = False
        if light and not self._is_there(light_cost):
            times.append(self.ledger.seconds_until(light_cost))  # what is left for them is theirs
        else:
            begins += light
            if opened is not None:
                needed = opened.slice
                self._goes_on = self._is_there(light_cost + needed)
                times.append(self.ledger.seconds_until(needed))
            elif head is not None:
                needed = self._needed(head) + self._common
                if self._is_there(light_cost + needed):
                    begins.append(head)
                else:
                    times.append(self.ledger.seconds_until(needed))
        for account in ready:
            if account.cadence is not None and account not in begins:
                account.next_step = self._after(account, step)  # its turn has passed
        order = list(self._accounts)
        self._due = tuple(sorted((a.name for a in begins), key=order.index))
        if self._due or self._goes_on:
            self._next_step, self._next_time = step + 1, -math.inf
            return
        later = (a.next_step for a in self._accounts.values() if a.next_step > step)
        gate = self._gate_step()
        opens = int(gate) if step < gate < 2**62 else 2**63
        self._next_step = min(min(later, default=2**63), opens)
        self._next_time = self.ledger.clock() + min(times, default=math.inf)
        if not self._begun and math.isinf(self._steps_at_end):
            self._next_time = min(self._next_time, self.ledger.clock() + BEGINS_AFTER_SECONDS / 4)

    def _is_there(self, seconds: float) -> bool:
        return self.ledger.level >= seconds

    def _needed(self, account: Account) -> float:
        """Seconds that must be there before it begins.

        What fits into the bucket begins when all of it is there: it would not be done earlier if
        it began at once, and tell of weights that have long moved on. The first is early, and small
        pieces of it are better than none.
        """
        whole = account.needed
        if account.spread and (account.count == 0 or whole > WHOLE_SHARE * self.ledger.capacity):
            return min(whole, account.slice)
        return whole

    def _until_their_share(self, light: list[Account]) -> float:
        """Seconds until what light observables may take together reaches for these."""
        accounts = self._accounts.values()
        if all(a.light for a in accounts):
            return 0.0
        spent = sum(a.seconds for a in accounts if a.light)
        earned = self.ledger.capacity + self.ledger.share * self.ledger.elapsed
        short = spent + self._cost_of(light) - LIGHT_SHARE * earned
        return max(0.0, short / (LIGHT_SHARE * self.ledger.share))

    def _cost_of(self, accounts: Iterable[Account]) -> float:
        known = (a.predicted if a.predicted is not None else LIGHT_SECONDS for a in accounts)
        return MARGIN * sum(known) + self._common

    def _head(self, waiting: list[Account], step: int) -> Account | None:
        """The next of those that are not light."""
        chosen = [
            a
            for a in waiting
            if not a.light and (self.has_begun(step) or not a.expensive) and not self.at_end(a.name)
        ]
        is_dense = self.density.is_open(step)
        return min(
            chosen,
            key=lambda a: (is_dense and a.weight <= 1.0, (a.seconds - a.aside) / a.weight),
            default=None,
        )

    def has_begun(self, step: int) -> bool:
        """Whether what is expensive may begin: not on the initialisation."""
        if not self._begun:
            by_step = step >= self._gate_step()
            unknown = math.isinf(self._steps_at_end)
            self._begun = by_step or (unknown and self.ledger.elapsed >= BEGINS_AFTER_SECONDS)
        return self._begun

    def begins_in_words(self) -> str:
        """When the first expensive measurement begins."""
        gate = self._gate_step()
        later = f"at {BEGINS_AFTER_SECONDS:.0f} s" if math.isinf(gate) else f"step {gate:.0f}"
        return f"loss falls, or {later}"

    def _gate_step(self) -> float:
        return max(2.0, BEGINS_AFTER * self._steps_at_end)

    # ---- what a measurement may take

    def deadline(self, name: str) -> float:
        """Seconds that a measurement of `name` should take at most, its pauses left out."""
        account = self._accounts[name]
        if account.lifted or not self.ledger.limited:
            return math.inf
        if not account.expensive or math.isinf(self._seconds_left):
            return math.inf if account.predicted is None else 4.0 * account.predicted
        share = self.share_of(name) * self.ledger.left_until(self._seconds_left)
        return max(share / WANTED_MEASUREMENTS, min(account.predicted or 0.0, share))

    def share_of(self, name: str) -> float:
        """Share of the budget that falls to an observable that is not light."""
        own = self._accounts[name]
        others = [a for a in self._accounts.values() if not a.light and not a.lifted]
        light = LIGHT_SHARE if len(others) < len(self._accounts) else 0.0
        return (1.0 - light) * own.weight / max(sum(a.weight for a in others), own.weight)

    def affordable_seconds(self, name: str, expected_seconds: float) -> float:
        """What one measurement may take, if the run is to see enough of them.

        Args:
            name: The observable.
            expected_seconds: Length of the run; one that is not known is taken for long.
        """
        seconds = min(expected_seconds, LONG_RUN_SECONDS)
        total = self.ledger.capacity + self.ledger.share * seconds
        return self.share_of(name) * total / WANTED_MEASUREMENTS

    def at_end(self, name: str) -> bool:
        """Whether the run has no room for one measurement before its end."""
        account = self._accounts[name]
        if account.lifted or account.light or not self.ledger.limited or account.predicted is None:
            return False
        if not account.spread and account.needed > self.ledger.capacity:
            return True
        return account.predicted > self._left()

    def _left(self) -> float:
        """Seconds that what is not light may take until the end: the rest goes on as it did."""
        left = self._seconds_left
        if self._opening is None or math.isinf(left):
            return self.ledger.left_until(left) - self.closing_seconds
        expensive = sum(a.seconds for a in self._accounts.values() if not a.light)
        spent = max(0.0, self.ledger.seconds - self._opening - expensive)
        rate = min(spent / max(self.ledger.elapsed, 1.0), self.ledger.share)
        return self.ledger.left_until(left) - rate * left - self.closing_seconds

    def never(self, name: str) -> bool:
        """Whether even a short measurement is more than the run has room for."""
        account = self._accounts[name]
        if not self.at_end(name) or account.predicted is None:
            return False
        return SHORTEST * account.predicted > self._left()

    def expected_measurements(self, name: str) -> float:
        """How many measurements of `name` the rest of the run has room for; inf if not known."""
        account = self._accounts.get(name)
        if account is None:
            return 0.0
        if account.cadence is not None and (account.lifted or not self.ledger.limited):
            return self._turns_by_cadence(account)
        if not self.ledger.limited or math.isinf(self._seconds_left):
            return math.inf
        total = max(0.0, self.ledger.left_until(self._seconds_left))
        if account.light:
            return self._light_measurements(total)
        cost = (account.predicted or UNKNOWN_SECONDS) + self._common
        return min(self.share_of(name) * total / cost, self._turns_left(account))

    def _light_measurements(self, total: float) -> float:
        light = [a for a in self._accounts.values() if a.light and not a.lifted]
        share = 1.0 if len(light) == len(self._accounts) else LIGHT_SHARE
        return min(share * total / max(self._cost_of(light), 1e-9), MAX_TURNS)

    def _turns_left(self, account: Account) -> float:
        left = self._steps_at_end - account.last_step
        return left / max(1, self._gap(account.last_step))

    def _turns_by_cadence(self, account: Account) -> float:
        if math.isinf(self._steps_at_end):
            return math.inf
        if isinstance(account.cadence, EveryNSteps):
            n = account.cadence.n
            return float(int(self._steps_at_end) // n - account.last_step // n)
        step, turns = account.last_step, 0
        while account.cadence and (step := account.cadence.next_after(step)) <= self._steps_at_end:
            turns += 1
        return float(turns)

    # ---- the account

    def _after(self, account: Account, step: int) -> int:
        regular = self._regularly_after(account, step)
        if (factor := self._factor(account, step)) == 1:
            return regular
        if account.cadence is not None:
            gap = account.cadence.next_after(regular) - regular
        else:
            gap = regular - step
        return min(regular, step + max(1, math.ceil(gap / factor)))

    def _regularly_after(self, account: Account, step: int) -> int:
        if account.cadence is not None:
            return account.cadence.next_after(step)
        return step + (self._gap(step) if account.light else 1)

    def _factor(self, account: Account, step: int) -> int:
        held_back = self.ledger.limited and not account.lifted
        return self.density.factor(step, held_back=held_back)

    def _bring_forward(self, step: int) -> None:
        """Measured is more densely from now on: turns come earlier, but for those put off."""
        for account in self._accounts.values():
            if account.put_off or self._factor(account, step) == 1:
                continue
            if account.next_step > step:
                after = max(step, self._after(account, account.last_step))
                account.next_step = min(account.next_step, after)

    def _gap(self, step: int) -> int:
        """Steps between two turns of light observables."""
        return max(1, math.ceil(self._length(step) / MAX_TURNS))

    def _length(self, step: int) -> float:
        """Length of the run in steps; an end that is not known is put off."""
        if not math.isinf(self._steps_at_end):
            return self._steps_at_end
        end = MAX_TURNS
        while end <= step:
            end *= 2
        return end

    def last_ones(self, step: int) -> list[str]:
        """What is measured once more, or for the first time, when training ends at `step`.

        λ̂ of the final weights, and whatever else the run had no room for.
        """
        chosen = [
            a
            for a in self._accounts.values()
            if a.cadence is None
            and not a.light
            and a.last_step < step
            and (a.count == 0 or a.weight > 1.0)
        ]
        return [a.name for a in sorted(chosen, key=lambda a: -a.weight)]

    def postpone(self, name: str, periods: int) -> None:
        """Skip the next `periods` turns of `name`, after failures."""
        account = self._accounts.get(name)
        if account is None:
            return
        account.put_off = True
        for _ in range(periods):
            account.next_step = self._after(account, account.next_step)

    def took(self, name: str, seconds: float) -> None:
        """Book a part of a measurement of `name`."""
        if account := self._accounts.get(name):
            account.seconds += seconds
            if account.weight > 1.0 and self.density.is_open(self._decided):
                account.aside += seconds
            if account.lifted:
                self.ledger.lift(seconds)

    def charge(self, name: str, step: int, seconds: float, *, cut_short: bool = False) -> None:
        """A measurement of `name` has ended, well or not: set its next turn.

        Args:
            name: The observable.
            step: The present step.
            seconds: All that the measurement took, its pauses left out.
            cut_short: Whether it was left unfinished: that tells nothing of what a whole one takes.
        """
        account = self._accounts.get(name)
        self._due = tuple(other for other in self._due if other != name)
        if self.open == name:
            self.open, self._goes_on = None, False
        if account is None:
            return
        account.count += 1
        if not cut_short:
            account.predicted = seconds
            account.correction = seconds / account.told if account.told else 1.0
        account.last_step = step
        account.put_off = False
        account.next_step = self._after(account, step)
        self._next_step = step + 1

    def begin(self, name: str, step: int) -> None:
        """A measurement of `name` has begun that will be gone on with at later steps."""
        self.open = name
        self._due = tuple(other for other in self._due if other != name)
        self._accounts[name].last_step = step

    def rest(self) -> None:
        """The open measurement has had its turn."""
        self._goes_on = False

    def shared(self, seconds: float) -> None:
        """Tell what copying and shielding the model took this time."""
        self._common = seconds if self._common == 0.0 else 0.5 * (self._common + seconds)

    def spending(self) -> AbstractContextManager[None]:
        """Count the time inside as overhead. Re-entrant: nested uses count once."""
        return self.ledger.spending()

    def state_dict(self) -> dict[str, Any]:
        """Last measured step by observable, and what is measured densely."""
        return {
            "last_steps": {name: a.last_step for name, a in self._accounts.items()},
            "dense": self.density.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave; observables it does not name start afresh."""
        for name, step in state["last_steps"].items():
            if name in self._accounts:
                self._accounts[name].last_step = int(step)
        if "dense" in state:  # not in checkpoints of an earlier version
            self.density.load_state_dict(state["dense"])
