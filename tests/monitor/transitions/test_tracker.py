"""Fusing alarms, the life of a transition, and its kind."""

from __future__ import annotations

import json

import pytest

from phasewatch.detectors.types import AlarmKind, Direction
from phasewatch.monitor.core.meaning import Role
from phasewatch.monitor.core.transitions import TransitionKind, TransitionStatus
from phasewatch.monitor.transitions.episodes import Point, joint_onset
from phasewatch.monitor.transitions.tracker import TransitionTracker
from support.alarms import alarm


def point(name, step, value=0.5, *, alarm=None, active=True, role=Role.LEADING):
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
    (transition,) = tracker.update(point("llc", 130, alarm=alarm(80, 130)))
    assert transition.status is TransitionStatus.CONFIRMED
    assert set(transition.evidence) == {"val_loss", "llc"}
    assert transition.onset_step == 100  # 80 is nothing else to a stream of so few points
    assert transition.lags == {"val_loss": 0, "llc": -20}
    assert len(tracker.found) == 1


def test_a_joint_onset_is_that_of_the_densest_stream_unless_another_is_clearly_earlier() -> None:
    assert joint_onset([(100, 10.0), (80, 25.0)]) == 100
    assert joint_onset([(80, 25.0), (100, 10.0)]) == 100
    assert joint_onset([(100, 10.0), (40, 25.0)]) == 40
    assert joint_onset([(100, 10.0), (95, 10.0)]) == 95


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
    assert tracker.update(point("weight_norm", 119, alarm=alarm(), role=Role.SUPPORTING)) == []
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
    tracker.update(point("weight_norm", 320, alarm=alarm(300, 320), role=Role.SUPPORTING))
    state = json.loads(json.dumps(tracker.state_dict()))
    resumed = TransitionTracker("run", 2)
    resumed.load_state_dict(state)
    assert resumed.found == tracker.found
    for step, value in ((125, 0.4), (131, 0.4)):
        assert [t.status for t in resumed.update(point("val_loss", step, value))] == [
            t.status for t in tracker.update(point("val_loss", step, value))
        ]
    assert resumed.state_dict() == tracker.state_dict()


def test_a_run_without_held_out_data_so_far_does_not_memorise() -> None:
    tracker = TransitionTracker("run", 1)
    (unknown,) = tracker.update(point("train_loss", 120, alarm=alarm()))
    assert unknown.kind is TransitionKind.ACQUISITION
    tracker.has_validation = True
    (known,) = tracker.update(point("train_loss", 520, alarm=alarm(500, 520)))
    assert known.kind is TransitionKind.MEMORISATION


def test_a_sparse_stream_joins_the_change_between_two_of_its_points(tracker) -> None:
    tracker.update(point("train_loss", 1010, alarm=alarm(1000, 1010, run_length=11)))
    tracker.update(point("train_loss", 1030, active=False))
    sparse = alarm(1200, 1600, Direction.UP, run_length=3, before=10.0, after=20.0)
    (joined,) = tracker.update(point("llc", 1600, alarm=sparse))
    assert joined.lags == {"train_loss": 0, "llc": 200}
    assert joined.onset_step == 1000


def test_a_sparse_stream_that_changes_three_points_later_does_not_join(tracker) -> None:
    tracker.update(point("train_loss", 1010, alarm=alarm(1000, 1010, run_length=11)))
    tracker.update(point("train_loss", 1030, active=False))
    sparse = alarm(1600, 2000, Direction.UP, run_length=3, before=10.0, after=20.0)
    (alone,) = tracker.update(point("llc", 2000, alarm=sparse))
    assert set(alone.evidence) == {"llc"}


def test_a_late_alarm_joins_the_transition_whose_onset_is_nearest(tracker) -> None:
    for onset in (1000, 1500):
        tracker.update(point("train_loss", onset + 10, alarm=alarm(onset, onset + 10)))
        tracker.update(point("train_loss", onset + 30, 0.1))
        tracker.update(point("train_loss", onset + 31, 0.1, active=False))
    sparse = alarm(1200, 1600, Direction.UP, run_length=3, before=10.0, after=20.0)
    (joined,) = tracker.update(point("llc", 1600, alarm=sparse))
    assert joined.detected_step == 1010


def test_a_stream_of_few_points_does_not_draw_the_onset_back(tracker) -> None:
    tracker.update(point("train_loss", 1010, alarm=alarm(1000, 1010, run_length=11)))
    (joined,) = tracker.update(point("val_loss", 1250, alarm=alarm(750, 1250, run_length=3)))
    assert joined.onset_step == 1000
    assert joined.lags["val_loss"] == -250


