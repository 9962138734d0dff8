"""Fusing alarms, the life of a transition, and its kind."""

from __future__ import annotations

import json

import pytest

from phasewatch.detectors.types import Alarm, AlarmKind, Direction
from phasewatch.monitor.episodes import Point
from phasewatch.monitor.kinds import classify, severity
from phasewatch.monitor.names import is_validation
from phasewatch.monitor.streams import Role
from phasewatch.monitor.transitions import TransitionTracker
from phasewatch.monitor.types import TransitionKind, TransitionStatus


def alarm(onset=100, detected=120, direction=Direction.DOWN, kind=AlarmKind.SHIFT, **values):
    return Alarm(
        detected_step=detected,
        onset_step=onset,
        direction=direction,
        kind=kind,
        score=1.5,
        run_length=4,
        value_before=values.get("before", 1.0),
        value_after=values.get("after", 0.5),
    )


def point(name, step, value=0.5, *, alarm=None, active=True, role=Role.LEAD):
    return Point(
        name=name,
        step=step,
        value=value,
        epoch=0,
        timestamp=float(step),
        active=active,
        role=role,
        alarm=alarm,
    )


@pytest.fixture
def tracker() -> TransitionTracker:
    return TransitionTracker("run", 1)


def test_one_alarm_is_a_suspected_transition(tracker) -> None:
    (transition,) = tracker.update(point("val_loss", 120, alarm=alarm()))
    assert transition.status is TransitionStatus.SUSPECTED
    assert (transition.onset_step, transition.detected_step) == (100, 120)
    assert transition.kind is TransitionKind.GENERALISATION


def test_a_second_observable_confirms_and_joins_the_evidence(tracker) -> None:
    tracker.update(point("val_loss", 120, alarm=alarm()))
    (transition,) = tracker.update(point("llc", 130, alarm=alarm(90, 130)))
    assert transition.status is TransitionStatus.CONFIRMED
    assert set(transition.evidence) == {"val_loss", "llc"}
    assert transition.onset_step == 90
    assert len(tracker.found) == 1


def test_a_change_that_holds_is_confirmed_once(tracker) -> None:
    tracker.update(point("val_loss", 120, alarm=alarm()))
    states = [tracker.update(point("val_loss", step, 0.45)) for step in (125, 130, 135, 140)]
    assert [[t.status for t in changed] for changed in states] == [
        [],
        [TransitionStatus.CONFIRMED],
        [],
        [],
    ]


def test_a_change_that_goes_back_is_withdrawn(tracker) -> None:
    tracker.update(point("val_loss", 120, alarm=alarm()))
    tracker.update(point("val_loss", 128, 1.0))
    (transition,) = tracker.update(point("val_loss", 132, 1.0))
    assert transition.status is TransitionStatus.WITHDRAWN
    assert transition.end_step == 132


def test_it_ends_when_every_detector_is_out_of_the_episode(tracker) -> None:
    tracker.update(point("val_loss", 120, alarm=alarm()))
    tracker.update(point("llc", 122, alarm=alarm()))
    assert tracker.update(point("val_loss", 140, 0.3, active=False)) == []
    (transition,) = tracker.update(point("llc", 150, 0.3, active=False))
    assert transition.status is TransitionStatus.ENDED
    assert transition.end_step == 150


def test_the_same_stream_does_not_alert_twice_in_one_episode(tracker) -> None:
    tracker.update(point("val_loss", 120, alarm=alarm()))
    tracker.update(point("val_loss", 125, alarm=alarm(118, 125)))
    assert len(tracker.found) == 1


def test_a_later_episode_is_a_transition_of_its_own(tracker) -> None:
    tracker.update(point("val_loss", 120, alarm=alarm()))
    tracker.update(point("val_loss", 130, 0.5))
    tracker.update(point("val_loss", 140, 0.5, active=False))
    tracker.update(point("val_loss", 520, alarm=alarm(500, 520)))
    assert len({t.id for t in tracker.found.values()}) == 2


