"""Recorded runs of the addition example: each digit is found, when it is learnt.

The histories were made by

    python examples/addition.py --seed N --out demo
    python tests/support/recorded.py demo/phasewatch.db addition-seedN tests/golden/addition_N.npz
"""

from __future__ import annotations

import functools

import pytest

from phasewatch.monitor.core.transitions import TransitionKind
from support import recorded

SEEDS = (0, 1, 2)
EVERY = 10
KNOWN = 1.0
LEARNT_ONE_BY_ONE = (3, 2, 1, 0)
"""The two highest digits are learnt within the first 200 steps, from the very first one on."""


def path_of(seed: int):
    return recorded.GOLDEN / f"addition_{seed}.npz"


@functools.cache
def found(seed: int):
    """What was told while it ran, and looking back."""
    return recorded.transitions_of(path_of(seed))


def known_from(seed: int, digit: int) -> int:
    """First step at which the loss of a digit is below one nat."""
    history = recorded.read(path_of(seed))
    name = f"loss_digit_{digit}"
    return next(o.step for o in history if o.name == name and o.value < KNOWN)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("digit", LEARNT_ONE_BY_ONE)
def test_each_digit_raises_one_alarm_when_it_is_learnt(seed, digit) -> None:
    name = f"loss_digit_{digit}"
    (transition,) = [t for t in found(seed) if name in t.evidence]
    assert transition.kind is TransitionKind.ACQUISITION
    alarm, known = transition.evidence[name], known_from(seed, digit)
    # It leaves the plateau at ln 10 before it is known, and is told while it falls.
    assert known - 12 * EVERY <= alarm.onset_step < known
    assert abs(alarm.detected_step - known) <= 3 * EVERY
    assert alarm.value_before > 2.0


@pytest.mark.parametrize("seed", SEEDS)
def test_every_transition_is_that_of_a_digit(seed) -> None:
    digits = {f"loss_digit_{digit}" for digit in LEARNT_ONE_BY_ONE}
    for transition in found(seed):
        assert digits & transition.evidence.keys(), transition


@pytest.mark.parametrize("seed", SEEDS)
def test_the_highest_digit_is_learnt_first_and_the_units_last(seed) -> None:
    steps = [known_from(seed, digit) for digit in (5, 4, *LEARNT_ONE_BY_ONE)]
    assert steps == sorted(set(steps))
    assert steps[1] <= 200


@pytest.mark.parametrize(("seed", "number"), [(0, 2), (1, 2), (2, 1)])
def test_digits_that_fall_together_are_one_transition_with_an_alarm_each(seed, number) -> None:
    # In the first two runs the units begin to fall when the digits before them have come to rest,
    # or nearly so; in the third all four leave their plateaus within 110 steps.
    assert len(found(seed)) == number
    beside = next(t for t in found(seed) if "loss_digit_0" in t.evidence).evidence
    assert ("loss_digit_3" in beside) is (number == 1)
