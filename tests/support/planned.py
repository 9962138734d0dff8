"""A training loop on a clock that only moves when told, for what is planned in it."""

from __future__ import annotations

import math

from phasewatch.monitor.run.budget import Budget
from phasewatch.monitor.run.planner import Planner


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Loop:
    """A training loop whose steps and measurements take the time they are told to.

    Args:
        accounts: The observables.
        budget: Share of wall time.
        costs: Seconds of a measurement, by name; of one that is spread, in pieces.
        step_seconds: What a step takes.
        steps: Length of the run, as the planner knows it.
    """

    def __init__(self, *accounts, budget=1.0, costs=None, step_seconds=0.01, steps=math.inf):
        self.clock = Clock()
        self.costs = costs or {}
        self.planner = Planner(accounts, Budget(budget, self.clock))
        for account in accounts:
            if account.name in self.costs:
                piece = self.costs[account.name] / 100 if account.spread else 0.0
                self.planner.predict(account.name, self.costs[account.name], piece)
        self.planner.start(0, steps)
        self.steps, self.step_seconds = steps, step_seconds
        self.measured: dict[str, list[int]] = {a.name: [] for a in accounts}
        self.spent: list[tuple[float, float]] = []
        self.left: dict[str, float] = {}
        self.step = 0

    def run(self, steps: int, vary=lambda: 1.0) -> None:
        for _ in range(steps):
            self.step += 1
            self.clock.now += self.step_seconds
            self.planner.expect((self.steps - self.step) * self.step_seconds)
            if self.planner.due(self.step):
                with self.planner.spending():
                    self._turn(vary)
            self.spent.append((self.clock.now, self.planner.ledger.seconds))

    def _turn(self, vary) -> None:
        planner = self.planner
        if planner.goes_on(self.step):
            self._go_on(planner.open)
        for name in planner.due_names(self.step):
            cost = self.costs.get(name, 0.0) * vary()
            self.left[name] = cost
            account = planner.accounts[name]
            if account.spread and planner.ledger.limited and not account.lifted:
                planner.begin(name, self.step)
                self.measured[name].append(self.step)
                self._go_on(name)
            else:
                self.clock.now += cost
                planner.took(name, cost)
                planner.charge(name, self.step, cost)
                self.measured[name].append(self.step)
        planner.rest()

    def _go_on(self, name) -> None:
        planner, piece, took = self.planner, self.costs[name] / 100, 0.0
        while self.left[name] > 1e-12:
            self.clock.now += piece
            self.left[name] -= piece
            took += piece
            if planner.ledger.level < piece:
                break
        planner.took(name, took)
        if self.left[name] <= 1e-12:
            planner.charge(name, self.step, self.costs[name])

    def worst_excess(self, share: float) -> float:
        """Most seconds over the share of a window, over all windows."""
        over = [spent - share * now for now, spent in self.spent]
        lowest, worst = math.inf, -math.inf
        for value in [0.0 - share * 100.0, *over]:
            lowest = min(lowest, value)
            worst = max(worst, value - lowest)
        return worst
