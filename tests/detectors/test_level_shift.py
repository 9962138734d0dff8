import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phasewatch.detectors import Direction, LevelShift, default
from support.curves import feed, grokking_llc


def noisy(levels, seed, low=0.2, high=0.6):
    rng = np.random.default_rng(seed)
    stderrs = rng.uniform(low, high, len(levels))
    return np.asarray(levels) + stderrs * rng.standard_normal(len(levels)), stderrs


def fed(levels, seed=0, **parameters):
    values, stderrs = noisy(levels, seed)
    return feed(LevelShift(**parameters), values, stderrs=stderrs)


def share_with_alarm(levels, num_streams):
    return sum(bool(fed(levels, seed)) for seed in range(num_streams)) / num_streams


t60 = np.linspace(0.0, 1.0, 60)


@pytest.mark.parametrize("num_points", [20, 60, 200])
def test_a_halving_is_found_once_soon_and_at_its_place(num_points):
    half = num_points // 2
    found = 0
    for seed in range(8):
        (alarm,) = fed([20.0] * half + [10.0] * half, seed)
        assert alarm.direction is Direction.DOWN
        assert abs(alarm.onset_step - half) <= 1
        assert alarm.run_length <= 5
        assert alarm.value_before == pytest.approx(20.0, rel=0.05)
        assert alarm.value_after == pytest.approx(10.0, rel=0.1)
        found += 1
    assert found == 8


def test_a_rise_by_a_quarter_is_found_in_most_streams():
    assert share_with_alarm([10.0] * 30 + [12.5] * 30, 15) >= 0.9


def test_a_change_through_zero_is_found_on_the_linear_scale():
    (alarm,) = fed([-8.0] * 15 + [8.0] * 15)
    assert alarm.direction is Direction.UP
    assert alarm.onset_step == 15


def test_two_changes_give_two_alarms():
    alarms = fed([20.0] * 20 + [10.0] * 20 + [5.0] * 20)
    assert [alarm.onset_step for alarm in alarms] == [20, 40]


@pytest.mark.parametrize(
    "levels",
    [
        np.full(60, 10.0),
        20.0 - 15.0 * t60,
        5.0 + 20.0 * np.exp(-4.0 * t60),
        2.0 + 30.0 * np.exp(-12.0 * t60),
        10.0 + 10.0 * t60**2,
        np.where(t60 < 0.5, 10.0, 10.0 + 20.0 * (t60 - 0.5)),
    ],
    ids=["level", "line", "decay", "fast decay", "parabola", "bend"],
)
def test_smooth_courses_are_quiet(levels):
    assert share_with_alarm(levels, 20) <= 0.05


@pytest.mark.parametrize("num_points", [20, 40, 150])
def test_the_course_of_a_grokking_run_is_quiet(num_points):
    for seed in range(5):
        values, stderrs = grokking_llc(num_points, seed)
        assert feed(default("measured"), values, stderrs=stderrs) == []


def test_stable_streams_of_200_points_are_quiet():
    assert share_with_alarm([10.0] * 200, 25) == 0.0


def test_standard_errors_that_are_three_times_too_small_are_made_up_for():
    alarms = 0
    for seed in range(20):
        values, stderrs = noisy([10.0] * 60, seed)
        values = 10.0 + 3.0 * (values - 10.0)
        alarms += bool(feed(LevelShift(), values, stderrs=stderrs))
    assert alarms <= 1


def test_precise_points_weigh_more():
    values = [10.0, 10.1, 9.9, 10.0, 10.1, 9.9, 10.0, 14.0, 14.1, 13.9]
    precise = [0.1] * 10
    vague = [0.1] * 7 + [3.0] * 3
    assert len(feed(LevelShift(), values, stderrs=precise)) == 1
    assert feed(LevelShift(), values, stderrs=vague) == []


def test_without_standard_errors_the_noise_is_taken_from_the_neighbours():
    values, _ = noisy([20.0] * 20 + [10.0] * 20, seed=1)
    (alarm,) = feed(LevelShift(), values)
    assert alarm.onset_step == 20
    bad = [float("nan")] * 40
    assert [a.onset_step for a in feed(LevelShift(), values, stderrs=bad)] == [20]


def test_one_wild_point_is_no_change():
    values, stderrs = noisy([10.0] * 40, seed=2)
    values[20] = 60.0
    assert feed(LevelShift(), values, stderrs=stderrs) == []


def test_a_small_but_certain_change_is_below_the_effect_gate():
    assert feed(LevelShift(), [10.0] * 20 + [10.5] * 20, stderrs=[0.01] * 40) == []


def test_what_was_not_seen_within_max_after_points_is_not_told_late():
    values, stderrs = noisy([10.0] * 20 + [12.0] * 40, seed=3, low=1.2, high=1.3)
    alarms = feed(LevelShift(), values, stderrs=stderrs)
    assert all(alarm.run_length <= 12 for alarm in alarms)


def test_too_few_points_say_nothing():
    assert fed([10.0, 10.0, 30.0, 30.0, 30.0, 30.0]) == []


def test_a_stream_of_zeros_is_quiet():
    assert feed(LevelShift(), [0.0] * 50, stderrs=[0.0] * 50) == []


@settings(max_examples=10, deadline=None)
@given(factor=st.sampled_from([2.0**k for k in range(-30, 31)]))
def test_the_unit_of_the_stream_does_not_matter(factor):
    values, stderrs = noisy([20.0] * 20 + [10.0] * 20, seed=5)
    (reference,) = feed(LevelShift(), values, stderrs=stderrs)
    (mine,) = feed(LevelShift(), factor * values, stderrs=factor * stderrs)
    assert mine.detected_step == reference.detected_step
    assert mine.score == pytest.approx(reference.score)
    assert mine.value_after == pytest.approx(factor * reference.value_after)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"threshold": 0.0}, r"threshold is 0\.0, but must be above 0"),
        ({"margin": -1.0}, r"margin is -1\.0, but must be at least 0"),
        ({"min_after": 1}, r"min_after is 1, but must be at least 2"),
        ({"max_after": 2}, r"max_after is 2, but must be at least min_after = 3"),
        ({"window": 7}, r"window is 7, but must be at least min_before \+ min_after = 8"),
    ],
)
def test_a_parameter_out_of_range_is_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        LevelShift(**parameters)
