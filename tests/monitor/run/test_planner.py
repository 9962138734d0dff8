"""When observables are measured, on a clock that only moves when told."""

from __future__ import annotations

import numpy as np
import pytest

from phasewatch.monitor.config.schedule import EveryNSteps, LogSpaced
from phasewatch.monitor.run.budget import GRACE_SECONDS, Budget
from phasewatch.monitor.run.planner import MAX_TURNS, Account, Planner
from support.planned import Clock, Loop


def test_every_n_steps_is_due_at_multiples_of_n():
    loop = Loop(Account("llc", EveryNSteps(n=4)))
    loop.run(13)
    assert loop.measured["llc"] == [4, 8, 12]


def test_a_step_count_that_jumps_over_a_multiple_is_measured_once_after_it():
    planner = Planner([Account("a", EveryNSteps(n=3))], Budget(1.0))
    measured = []
    for step in range(2, 20, 2):  # two optimizers: the count goes up by two
        if planner.due(step):
            measured.append(step)
            planner.charge("a", step, 0.0)
    assert measured == [4, 6, 10, 12, 16, 18]


def test_log_spaced_steps_grow_by_the_same_factor():
    cadence = LogSpaced(per_decade=2)
    steps = [cadence.next_after(0)]
    while steps[-1] < 1000:
        steps.append(cadence.next_after(steps[-1]))
    assert steps == [1, 4, 10, 32, 100, 317, 1000]


def test_the_answer_for_a_step_is_given_once_and_never_twice_after_measuring():
    planner = Planner([Account("a", EveryNSteps(n=2))], Budget(1.0))
    assert [planner.due(2), planner.due(2)] == [True, True]
    planner.charge("a", 2, 0.0)
    assert not planner.due(2)
    assert not planner.due(3)


def test_observables_keep_cadences_of_their_own():
    loop = Loop(Account("a", EveryNSteps(n=2)), Account("b", EveryNSteps(n=3)))
    loop.run(6)
    assert loop.measured == {"a": [2, 4, 6], "b": [3, 6]}


def llc(**fields):
    return Account("llc", expensive=True, spread=True, weight=4.0, **fields)