def test_the_way_back_of_the_same_stream_is_a_transition_of_its_own(tracker) -> None:
    up = alarm(100, 120, Direction.UP, before=10.0, after=20.0)
    down = alarm(122, 140, Direction.DOWN, before=20.0, after=11.0)
    tracker.update(point("llc", 120, 20.0, alarm=up))
    (other,) = tracker.update(point("llc", 140, 11.0, alarm=down))
    assert other.kind is TransitionKind.SIMPLIFICATION
    assert len(tracker.found) == 2


def test_what_was_withdrawn_takes_no_further_alarm(tracker) -> None:
    tracker.update(point("val_accuracy", 120, alarm=alarm(direction=Direction.UP)))
    for step in (130, 135):
        tracker.update(point("val_accuracy", step, 1.0))
    (real,) = tracker.update(point("val_accuracy", 138, alarm=alarm(132, 138, Direction.UP)))
    assert [t.status for t in tracker.found.values()] == [
        TransitionStatus.WITHDRAWN,
        TransitionStatus.SUSPECTED,
    ]
    assert real.onset_step == 132


def circuits(tracker) -> None:
    """The excluded loss rises from 100 on, which is seen at 200, and its detector stays active."""
    rise = alarm(100, 200, Direction.UP, before=0.5, after=1.0)
    tracker.update(point("excluded_loss", 200, 1.0, alarm=rise))


def test_validation_that_improves_after_circuits_formed_is_the_next_phase(tracker) -> None:
    circuits(tracker)
    tracker.update(point("val_loss", 230, alarm=alarm(201, 230)))
    first, second = tracker.found.values()
    assert (first.kind, set(first.evidence)) == (
        TransitionKind.CIRCUIT_FORMATION,
        {"excluded_loss"},
    )
    assert (second.kind, second.onset_step) == (TransitionKind.CLEANUP, 201)


def test_validation_that_improves_while_circuits_form_is_the_same_transition(tracker) -> None:
    circuits(tracker)
    tracker.update(point("val_loss", 230, alarm=alarm(200, 230)))
    (only,) = tracker.found.values()
    assert only.kind is TransitionKind.CLEANUP
    assert set(only.evidence) == {"excluded_loss", "val_loss"}


def test_circuits_that_went_back_make_no_cleanup(tracker) -> None:
    circuits(tracker)
    for step in (220, 240, 260, 280):
        tracker.update(point("excluded_loss", step, 0.5))
    (gone,) = tracker.found.values()
    assert gone.status is TransitionStatus.WITHDRAWN
    tracker.update(point("val_loss", 330, alarm=alarm(300, 330)))
    assert list(tracker.found.values())[1].kind is TransitionKind.GENERALISATION


def unstable(onset, detected, **values):
    values = {"before": 1.0, "after": 10.0} | values
    return alarm(onset, detected, Direction.UP, AlarmKind.INSTABILITY, **values)


def spike(tracker, onset, name="train_loss"):
    changed = tracker.update(point(name, onset + 3, 10.0, alarm=unstable(onset, onset + 3)))
    return changed + tracker.update(point(name, onset + 20, 1.0, active=False))


@pytest.mark.parametrize("period", [50, 100, 333, 2000])
def test_spikes_at_any_steady_distance_are_two_episodes_at_most(tracker, period) -> None:
    told = []
    for onset in range(1000, 1000 + 100 * period, period):
        told += spike(tracker, onset)
    found = list(tracker.found.values())
    assert {t.kind for t in found} == {TransitionKind.INSTABILITY}
    assert len(found) <= 2
    assert sum(t.repeats + 1 for t in found) == 100
    assert len(told) <= 2 * 2  # confirmed and ended, once each


def test_an_instability_ends_where_it_was_last_active(tracker) -> None:
    spike(tracker, 1000)
    assert tracker.update(point("train_loss", 1100, 1.0, active=False)) == []
    (over,) = tracker.update(point("train_loss", 1500, 1.0, active=False))
    assert (over.status, over.end_step) == (TransitionStatus.ENDED, 1003)


def test_the_end_of_a_run_ends_an_instability_that_is_quiet(tracker) -> None:
    spike(tracker, 1000)
    (over,) = tracker.finish()
    assert (over.status, over.end_step) == (TransitionStatus.ENDED, 1003)
    assert tracker.finish() == []


def test_an_instability_keeps_the_size_of_its_peak(tracker) -> None:
    tracker.update(point("train_loss", 1003, 10.0, alarm=unstable(1000, 1003)))
    tracker.update(point("train_loss", 1004, 100.0))
    tracker.update(point("train_loss", 1020, 1.0))
    (transition,) = tracker.found.values()
    assert transition.severity == pytest.approx(2.0)
    assert transition.after["train_loss"] == 1.0