def test_a_supporting_stream_alone_opens_nothing_but_joins_later(tracker) -> None:
    assert tracker.update(point("weight_norm", 119, alarm=alarm(), role=Role.SUPPORT)) == []
    (transition,) = tracker.update(point("val_loss", 120, alarm=alarm()))
    assert set(transition.evidence) == {"val_loss", "weight_norm"}
    assert transition.status is TransitionStatus.CONFIRMED


def test_instability_is_a_class_of_its_own_and_swallows_shifts_inside_it(tracker) -> None:
    unstable = alarm(kind=AlarmKind.INSTABILITY, direction=Direction.UP)
    (transition,) = tracker.update(point("train_loss", 120, alarm=unstable))
    assert transition.kind is TransitionKind.INSTABILITY
    assert transition.status is TransitionStatus.CONFIRMED
    worse = alarm(110, 125, Direction.UP, before=0.5, after=1.0)
    (joined,) = tracker.update(point("val_loss", 125, alarm=worse))
    assert joined.id == transition.id
    assert joined.kind is TransitionKind.INSTABILITY


def test_ids_are_the_same_for_the_same_run_stream_and_ordinal() -> None:
    ids = set()
    for attempt in (1, 2):
        tracker = TransitionTracker("run", attempt)
        ids.update(t.id for t in tracker.update(point("val_loss", 120, alarm=alarm())))
    assert len(ids) == 1


def test_state_goes_through_json_and_goes_on_where_it_stopped(tracker) -> None:
    tracker.update(point("val_loss", 120, alarm=alarm()))
    tracker.update(point("weight_norm", 320, alarm=alarm(300, 320), role=Role.SUPPORT))
    state = json.loads(json.dumps(tracker.state_dict()))
    resumed = TransitionTracker("run", 2)
    resumed.load_state_dict(state)
    assert resumed.found == tracker.found
    for step, value in ((125, 0.4), (131, 0.4)):
        assert [t.status for t in resumed.update(point("val_loss", step, value))] == [
            t.status for t in tracker.update(point("val_loss", step, value))
        ]
    assert resumed.state_dict() == tracker.state_dict()


DOWN, UP = Direction.DOWN, Direction.UP


@pytest.mark.parametrize(
    ("evidence", "kind"),
    [
        ({"val_loss": DOWN}, TransitionKind.GENERALISATION),
        ({"val_acc": UP, "llc": DOWN}, TransitionKind.GENERALISATION),
        ({"train_loss": DOWN}, TransitionKind.MEMORISATION),
        ({"train_loss": DOWN, "val_loss": UP}, TransitionKind.MEMORISATION),
        ({"train_loss": DOWN, "val_loss": DOWN}, TransitionKind.ACQUISITION),
        ({"llc": DOWN}, TransitionKind.SIMPLIFICATION),
        ({"llc": UP}, TransitionKind.ACQUISITION),
        ({"weight_norm": DOWN}, TransitionKind.UNCLASSIFIED),
    ],
)
def test_kind_comes_from_what_moved_which_way(evidence, kind) -> None:
    assert classify({n: alarm(direction=d) for n, d in evidence.items()}) is kind


def test_without_held_out_data_nobody_can_say_that_it_memorises() -> None:
    evidence = {"train_loss": alarm()}
    assert classify(evidence, has_validation=False) is TransitionKind.ACQUISITION
    tracker = TransitionTracker("run", 1)
    (unknown,) = tracker.update(point("train_loss", 120, alarm=alarm()))
    assert unknown.kind is TransitionKind.ACQUISITION
    tracker.has_validation = True
    (known,) = tracker.update(point("train_loss", 520, alarm=alarm(500, 520)))
    assert known.kind is TransitionKind.MEMORISATION


def test_held_out_data_is_told_by_whole_words() -> None:
    assert all(map(is_validation, ("val_loss", "valid/loss", "Test-acc", "loss_val")))
    assert not any(map(is_validation, ("value_loss", "interval_loss", "train_loss")))


def test_severity_is_in_dex_for_positive_values_and_relative_otherwise() -> None:
    assert severity({"a": 1.0}, {"a": 0.01}) == pytest.approx(2.0)
    assert severity({"a": -1.0}, {"a": 1.0}) == pytest.approx(2.0)
    assert severity({"a": 1.0, "b": 0.0}, {"a": 0.1, "b": 0.0}) == pytest.approx(1.0)
