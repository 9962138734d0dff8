"""Around a suspicion is measured more densely: for how long, how often, and never beyond."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from phasewatch.monitor.config.schedule import EveryNSteps, LogSpaced
from phasewatch.monitor.core.health import Health
from phasewatch.monitor.core.transitions import TransitionStatus
from phasewatch.monitor.run.budget import GRACE_SECONDS
from phasewatch.monitor.run.density import DENSER, REFUSED, SHARE, WINDOW, Density
from phasewatch.monitor.run.planner import MAX_TURNS, Account
from support.planned import Loop
from support.records import make_transition

SUSPECTED = TransitionStatus.SUSPECTED
CONFIRMED = TransitionStatus.CONFIRMED
WITHDRAWN = TransitionStatus.WITHDRAWN


def tell(density, status=SUSPECTED, name="t1"):
    density.told(make_transition("r", transition_id=name, status=status))


class Watched(Loop):
    """A loop in which something is suspected at the steps that it is told."""

    def __init__(self, *accounts, factor=None, **more):
        super().__init__(*accounts, **more)
        self.health = Health()
        self.planner.density = Density(factor, self.health)

    def suspect(self, name="t1", status=SUSPECTED):
        tell(self.planner.density, status, name)


def gaps(steps):
    return np.diff(steps).tolist()


def test_a_suspicion_makes_a_cadence_four_times_as_dense_for_a_twentieth_of_the_run():
    loop = Watched(Account("a", EveryNSteps(n=100)), factor=4, steps=10_000)
    loop.run(4_110)
    loop.suspect()
    loop.run(1_000)
    measured = [step for step in loop.measured["a"] if step >= 4_000]
    window = [step for step in measured if 4_110 < step <= 4_625]
    assert window == list(range(4_125, 4_626, 25))  # the last was planned before its end, at 4,611
    assert len(window) == DENSER * 5 + 1
    assert [step for step in measured if step > 4_625] == [4_700, 4_800, 4_900, 5_000, 5_100]
    assert loop.health.dense_windows == 1


def test_steps_of_the_cadence_itself_are_never_left_out():
    for n in (3, 10, 7):
        loop = Watched(Account("a", EveryNSteps(n=n)), factor=4, steps=1_000)
        loop.run(500)
        loop.suspect()
        loop.run(100)
        assert set(range(n, 600, n)) <= set(loop.measured["a"])


def test_evenly_spaced_logarithms_are_cut_in_four():
    cadence = LogSpaced(per_decade=20)
    loop = Watched(Account("a", cadence), factor=4, steps=40_000)
    loop.run(10_010)
    loop.suspect()
    loop.run(4_000)
    first = cadence.next_after(10_010)
    dense = [step for step in loop.measured["a"] if 10_010 < step <= first]
    assert len(dense) == DENSER


@pytest.mark.parametrize("factor", [None, 1])
def test_a_cadence_without_a_budget_is_kept_to_unless_the_user_says_how_much_denser(factor):
    loop = Watched(Account("a", EveryNSteps(n=100)), factor=factor, steps=10_000)
    loop.run(4_110)
    loop.suspect()
    loop.run(1_000)
    assert loop.measured["a"] == list(range(100, 5_110, 100))


def test_norms_within_a_budget_are_measured_four_times_as_often():
    loop = Watched(Account("norm"), budget=0.05, costs={"norm": 1e-4}, steps=30_000)
    loop.run(10_000)
    loop.suspect()
    loop.run(3_000)
    inside = [step for step in loop.measured["norm"] if 10_000 < step <= 11_500]
    outside = [step for step in loop.measured["norm"] if step > 11_600]
    assert set(gaps(inside)) == {30_000 // MAX_TURNS // 4}
    assert set(gaps(outside)) == {30_000 // MAX_TURNS}


def test_the_budget_holds_whatever_is_suspected():
    accounts = [
        Account("llc", expensive=True, spread=True, weight=4.0),
        Account("spectrum", EveryNSteps(n=50)),
        Account("norm"),
    ]
    costs = {"llc": 1.5, "spectrum": 0.2, "norm": 0.02}
    loop = Watched(*accounts, budget=0.05, costs=costs, steps=20_000)
    loop.planner.loss_fell()
    for number in range(200):
        loop.suspect(f"t{number}")
        loop.run(100)
    assert loop.health.dense_windows > 3
    assert loop.worst_excess(0.05) <= GRACE_SECONDS + 0.2 + 1e-6


def test_of_the_expensive_ones_the_first_is_first_and_others_are_not_behind_for_it_later():
    def measured(*, suspected):
        accounts = [Account("llc", expensive=True, weight=4.0)]
        accounts += [Account(f"other{i}", expensive=True) for i in range(12)]
        costs = {account.name: 0.5 for account in accounts}
        loop = Watched(*accounts, budget=0.05, costs=costs, steps=100_000)
        loop.planner.loss_fell()
        loop.run(50_000)
        if suspected:
            loop.suspect()
        loop.run(5_000)
        inside = [step for step in loop.measured["llc"] if step > 50_000]
        loop.run(45_000)
        after = [step for step in loop.measured["llc"] if step > 55_000]
        return len([step for step in inside if step <= 55_000]), len(after)

    (calm, _), (dense, after) = measured(suspected=False), measured(suspected=True)
    assert dense >= 3 * calm
    share = 4.0 / (4.0 + 12.0) * 0.05 * 450.0 / 0.5
    assert after >= share - 1  # what it had then is not held against it


def test_what_has_failed_is_not_brought_forward():
    loop = Watched(Account("a", EveryNSteps(n=100)), factor=4, steps=10_000)
    loop.run(4_100)
    loop.planner.postpone("a", 3)
    loop.suspect()
    loop.run(150)
    assert [step for step in loop.measured["a"] if step > 4_100] == []


def test_a_run_in_which_something_is_always_suspected_is_dense_for_a_quarter_of_it():
    health = Health()
    density = Density(4, health)
    num_dense, length = 0, 10_000
    for step in range(1, length + 1):
        tell(density, name=f"t{step}")
        density.look(step, length)
        num_dense += density.is_open(step)
        assert num_dense <= SHARE * step + WINDOW * length
    assert num_dense > 0.2 * length
    assert health.skipped[REFUSED] > 0
    assert density.changes[0] == (1, 4)
    opened = [step for step, factor in density.changes if factor == 4]
    closed = [step for step, factor in density.changes if factor == 1]
    assert all(a < b for a, b in zip(opened, closed, strict=False))


def test_a_withdrawn_suspicion_ends_it_at_once_unless_another_stands():
    density = Density(4)
    tell(density, name="a")
    tell(density, name="b")
    density.look(1_000, 10_000)
    tell(density, WITHDRAWN, "a")
    density.look(1_010, 10_000)
    assert density.is_open(1_010)
    tell(density, WITHDRAWN, "b")
    density.look(1_020, 10_000)
    assert not density.is_open(1_020)
    assert list(density.changes) == [(1_000, 4), (1_020, 1)]


def test_a_confirmation_lengthens_it_once_however_often_it_is_told():
    density = Density(4)
    tell(density)
    density.look(5_000, 10_000)
    for step, kind in zip((5_400, 5_480), ("acquisition", "generalisation"), strict=True):
        density.told(replace(make_transition("r", status=CONFIRMED), kind=kind))
        density.look(step, 10_000)
    assert density.is_open(5_899)
    assert not density.is_open(5_900)


def test_it_goes_on_after_a_resume_and_forgets_nothing_of_what_was_used():
    def run(density, steps):
        for step in steps:
            if step % 100 == 0:
                tell(density, name=f"t{step}")
            density.look(step, 5_000)
            yield density.is_open(step)

    whole = list(run(Density(4), range(1, 5_000)))
    first, second = Density(4), Density(4)
    parts = list(run(first, range(1, 2_350)))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    parts += run(second, range(2_350, 5_000))
    assert parts == whole
    assert any(whole)


def test_the_length_of_a_run_may_be_unknown():
    loop = Watched(Account("norm"), budget=0.05, costs={"norm": 1e-4})
    loop.run(5_000)
    loop.suspect()
    loop.run(1_000)
    inside = [step for step in loop.measured["norm"] if 5_000 < step <= 5_480]
    before = [step for step in loop.measured["norm"] if 4_900 < step <= 5_000]
    assert max(gaps(inside)) * DENSER <= max(gaps(before)) + DENSER
    assert not loop.planner.density.is_open(loop.step)