def test_the_way_down_from_a_spike_is_no_transition(tracker) -> None:
    spike(tracker, 1000)
    back = alarm(1005, 1030, before=8.0, after=1.1)
    assert tracker.update(point("train_loss", 1030, 1.1, alarm=back)) == []
    for step in range(1031, 1040):
        assert tracker.update(point("train_loss", step, 0.95)) == []
    assert len(tracker.found) == 1


def test_a_fall_from_a_spike_to_far_below_it_is_a_transition(tracker) -> None:
    spike(tracker, 1000)
    back = alarm(1005, 1030, before=8.0, after=1.1)
    tracker.update(point("train_loss", 1030, 1.1, alarm=back))
    (shift,) = tracker.update(point("train_loss", 1040, 0.5))
    assert shift.kind is TransitionKind.ACQUISITION
    assert shift.before["train_loss"] == 1.0
    (held,) = tracker.update(point("train_loss", 1080, 0.1)) + tracker.update(
        point("train_loss", 1090, 0.1)
    )
    assert (held.id, held.status) == (shift.id, TransitionStatus.CONFIRMED)


def test_validation_that_improves_while_training_is_unstable_is_a_transition(tracker) -> None:
    spike(tracker, 1000)
    (other,) = tracker.update(point("val_loss", 1010, alarm=alarm(1001, 1010)))
    assert other.kind is TransitionKind.GENERALISATION


def test_training_that_gets_worse_belongs_to_the_instability(tracker) -> None:
    worse = alarm(1000, 1004, Direction.DOWN, before=0.9, after=0.2)
    (doubt,) = tracker.update(point("train_accuracy", 1004, alarm=worse))
    assert doubt.status is TransitionStatus.SUSPECTED
    tracker.update(point("train_loss", 1005, 10.0, alarm=unstable(1000, 1005)))
    spike(tracker, 1050)
    (only,) = tracker.found.values()
    assert (only.id, only.kind, only.repeats) == (doubt.id, TransitionKind.INSTABILITY, 1)


def test_a_return_goes_through_a_checkpoint(tracker) -> None:
    spike(tracker, 1000)
    spike(tracker, 1500)
    back = alarm(1505, 1530, before=8.0, after=1.1)
    tracker.update(point("train_loss", 1530, 1.1, alarm=back))
    resumed = TransitionTracker("run", 2)
    resumed.load_state_dict(json.loads(json.dumps(tracker.state_dict())))
    assert resumed.state_dict() == tracker.state_dict()
    low = point("train_loss", 1540, 0.5)
    assert [t.id for t in resumed.update(low)] == [t.id for t in tracker.update(low)] != []


def sign(onset=100, detected=300):
    return alarm(onset, detected, Direction.UP, AlarmKind.PRECURSOR, before=1.0, after=1.0)


def test_a_precursor_suspects_and_the_change_of_a_lead_confirms(tracker) -> None:
    (doubt,) = tracker.update(point("val_loss", 300, 1.0, alarm=sign(), active=False))
    assert doubt.status is TransitionStatus.SUSPECTED
    assert tracker.update(point("val_loss", 301, 1.0, active=False)) == []
    (real,) = tracker.update(point("val_loss", 420, alarm=alarm(400, 420)))
    assert (real.id, real.status) == (doubt.id, TransitionStatus.CONFIRMED)
    assert (real.kind, real.onset_step) == (TransitionKind.GENERALISATION, 400)
    assert real.lags == {"val_loss (precursor)": -300, "val_loss": 0}
    assert real.detected_step == 420


def test_a_precursor_that_nothing_follows_is_withdrawn_at_its_horizon(tracker) -> None:
    tracker.update(point("val_loss", 300, 1.0, alarm=sign(), active=False))
    assert tracker.update(point("val_loss", 500, 1.0, active=False)) == []
    (gone,) = tracker.update(point("val_loss", 501, 1.0, active=False))
    assert (gone.status, gone.end_step) == (TransitionStatus.WITHDRAWN, 501)
    (late,) = tracker.update(point("val_loss", 530, alarm=alarm(510, 530)))
    assert late.id != gone.id


def test_a_precursor_says_nothing_while_something_goes_on(tracker) -> None:
    tracker.update(point("val_loss", 120, alarm=alarm()))
    assert tracker.update(point("train_loss", 130, 1.0, alarm=sign(50, 130))) == []
    assert len(tracker.found) == 1


def test_a_precursor_goes_through_a_checkpoint(tracker) -> None:
    tracker.update(point("val_loss", 300, 1.0, alarm=sign(), active=False))
    resumed = TransitionTracker("run", 2)
    resumed.load_state_dict(json.loads(json.dumps(tracker.state_dict())))
    assert resumed.following == {"val_loss"}
    after = point("val_loss", 501, 1.0, active=False)
    assert resumed.update(after) == tracker.update(after) != []
