"""Cadences (when an observable would like to be measured) and the overhead budget.

`Planner.due(step)` is the one method that answers "is it time?". It joins an observable's own
cadence with a budget of wall time that all observables share.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

WANTED_MEASUREMENTS = 10
"""A run should see at least so many measurements of each observable; chains shorten for it."""

SHORTEST_FRACTION = 0.25
"""A measurement is never asked to finish in less than this share of its full cost."""

COST_MARGIN = 1.5
"""Costs vary: the whole budget must have room for this many times the predicted cost."""

FIRST_SECONDS = 5.0
"""First measurements that may be dear begin as they come until they have taken so long together;
from then on each waits until the budget has room for those before it."""

CREDIT_CAP = 2.0
"""Unused credit is kept up to so many measurements; the rest goes to the other observables."""


class EveryNSteps(BaseModel):
    """Measure every `n` optimizer steps."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["every"] = "every"
    n: PositiveInt

    def next_after(self, step: int) -> int:
        """First scheduled step after `step`."""
        return (step // self.n + 1) * self.n


class LogSpaced(BaseModel):
    """Measure at steps that are evenly spaced in log(step).

    Attributes:
        per_decade: Measurements per factor of ten in steps.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["log"] = "log"
    per_decade: PositiveFloat = 20.0

    def next_after(self, step: int) -> int:
        """First scheduled step after `step`."""
        if step < 1:
            return 1
        index = math.floor(math.log10(step) * self.per_decade + 1e-9) + 1
        return max(step + 1, math.ceil(10 ** (index / self.per_decade) - 1e-9))


Cadence = Annotated[EveryNSteps | LogSpaced, Field(discriminator="kind")]
"""A cadence as the configuration writes it: `{kind: every, n: 100}`, `{kind: log, per_decade: 20}`.
"""


@dataclass(slots=True)
class _Account:
    """One observable's cadence and its share of the budget."""

    cadence: EveryNSteps | LogSpaced | None
    last_step: int
    next_step: int
    credit: float = 0.0
    cost: float | None = None
    first_cost: float = 0.0

    def schedule_after(self, step: int) -> None:
        self.last_step = step
        self.next_step = step + 1 if self.cadence is None else self.cadence.next_after(step)


class Planner:
    """Decides which observables are measured at which step, within a budget of wall time.

    Every second of wall time earns `budget` seconds of credit, split equally over the
    observables; what an observable has no use for goes to the others. An observable is due when
    its cadence says so and its credit covers its predicted cost. The first measurement of each
    always runs: its cost sets the prediction, and the ledger starts after it. Those of what may be
    dear come one at a time, lest many of them together hold up the training, and each has
    `FIRST_SECONDS`, or more in a run that is long enough.

    Args:
        cadences: Cadence by observable; None is "as often as the budget allows".
        budget: Share of wall time, in (0, 1]; 1 is no budget.
        clock: Monotonic seconds.
        dear: Observables whose cost may be large.
    """

    def __init__(
        self,
        cadences: Mapping[str, EveryNSteps | LogSpaced | None],
        budget: float,
        clock: Callable[[], float] = time.perf_counter,
        dear: Iterable[str] = (),
    ) -> None:
        self._clock = clock
        self._dear = frozenset(dear)
        self._first_seconds = 0.0
        self._budget = budget
        self._accounts = {
            name: _Account(cadence, last_step=0, next_step=0) for name, cadence in cadences.items()
        }
        self._depth = 0
        self._spent = 0.0
        self._total_spent = 0.0
        self._ledger_start: float | None = None
        self._accrued_at = 0.0
        self._unattributed = 0.0
        self._attributed = 0.0
        self._exempt = 0.0
        self._charged: list[_Account] = []
        self._expected_seconds = math.inf
        self._decided = -1
        self._due: tuple[str, ...] = ()
        self._next_step = 0
        self._next_time = -math.inf
        self.start(0)

    @property
    def budget(self) -> float:
        """Share of wall time that may be spent; 1 is no budget."""
        return self._budget

    @property
    def total_seconds(self) -> float:
        """All time spent on monitoring, the first measurements included."""
        return self._total_spent

    @property
    def overhead_ratio(self) -> float:
        """Time spent on monitoring over wall time, both since the first measurement."""
        if self._ledger_start is None:
            return 0.0
        wall = self._clock() - self._ledger_start
        return self._spent / wall if wall > 0 else 0.0

    def start(self, step: int) -> None:
        """Begin, or go on, at `step`; nothing is due at or before it."""
        for account in self._accounts.values():
            account.last_step = max(account.last_step, step)
            if account.cadence is None:
                account.next_step = step + 1
            else:
                account.next_step = account.cadence.next_after(step)
        self._decided = step
        self._due = ()
        self._next_step = min((a.next_step for a in self._accounts.values()), default=2**63)
        self._next_time = math.inf
        self._ledger_start = None
        self._spent = self._first_seconds = 0.0
        for account in self._accounts.values():
            account.cost = None
            account.credit = 0.0

    def expect(self, seconds: float) -> None:
        """Tell how long the rest of the run is expected to take; inf if that is not known."""
        self._expected_seconds = seconds

    def drop(self, name: str) -> None:
        """Measure `name` no more."""
        self._accounts.pop(name, None)
        self._due = tuple(other for other in self._due if other != name)

    def postpone(self, name: str, step: int, periods: int) -> None:
        """Skip the next `periods` turns of `name`, after failures."""
        account = self._accounts.get(name)
        if account is None:
            return
        account.schedule_after(step)
        for _ in range(periods):
            account.schedule_after(account.next_step)
        account.last_step = step

    def due(self, step: int) -> bool:
        """Whether anything is to be measured at `step`.

        The answer for a step is given once and kept: asked before the optimizer steps and again
        after it, or once per micro-batch, it does not change, and after `charge` it is no.
        """
        if step == self._decided:
            return bool(self._due)
        self._decided = step
        if step < self._next_step and self._clock() < self._next_time:
            if self._due:
                self._due = ()
            return False
        self._due = self._decide(step)
        return bool(self._due)

    def due_names(self, step: int) -> tuple[str, ...]:
        """What is to be measured at `step`, in the order of registration."""
        return self._due if self.due(step) else ()

    def _decide(self, step: int) -> tuple[str, ...]:
        ready = [n for n, a in self._accounts.items() if step >= a.next_step > a.last_step]
        due = tuple(ready) if self._budget >= 1.0 else self._affordable(ready)
        waiting = [self._accounts[n] for n in ready if n not in due]
        later = (a.next_step for n, a in self._accounts.items() if n not in ready)
        self._next_step = min(later, default=2**63) if not due else step + 1
        self._next_time = min(map(self._affordable_at, waiting), default=math.inf)
        return due

    def _affordable(self, names: list[str]) -> tuple[str, ...]:
        """Those that both their own credit and the budget as a whole have room for."""
        self._accrue()
        due: list[str] = []
        planned = 0.0
        for name in names:
            account = self._accounts[name]
            if account.cost is None and name in self._dear:
                begins = any(n in self._dear and self._accounts[n].cost is None for n in due)
                if begins or self._clock() < self._next_first():
                    continue
            if account.cost is not None:
                predicted = self._predicted(account)
                if account.credit < predicted or not self._has_room(planned + predicted):
                    continue
                planned += predicted
            due.append(name)
        return tuple(due)

    def _has_room(self, seconds: float) -> bool:
        if self._ledger_start is None:
            return True
        allowed = self._budget * (self._clock() - self._ledger_start)
        return self._spent + COST_MARGIN * seconds <= allowed

    def _next_first(self) -> float:
        """Time from which one more that may be dear may be measured for the first time."""
        if self._ledger_start is None:
            return -math.inf
        return self._ledger_start + (self._first_seconds - FIRST_SECONDS) / self._budget

    def _affordable_at(self, account: _Account) -> float:
        """Earliest time at which a waiting observable can be afforded."""
        if account.cost is None:
            return self._next_first()
        predicted = self._predicted(account)
        by_credit = self._clock() + (predicted - account.credit) / self._budget
        if self._ledger_start is None:
            return by_credit
        by_room = self._ledger_start + (self._spent + COST_MARGIN * predicted) / self._budget
        return max(by_credit, by_room)

    def _predicted(self, account: _Account) -> float:
        return min(account.cost or 0.0, self._target(account))

    def _target(self, account: _Account) -> float:
        """Cost at which the run still sees enough measurements; never below a quarter of full."""
        share = self._budget / max(1, len(self._accounts))
        wanted = self._expected_seconds * share / WANTED_MEASUREMENTS
        return max(wanted, SHORTEST_FRACTION * account.first_cost)

    def _accrue(self) -> None:
        """Turn the wall time since the last look into credit."""
        if self._ledger_start is None:
            return
        now = self._clock()
        amount = self._budget * (now - self._accrued_at) - self._unattributed
        self._accrued_at = now
        self._unattributed = 0.0
        if amount < 0:
            self._unattributed = -amount
            return
        open_accounts = [a for a in self._accounts.values() if a.cost is not None]
        while amount > 0 and open_accounts:
            share = amount / len(open_accounts)
            amount = 0.0
            still_open = []
            for account in open_accounts:
                room = CREDIT_CAP * (account.cost or 0.0) - account.credit
                taken = min(share, max(room, 0.0))
                account.credit += taken
                amount += share - taken
                if taken == share:
                    still_open.append(account)
            if len(still_open) == len(open_accounts):
                break
            open_accounts = still_open

    def deadline(self, name: str) -> float:
        """Seconds that the coming measurement of `name` should take at most."""
        account = self._accounts[name]
        if self._budget >= 1.0:
            return math.inf
        if account.cost is None:  # longer only where the run is so long that it will see enough
            return max(FIRST_SECONDS, self._target(account))
        return max(min(account.credit, account.first_cost), self._predicted(account))

    def expected_measurements(self, name: str) -> float:
        """How many measurements of `name` the rest of the run has room for; inf if not known."""
        account = self._accounts.get(name)
        if account is None or self._budget >= 1.0 or not account.cost:
            return math.inf
        share = self._budget / len(self._accounts)
        return self._expected_seconds * share / self._predicted(account)

    def charge(self, name: str, step: int, seconds: float) -> None:
        """Book one measurement (also a failed one) and set its next turn."""
        account = self._accounts.get(name)
        if account is None:
            return
        if account.cost is None:
            account.first_cost = seconds
            account.cost = seconds
            self._exempt += seconds
            self._first_seconds += seconds
        else:
            account.credit -= seconds
            account.cost = seconds
            account.first_cost = max(account.first_cost, seconds)
        self._attributed += seconds
        self._charged.append(account)
        account.schedule_after(step)
        self._due = tuple(other for other in self._due if other != name)
        self._next_step = step + 1

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Count the time inside as overhead. Re-entrant: nested uses count once."""
        if self._depth:
            yield
            return
        self._depth = 1
        self._attributed = self._exempt = 0.0
        self._charged.clear()
        begin = self._clock()
        try:
            yield
        finally:
            self._depth = 0
            self._book(self._clock() - begin)

    def _book(self, seconds: float) -> None:
        self._total_spent += seconds
        first = bool(self._charged) and self._attributed == self._exempt
        common = max(0.0, seconds - self._attributed)
        if self._charged:
            # Copying the model and shielding training is part of what measuring costs.
            for account in self._charged:
                share = common / len(self._charged)
                account.cost = (account.cost or 0.0) + share
                if first:
                    account.first_cost = account.cost
                else:
                    account.credit -= share
        elif self._ledger_start is not None:
            self._unattributed += common
        if first and self._ledger_start is None:
            self._ledger_start = self._accrued_at = self._clock()
        if self._ledger_start is not None and not first:
            self._spent += max(0.0, seconds - self._exempt)

    def state_dict(self) -> dict[str, Any]:
        """Last measured step by observable."""
        return {"last_steps": {name: a.last_step for name, a in self._accounts.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave; observables it does not name start afresh."""
        for name, step in state["last_steps"].items():
            if name in self._accounts:
                self._accounts[name].last_step = int(step)
