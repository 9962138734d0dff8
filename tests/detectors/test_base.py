import math

import pytest

from phasewatch.detectors import (
    AlarmKind,
    Detector,
    Direction,
    LevelShift,
    SlopeShift,
    StateError,
    create,
)
from support.curves import feed, sigmoid_fall


def test_a_detector_is_recognised_by_its_members():
    assert isinstance(SlopeShift(), Detector)
    assert not isinstance(object(), Detector)


def test_its_repr_can_be_read_back():
    detector = SlopeShift(gate=0.2)
    assert eval(repr(detector)).parameters == detector.parameters


def test_a_clone_is_fresh_and_has_the_same_parameters():
    detector = SlopeShift(gate=0.2)
    feed(detector, sigmoid_fall(300, 0.1))
    clone = detector.clone()
    assert clone.parameters == detector.parameters
    assert clone.state_dict() == SlopeShift(gate=0.2).state_dict()


def test_two_non_finite_values_in_a_row_are_no_instability():
    detector = SlopeShift()
    assert feed(detector, [1.0, math.nan, math.nan, 1.0, math.inf, math.inf]) == []
    assert detector.num_skipped == 4


def test_three_non_finite_values_in_a_row_are_one_instability():
    detector = SlopeShift()
    (alarm,) = feed(detector, [2.5, 2.5, 2.5, *[math.nan] * 50], every=10)
    assert alarm.kind is AlarmKind.INSTABILITY
    assert alarm.direction is Direction.UP
    assert (alarm.onset_step, alarm.detected_step, alarm.run_length) == (30, 50, 3)
    assert alarm.value_before == alarm.value_after == 2.5
    assert alarm.score == 1.0


def test_a_second_run_of_non_finite_values_is_told_again_once_the_first_is_over():
    # It must be longer than the first: what comes again and again is how the stream is logged.
    run = [math.nan] * 3
    assert len(feed(SlopeShift(), [1.0, 1.0, 1.0, *run, *[1.0] * 19, *run])) == 1
    assert len(feed(SlopeShift(), [1.0] * 3 + run + [1.0] * 20 + run + run + run)) == 2


def test_going_back_in_steps_is_skipped_and_counted():
    detector = SlopeShift()
    detector.update(10, 1.0)
    detector.update(10, 1.0)
    detector.update(5, 1.0)
    assert detector.num_skipped == 2


def test_the_state_of_another_detector_is_refused():
    with pytest.raises(StateError, match=r"detector 'level_shift'.*'slope_shift'"):
        SlopeShift().load_state_dict(LevelShift().state_dict())


def test_the_state_of_other_parameters_is_refused():
    with pytest.raises(StateError, match=r"'gate': 0\.2.*start it afresh"):
        SlopeShift().load_state_dict(SlopeShift(gate=0.2).state_dict())


def test_a_refused_state_leaves_the_detector_as_it_was():
    detector = SlopeShift()
    feed(detector, sigmoid_fall(300, 0.1))
    before = detector.state_dict()
    with pytest.raises(StateError):
        detector.load_state_dict({})
    assert detector.state_dict() == before


def says(values) -> list[tuple[str, int]]:
    detector = create("local_change")
    alarms = (detector.update(step, value) for step, value in enumerate(values))
    return [(alarm.kind.value, alarm.onset_step) for alarm in alarms if alarm is not None]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_was_never_finite_is_undefined_and_no_instability(value):
    detector = create("local_change")
    assert all(detector.update(step, value) is None for step in range(500))
    assert detector.undefined
    assert not detector.active
    detector.update(500, 1.0)
    assert not detector.undefined


def test_a_metric_that_is_nan_between_evaluations_does_not_alarm():
    assert says([1.0 if i % 50 == 49 else math.nan for i in range(1000)]) == []
    assert says([1.0 if i % 50 == 0 else math.nan for i in range(1000)]) == []


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_stream_that_stays_not_finite_after_finite_values_is_unstable(value):
    assert says([1.0] * 40 + [value] * 40) == [("instability", 40)]


def test_gaps_that_were_usual_are_no_instability_and_much_longer_ones_are():
    usual = ([1.0] * 10 + [math.nan] * 5) * 4
    assert len(says(usual)) == 1  # the first gap may be the end of the run
    assert says([*([1.0] * 10 + [math.nan] * 2) * 4, *[1.0] * 10, *[math.nan] * 5]) == [
        ("instability", 58)
    ]