@pytest.mark.parametrize("budget", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("cost", [0.2, 1.8])
def test_over_any_window_no_more_than_the_share_and_the_grace_is_spent(budget, cost):
    loop = Loop(
        llc(), Account("norm"), budget=budget, costs={"llc": cost, "norm": 2e-4}, steps=6_000
    )
    loop.run(6_000)
    piece = cost / 100
    assert loop.worst_excess(budget) <= GRACE_SECONDS + 2 * piece
    earned = budget * 60.0 + GRACE_SECONDS
    assert loop.planner.ledger.seconds >= 0.7 * earned - 2.0


@pytest.mark.parametrize("seed", range(3))
def test_costs_that_vary_and_drains_in_between_do_not_break_the_promise(seed):
    random = np.random.default_rng(seed)
    loop = Loop(
        llc(),
        Account("forward", expensive=False),
        budget=0.05,
        costs={"llc": 1.5, "forward": 0.02},
        steps=12_000,
    )
    for _ in range(120):
        loop.run(100, vary=lambda: random.uniform(0.5, 1.5))
        with loop.planner.spending():
            loop.clock.now += 0.004
    assert loop.worst_excess(0.05) <= GRACE_SECONDS + 0.1
    assert len(loop.measured["llc"]) >= 3


def test_a_measurement_is_spread_over_turns_and_is_of_one_step():
    loop = Loop(llc(), budget=0.05, costs={"llc": 6.0}, steps=40_000)
    loop.run(40_000)
    gaps = np.diff(loop.measured["llc"])
    assert len(loop.measured["llc"]) >= 3
    assert min(gaps) >= 6_000  # six seconds at five per cent are two minutes


def test_lambda_is_not_measured_on_the_initialisation():
    loop = Loop(llc(), budget=0.05, costs={"llc": 0.1}, steps=10_000)
    loop.run(5_000)
    assert loop.measured["llc"][0] == 1000  # a tenth of the run
    loop = Loop(llc(), budget=0.05, costs={"llc": 0.1}, steps=10_000)
    loop.run(100)
    loop.planner.loss_fell()
    loop.run(10)
    assert loop.measured["llc"][0] == 101


def test_where_the_end_is_not_known_lambda_begins_after_ten_seconds():
    loop = Loop(llc(), budget=0.05, costs={"llc": 0.1})
    loop.run(2_000)
    assert 1_000 <= loop.measured["llc"][0] <= 1_300


def test_a_cadence_of_its_own_lifts_the_budget_for_that_observable_alone():
    loop = Loop(
        llc(cadence=EveryNSteps(n=20), lifted=True),
        Account("forward"),
        budget=0.05,
        costs={"llc": 0.5, "forward": 0.01},
        steps=400,
    )
    loop.run(400)
    assert loop.measured["llc"] == list(range(20, 401, 20))
    assert len(loop.measured["forward"]) >= 20  # what llc takes is not held against it
    assert loop.planner.ledger.seconds >= 10.0  # and is counted


def test_a_cadence_of_the_run_stays_within_a_budget_that_was_given_too():
    loop = Loop(llc(cadence=EveryNSteps(n=20)), budget=0.05, costs={"llc": 0.5}, steps=4_000)
    loop.run(4_000)
    assert all(step % 20 == 0 for step in loop.measured["llc"])
    assert loop.worst_excess(0.05) <= GRACE_SECONDS + 0.01


def test_light_observables_are_measured_together_and_at_most_so_often_in_a_run():
    loop = Loop(
        Account("a"),
        Account("b"),
        llc(),
        budget=0.05,
        costs={"a": 1e-5, "b": 1e-5, "llc": 0.1},
        steps=9_000,
    )
    loop.run(9_000)
    assert loop.measured["a"] == loop.measured["b"]
    assert 0.9 * MAX_TURNS <= len(loop.measured["a"]) <= MAX_TURNS


def test_light_observables_leave_most_of_the_budget_to_lambda():
    accounts = [Account(f"forward{index}") for index in range(20)]
    costs = {a.name: 0.02 for a in accounts} | {"llc": 1.0}
    loop = Loop(*accounts, llc(), budget=0.05, costs=costs, steps=20_000)
    loop.run(20_000)
    assert len(loop.measured["llc"]) >= 5
    assert min(len(loop.measured[a.name]) for a in accounts) >= 4


def test_of_the_expensive_each_gets_its_share():
    loop = Loop(
        llc(),
        Account("hessian", expensive=True, spread=True),
        budget=0.05,
        costs={"llc": 0.5, "hessian": 0.5},
        steps=60_000,
    )
    loop.run(60_000)
    ratio = len(loop.measured["llc"]) / len(loop.measured["hessian"])
    assert 2.5 < ratio < 6.0


def test_what_the_run_has_no_room_for_waits_for_its_end():
    loop = Loop(llc(), Account("norm"), budget=0.05, costs={"llc": 8.0, "norm": 1e-5}, steps=1_000)
    loop.run(999)
    assert loop.measured["llc"] == []
    assert loop.planner.at_end("llc")
    assert not loop.planner.never("llc")
    assert loop.planner.last_ones(1_000) == ["llc"]


def test_what_even_the_end_has_no_room_for_is_known():
    loop = Loop(llc(), budget=0.05, costs={"llc": 80.0}, steps=1_000)
    loop.run(1)
    assert loop.planner.never("llc")


def test_what_the_end_itself_takes_is_not_given_away_before():
    loop = Loop(llc(), budget=0.05, costs={"llc": 1.0}, steps=1_000)
    loop.run(1)
    loop.planner.expect(1.0)
    assert not loop.planner.at_end("llc")
    loop.planner.closing_seconds = GRACE_SECONDS
    assert loop.planner.at_end("llc")


def test_what_cannot_be_left_in_the_middle_begins_only_when_all_of_it_is_there():
    loop = Loop(Account("whole", expensive=True), budget=0.05, costs={"whole": 1.2}, steps=10_000)
    loop.run(10_000)
    assert loop.worst_excess(0.05) <= GRACE_SECONDS + 1e-6
    assert len(loop.measured["whole"]) >= 2


def test_the_forecast_of_how_many_comes_true():
    loop = Loop(llc(), Account("norm"), budget=0.05, costs={"llc": 0.5, "norm": 1e-4}, steps=6_000)
    loop.planner.expect(60.0)
    expected = {name: loop.planner.expected_measurements(name) for name in ("llc", "norm")}
    loop.run(6_000)
    for name, count in expected.items():
        assert 0.5 <= len(loop.measured[name]) / count <= 2.0, name


def test_without_a_budget_everything_runs_at_its_cadence():
    loop = Loop(llc(cadence=EveryNSteps(n=10)), budget=1.0, costs={"llc": 3.0})
    loop.run(100)
    assert loop.measured["llc"] == list(range(10, 101, 10))


def test_after_failures_turns_are_skipped():
    planner = Planner([Account("a", EveryNSteps(n=2))], Budget(1.0))
    assert planner.due(2)
    planner.charge("a", 2, 0.0)
    planner.postpone("a", 3)
    assert [step for step in range(3, 13) if planner.due(step)] == [10, 11, 12]


def test_a_dropped_observable_is_never_due():
    planner = Planner([Account("a", EveryNSteps(n=1)), Account("b", EveryNSteps(n=1))], Budget(1.0))
    planner.drop("a")
    assert planner.due_names(1) == ("b",)
    planner.drop("b")
    assert not planner.due(2)


def test_a_run_that_was_asked_to_stop_measures_nothing_more():
    planner = Planner([Account("a", EveryNSteps(n=1))], Budget(1.0))
    assert planner.due(1)
    planner.halt()
    assert not planner.due(1)
    assert not planner.due(2)


def test_after_a_resume_the_schedule_goes_on():
    planner = Planner([Account("a", EveryNSteps(n=10))], Budget(1.0))
    planner.load_state_dict({"last_steps": {"a": 30, "gone": 5}})
    planner.start(35)
    assert [step for step in range(35, 60) if planner.due(step)] == [40, *range(41, 60)]
    assert planner.state_dict()["last_steps"] == {"a": 35}


def test_a_step_on_which_nothing_can_be_due_asks_only_the_clock(monkeypatch):
    loop = Loop(llc(), budget=0.05, costs={"llc": 1.9}, steps=1e6)
    loop.planner.loss_fell()
    loop.run(2_000)
    asked = []
    monkeypatch.setattr(loop.planner, "_decide", asked.append)
    loop.run(1)
    assert len(asked) <= 1


def test_one_that_fits_into_the_bucket_begins_when_all_of_it_is_there():
    """It ends in the step it began at: it tells of weights of now, and none is left unfinished."""
    loop = Loop(llc(), budget=0.05, costs={"llc": 1.2}, steps=20_000)
    loop.run(20_000)
    assert len(loop.measured["llc"]) >= 6  # 1.9 s and five per cent of 200 s
    assert loop.planner.open is None
    for step in loop.measured["llc"][1:]:
        spent = dict(enumerate(seconds for _, seconds in loop.spent))
        assert spent[step - 1] - spent[step - 2] >= 1.2


def test_what_else_is_spent_is_no_part_of_what_is_left_for_lambda():
    """3.4 s are left for the run's last 30 s, and most of it goes on being spent on other work."""
    loop = Loop(llc(), budget=0.05, costs={"llc": 3.0}, steps=6_000)
    for _ in range(3_000):
        loop.run(1)
        with loop.planner.spending():
            loop.clock.now += 0.0004
    assert loop.planner.ledger.left_until(30.0) > 3.0
    assert loop.planner.at_end("llc")


def test_what_the_latest_one_took_corrects_what_is_told_of_the_next():
    planner = Planner([llc()], Budget(0.05, Clock()))
    planner.predict("llc", 4.0, 0.01)
    planner.charge("llc", 10, 6.0)
    planner.predict("llc", 2.0, 0.01)  # it goes on where the first one ended
    assert planner.accounts["llc"].predicted == pytest.approx(3.0)
