"""The states of a transition: none that is told is skipped."""

import itertools

import pytest

from phasewatch.monitor.core.transitions import TransitionStatus as S
from phasewatch.monitor.transitions.life import Event, advance


@pytest.mark.parametrize("events", list(itertools.product(Event, repeat=3)))
def test_whatever_happens_it_is_confirmed_before_it_ends(events):
    told = [S.SUSPECTED]
    for event in events:
        told += advance(told[-1], event)
    assert len(told) == len(set(told))
    if S.ENDED in told:
        assert told == [S.SUSPECTED, S.CONFIRMED, S.ENDED]


@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("status", [S.ENDED, S.WITHDRAWN])
def test_what_is_over_stays_as_it_is(status, event):
    assert advance(status, event) == ()


def test_what_went_back_is_withdrawn_only_while_it_is_suspected():
    assert advance(S.SUSPECTED, Event.RETURNED) == (S.WITHDRAWN,)
    assert advance(S.CONFIRMED, Event.RETURNED) == ()
