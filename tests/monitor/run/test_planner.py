"""Cadences and the overhead budget, on a clock that only moves when told."""

from __future__ import annotations

import math

import numpy as np
import pytest

from phasewatch.monitor.config.schedule import EveryNSteps, LogSpaced, Planner


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Loop:
    """A training loop whose steps and measurements take the time they are told to."""

    def __init__(self, cadences, budget=1.0, costs=None, step_seconds=0.001, dear=()):
        self.clock = Clock()
        self.planner = Planner(cadences, budget, clock=self.clock, dear=dear)
        self.costs = costs or {}
        self.step_seconds = step_seconds
        self.measured: dict[str, list[int]] = {name: [] for name in cadences}
        self.begun: dict[str, float] = {}
        self.ratios: list[float] = []
        self.step = 0

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step += 1
            self.clock.now += self.step_seconds
            if self.planner.due(self.step):
                with self.planner.spending():
                    for name in self.planner.due_names(self.step):
                        cost = self.costs.get(name, 0.0)
                        self.begun.setdefault(name, self.clock.now)
                        self.clock.now += cost
                        self.measured[name].append(self.step)
                        self.planner.charge(name, self.step, cost)
            self.ratios.append(self.planner.overhead_ratio)


def test_every_n_steps_is_due_at_multiples_of_n() -> None:
    loop = Loop({"llc": EveryNSteps(n=4)})
    loop.run(13)
    assert loop.measured["llc"] == [4, 8, 12]


def test_a_step_count_that_jumps_over_a_multiple_is_measured_once_after_it() -> None:
    planner = Planner({"a": EveryNSteps(n=3)}, 1.0)
    measured = []
    for step in range(2, 20, 2):  # two optimizers: the count goes up by two
        if planner.due(step):
            measured.append(step)
            planner.charge("a", step, 0.0)
    assert measured == [4, 6, 10, 12, 16, 18]


def test_log_spaced_steps_grow_by_the_same_factor() -> None:
    cadence = LogSpaced(per_decade=2)
    steps = [cadence.next_after(0)]
    while steps[-1] < 1000:
        steps.append(cadence.next_after(steps[-1]))
    assert steps == [1, 4, 10, 32, 100, 317, 1000]


def test_the_answer_for_a_step_is_given_once_and_never_twice_after_measuring() -> None:
    planner = Planner({"a": EveryNSteps(n=2)}, 1.0)
    assert [planner.due(2), planner.due(2)] == [True, True]
    planner.charge("a", 2, 0.0)
    assert not planner.due(2)
    assert not planner.due(3)


def test_observables_keep_cadences_of_their_own() -> None:
    loop = Loop({"a": EveryNSteps(n=2), "b": EveryNSteps(n=3)})
    loop.run(6)
    assert loop.measured == {"a": [2, 4, 6], "b": [3, 6]}


@pytest.mark.parametrize("budget", [0.01, 0.05, 0.3])
def test_the_budget_is_obeyed_after_the_first_measurement_and_used(budget: float) -> None:
    loop = Loop({"llc": None}, budget, {"llc": 0.2})
    loop.run(int(1_000 / budget))
    first = loop.measured["llc"][0]
    assert first == 1
    assert max(loop.ratios[first:]) <= budget + 0.01
    assert loop.ratios[-1] >= budget / 2


def test_a_cheap_observable_does_not_starve_a_dear_one() -> None:
    loop = Loop({"cheap": None, "dear": None}, 0.05, {"cheap": 0.0001, "dear": 0.5})
    loop.run(60_000)
    assert len(loop.measured["dear"]) >= 3
    assert len(loop.measured["cheap"]) >= 1000
    assert loop.ratios[-1] <= 0.06


def test_what_a_cheap_observable_leaves_goes_to_the_dear_one() -> None:
    loop = Loop({"cheap": EveryNSteps(n=1000), "dear": None}, 0.05, {"cheap": 0.0001, "dear": 0.5})
    loop.run(100_000)
    assert loop.ratios[-1] >= 0.04


def test_overhead_outside_measurements_is_taken_from_the_budget() -> None:
    loop = Loop({"llc": None}, 0.05, {"llc": 0.01})
    for _ in range(200):
        loop.run(100)
        with loop.planner.spending():
            loop.clock.now += 0.003  # a drain every 100 steps: 3 % on its own
    assert loop.planner.overhead_ratio <= 0.06


def test_what_measurements_share_is_counted_as_their_cost() -> None:
    loop = Loop({"cheap": None, "dear": None}, 0.05, {"cheap": 0.0001, "dear": 0.5})
    shield = 0.02  # copying the model costs more than the cheap observable itself
    for _ in range(60_000):
        loop.step += 1
        loop.clock.now += loop.step_seconds
        if loop.planner.due(loop.step):
            with loop.planner.spending():
                loop.clock.now += shield
                for name in loop.planner.due_names(loop.step):
                    loop.clock.now += loop.costs[name]
                    loop.measured[name].append(loop.step)
                    loop.planner.charge(name, loop.step, loop.costs[name])
        loop.ratios.append(loop.planner.overhead_ratio)
    assert max(loop.ratios[1000:]) <= 0.06
    assert loop.ratios[-1] >= 0.025
    assert len(loop.measured["dear"]) >= 3
    assert len(loop.measured["cheap"]) >= 50


