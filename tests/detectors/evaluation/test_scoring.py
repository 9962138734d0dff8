import json
import math

import pytest

from phasewatch.detectors import SlopeShift
from phasewatch.detectors.evaluation.scoring import (
    Curve,
    Interval,
    Score,
    always_alarm,
    detect,
    evaluate,
    load_curves,
    match,
    null_points,
)
from support.curves import sigmoid_fall, spiky


@pytest.fixture
def curve():
    """100 points, so that the tolerance after an end is 5 points."""
    return Curve(
        name="made up",
        steps=tuple(range(0, 1000, 10)),
        values=(1.0,) * 100,
        transitions=(Interval(start=20, end=30), Interval(start=60, end=80)),
        ignore=(Interval(start=0, end=9),),
    )


def test_an_alarm_at_the_start_is_true_and_has_no_delay(curve):
    score = match([20], curve)
    assert (score.num_detected, score.num_false, score.delays) == (1, 0, (0.0,))


def test_an_alarm_just_before_the_start_is_false(curve):
    assert match([19], curve).num_false == 1


def test_an_alarm_at_the_end_of_the_tolerance_is_true(curve):
    assert match([35], curve).num_detected == 1


def test_an_alarm_behind_the_tolerance_is_false(curve):
    assert match([36], curve).num_false == 1


def test_a_second_alarm_in_a_detected_transition_is_a_repeat(curve):
    score = match([22, 25], curve)
    assert (score.num_detected, score.num_repeats, score.num_false) == (1, 1, 0)
    assert score.delays == (2.0,)


def test_an_alarm_in_an_ignored_zone_counts_neither_way(curve):
    assert match([0, 9], curve) == match([], curve)
    assert match([10], curve).num_false == 1


def test_the_order_of_alarms_does_not_matter(curve):
    assert match([65, 22], curve) == match([22, 65], curve)


def test_of_two_overlapping_transitions_each_takes_one_alarm():
    curve = Curve(
        name="overlap",
        steps=tuple(range(100)),
        values=(1.0,) * 100,
        transitions=(Interval(start=20, end=30), Interval(start=32, end=40)),
    )
    assert match([33, 34], curve).num_detected == 2


def test_delays_are_measured_in_points_and_in_widths(curve):
    score = match([25, 65], curve)
    assert score.delays == (5.0, 5.0)
    assert score.relative_delays == (0.5, 0.25)
    assert score.median_delay == 5.0
    assert score.median_relative_delay == 0.375


def test_null_points_lie_outside_transitions_tolerances_and_ignored_zones(curve):
    points = null_points(curve)
    assert points == [*range(10, 20), *range(36, 60), *range(86, 100)]
    assert match([], curve).num_null_points == len(points)


def test_the_measures_are_those_of_the_counts():
    score = Score(
        num_transitions=4,
        num_false=1,
        num_repeats=2,
        num_null_points=500,
        delays=(1.0, 2.0, 6.0),
        relative_delays=(0.1, 0.2, 0.6),
    )
    assert score.recall == 3 / 4
    assert score.precision == 3 / 4
    assert score.f1 == pytest.approx(6 / 8)
    assert score.strict_f1 == pytest.approx(6 / 10)
    assert score.false_alarms_per_1000 == 2.0


def test_scores_add_up(curve):
    total = match([22, 50], curve) + match([65], curve)
    assert (total.num_transitions, total.num_detected, total.num_false) == (4, 2, 1)
    assert total.delays == (2.0, 5.0)


def test_nothing_known_and_nothing_said_has_no_score():
    empty = Score()
    for value in (empty.recall, empty.precision, empty.f1, empty.median_delay):
        assert math.isnan(value)
    assert math.isnan(empty.false_alarms_per_1000)
    assert math.isnan(empty.median_relative_delay)


def test_the_always_alarm_baseline_finds_all_and_is_false_everywhere_else(curve):
    score = always_alarm([curve])
    assert score.recall == 1.0
    assert score.num_false == score.num_null_points
    assert score.median_delay == 0.0


def test_a_curve_logged_less_often_keeps_its_transitions(curve):
    thin = curve.every(8)
    assert thin.steps == tuple(range(0, 1000, 80))
    assert len(thin.values) == 13
    assert thin.transitions == (Interval(start=3, end=3), Interval(start=8, end=10))
    assert thin.ignore == (Interval(start=0, end=1),)


@pytest.mark.parametrize(("start", "end"), [(3, 2), (-1, 2)])
def test_an_interval_that_is_none_is_refused(start, end):
    with pytest.raises(ValueError, match=rf"\[{start}, {end}\]"):
        Interval(start=start, end=end)


def test_a_detector_is_scored_on_its_shifts_alone():
    fall = Curve(
        name="fall",
        steps=tuple(range(400)),
        values=tuple(sigmoid_fall(400, 0.1)),
        transitions=(Interval(start=170, end=230),),
    )
    spikes = Curve(name="spikes", steps=tuple(range(2000)), values=tuple(spiky(2000, 500)))
    assert detect(spikes, SlopeShift()) == []
    score = evaluate([fall, spikes], SlopeShift)
    assert (score.num_detected, score.num_false, score.num_repeats) == (1, 0, 0)


def test_annotated_curves_are_read_from_json(tmp_path):
    record = {
        "name": "a",
        "source": "b",
        "steps": [0, 2],
        "values": [0.0, -1.0],
        "transitions": [{"i_start": 0, "i_end": 1, "drop_dex": 1.0}],
        "ignore": [],
        "noisy": True,
    }
    path = tmp_path / "curves.json"
    path.write_text(json.dumps([record]))
    (curve,) = load_curves(path)
    assert curve.values == (1.0, 0.1)
    assert curve.transitions == (Interval(start=0, end=1),)
    assert (curve.name, curve.source, curve.noisy) == ("a", "b", True)


def test_a_file_without_curves_is_refused(tmp_path):
    path = tmp_path / "other.json"
    path.write_text('[{"name": "a"}]')
    with pytest.raises(ValueError, match=r"other\.json does not hold annotated curves.*source"):
        load_curves(path)


def test_standard_errors_reach_the_detector_and_are_thinned_with_the_values():
    seen = []

    class Listener:
        def update(self, step, value, stderr=None):
            seen.append(stderr)

    curve = Curve(name="", steps=(0, 1, 2), values=(1.0, 2.0, 3.0), stderrs=(0.1, 0.2, 0.3))
    assert detect(curve.every(2), Listener()) == []
    assert seen == [0.1, 0.3]
