"""The ledger, on a clock that only moves when told."""

from __future__ import annotations

import math

import pytest

from phasewatch.monitor.run.budget import GRACE_SECONDS, Budget


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def started(share: float) -> tuple[Budget, Clock]:
    clock = Clock()
    budget = Budget(share, clock)
    budget.start()
    return budget, clock


def test_the_bucket_is_full_at_the_start_and_holds_no_more():
    budget, clock = started(0.05)
    assert budget.level == GRACE_SECONDS
    clock.now += 1000.0
    assert budget.level == GRACE_SECONDS


def test_wall_time_fills_it_and_spending_empties_it_while_it_runs():
    budget, clock = started(0.05)
    with budget.spending():
        clock.now += 1.0
        assert budget.level == pytest.approx(GRACE_SECONDS - 1.0 + 0.05)
        clock.now += 2.0
    assert budget.level == pytest.approx(GRACE_SECONDS - 3.0 + 0.15)
    missing = 3.0 - 0.15 - GRACE_SECONDS
    assert budget.seconds_until(0.0) == pytest.approx(missing / 0.05)
    assert math.isinf(budget.seconds_until(GRACE_SECONDS + 1.0))
    clock.now += missing / 0.05
    assert budget.level == pytest.approx(0.0)


def test_what_is_granted_beyond_the_share_is_two_seconds_with_what_runs_over():
    assert 1.5 < GRACE_SECONDS < 2.0


def test_everything_from_the_start_is_in_the_ratio():
    budget, clock = started(0.05)
    with budget.spending():
        clock.now += 1.0
        with budget.spending():  # nested: counts once
            clock.now += 1.0
    budget.spend_beside(0.5)
    clock.now += 8.0
    assert budget.seconds == pytest.approx(2.5)
    assert budget.overhead_ratio == pytest.approx(0.25)


def test_what_was_asked_for_is_counted_and_not_taken_from_the_bucket():
    budget, clock = started(0.05)
    with budget.spending():
        clock.now += 3.0
        budget.lift(2.5)
    assert budget.seconds == 3.0
    assert budget.level == pytest.approx(GRACE_SECONDS + 0.15 - 0.5, abs=0.16)


def test_another_attempt_has_a_ledger_of_its_own_and_the_total_goes_on():
    budget, clock = started(0.05)
    with budget.spending():
        clock.now += 1.0
    budget.start()
    assert (budget.seconds, budget.total_seconds, budget.level) == (0.0, 1.0, GRACE_SECONDS)


def test_without_a_budget_nothing_is_scarce_and_all_is_counted():
    budget, clock = started(1.0)
    with budget.spending():
        clock.now += 500.0
    assert math.isinf(budget.level)
    assert budget.overhead_ratio == pytest.approx(1.0)


def test_an_evaluation_that_takes_longer_than_the_grace_enlarges_the_bucket():
    budget, _ = started(0.05)
    assert math.isinf(budget.seconds_until(5.0))
    budget.enlarge(5.0)
    assert budget.seconds_until(5.0) == pytest.approx((5.0 - GRACE_SECONDS) / 0.05)


def test_what_is_held_back_is_there_again_afterwards():
    budget, _ = started(0.05)
    with budget.held_back(0.5):
        assert budget.level == pytest.approx(GRACE_SECONDS - 0.5)
    assert budget.level == pytest.approx(GRACE_SECONDS)