@pytest.mark.parametrize("seed", range(3))
def test_costs_that_vary_and_drains_in_between_do_not_break_the_budget(seed: int) -> None:
    random = np.random.default_rng(seed)
    loop = Loop({"cheap": None, "dear": None}, 0.05, {"cheap": 0.002, "dear": 0.3})
    for step in range(1, 180_001):
        loop.clock.now += loop.step_seconds
        if step % 256 == 0:
            with loop.planner.spending():
                loop.clock.now += 0.004
        if loop.planner.due(step):
            with loop.planner.spending():
                loop.clock.now += 0.003
                for name in loop.planner.due_names(step):
                    cost = loop.costs[name] * random.uniform(0.5, 1.5)
                    loop.clock.now += cost
                    loop.measured[name].append(step)
                    loop.planner.charge(name, step, cost)
        loop.ratios.append(loop.planner.overhead_ratio)
    assert max(loop.ratios[300:]) <= 0.06
    assert loop.ratios[-1] >= 0.025
    assert len(loop.measured["dear"]) >= 5


def test_nested_spending_counts_once() -> None:
    clock = Clock()
    planner = Planner({}, 1.0, clock=clock)
    with planner.spending():
        clock.now += 1
        with planner.spending():
            clock.now += 1
    assert planner.total_seconds == 2


def test_without_a_budget_everything_runs_at_its_cadence() -> None:
    loop = Loop({"llc": None}, 1.0, {"llc": 10.0})
    loop.run(5)
    assert loop.measured["llc"] == [1, 2, 3, 4, 5]
    assert loop.planner.deadline("llc") == math.inf


def test_a_short_run_asks_for_shorter_measurements_but_not_below_a_quarter() -> None:
    loop = Loop({"llc": None}, 0.05, {"llc": 1.0})
    loop.run(1)
    loop.planner.expect(100.0)
    assert 0.25 <= loop.planner.deadline("llc") <= 0.5
    assert loop.planner.expected_measurements("llc") == pytest.approx(10)
    loop.planner.expect(10.0)
    assert loop.planner.deadline("llc") == pytest.approx(0.25)
    assert loop.planner.expected_measurements("llc") == pytest.approx(2)


def test_after_failures_turns_are_skipped() -> None:
    planner = Planner({"a": EveryNSteps(n=10)}, 1.0)
    assert planner.due(10)
    planner.charge("a", 10, 0.0)
    planner.postpone("a", 10, periods=3)
    assert [step for step in range(11, 60) if planner.due(step)] == [*range(50, 60)]


def test_a_dropped_observable_is_never_due() -> None:
    planner = Planner({"a": EveryNSteps(n=1)}, 1.0)
    assert planner.due(1)
    planner.drop("a")
    assert not planner.due(1)
    assert not planner.due(2)


def test_after_a_resume_the_schedule_goes_on() -> None:
    planner = Planner({"a": EveryNSteps(n=10)}, 1.0)
    planner.due(10)
    planner.charge("a", 10, 0.0)
    resumed = Planner({"a": EveryNSteps(n=10)}, 1.0)
    resumed.load_state_dict(planner.state_dict())
    resumed.start(10)
    assert [step for step in range(11, 21) if resumed.due(step)] == [20]


def test_first_measurements_of_the_dear_come_one_at_a_time_and_within_the_budget() -> None:
    costs = {"cheap": 0.001, "a": 3.0, "b": 4.0, "c": 1.0, "d": 1.0}
    loop = Loop(dict.fromkeys(costs), 0.1, costs, step_seconds=0.1, dear="abcd")
    loop.run(1500)
    first = {name: steps[0] for name, steps in loop.measured.items()}
    assert (first["cheap"], first["a"]) == (1, 1), "the first of them waits for nobody"
    assert first["b"] == 2, "so far they took less than five seconds"
    # Seven seconds were spent, five are free: a tenth of twenty makes up for the other two.
    assert loop.begun["c"] - (loop.begun["a"] + costs["a"]) == pytest.approx(20.0, abs=0.2)
    assert loop.begun["d"] - loop.begun["c"] == pytest.approx(10.0, abs=4.1)  # others are due too
    assert min(map(len, loop.measured.values())) >= 2


def test_cheap_first_measurements_all_run_at_once() -> None:
    names = [f"observable{i}" for i in range(30)]
    loop = Loop(dict.fromkeys(names), 0.05, dict.fromkeys(names, 0.01))
    loop.run(3)
    assert {steps[0] for steps in loop.measured.values()} == {1}


def test_of_the_dear_that_take_little_each_step_begins_one() -> None:
    loop = Loop(dict.fromkeys("abc"), 0.05, dict.fromkeys("abc", 0.01), dear="abc")
    loop.run(4)
    assert [loop.measured[name][0] for name in "abc"] == [1, 2, 3]


def test_without_a_budget_the_dear_begin_together() -> None:
    loop = Loop(dict.fromkeys("abc", EveryNSteps(n=2)), 1.0, dict.fromkeys("abc", 9.0), dear="abc")
    loop.run(2)
    assert [loop.measured[name] for name in "abc"] == [[2], [2], [2]]


def test_one_that_waits_for_its_first_turn_costs_a_step_nothing(monkeypatch) -> None:
    loop = Loop(dict.fromkeys("ab"), 0.05, {"a": 60.0, "b": 1.0}, dear="ab")
    loop.run(1)
    asked = []
    monkeypatch.setattr(loop.planner, "_affordable", lambda names: asked.append(names) or ())
    loop.run(100)
    assert len(asked) <= 1


@pytest.mark.parametrize(
    ("expected_seconds", "deadline"),
    [(math.inf, math.inf), (60.0, 5.0), (86_400.0, 86_400.0 * 0.05 / 2 / 10)],
)
def test_a_first_measurement_has_five_seconds_or_what_the_run_can_afford_ten_times(
    expected_seconds: float, deadline: float
) -> None:
    planner = Planner({"llc": None, "weight_norm": None}, 0.05)
    planner.expect(expected_seconds)
    assert planner.deadline("llc") == pytest.approx(deadline)
    assert Planner({"llc": None}, 1.0).deadline("llc") == math.inf, "without a budget"
