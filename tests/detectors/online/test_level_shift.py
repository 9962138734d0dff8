import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phasewatch.detectors import Direction, LevelShift, default
from phasewatch.detectors.online import level_shift
from phasewatch.detectors.statistics import level_fits
from support.curves import autoregressive, feed, grokking_llc

RECORDED = json.loads((Path(__file__).parents[2] / "golden" / "llc_streams.json").read_text())


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
        10.0 + 10.0 * t60**2,
        10.0 * 2.0**t60,
        20.0 - 10.0 * np.exp(-4.0 * t60),
    ],
    ids=["level", "line", "decay", "parabola", "doubling", "saturation"],
)
def test_slow_courses_are_quiet(levels):
    assert share_with_alarm(levels, 20) <= 0.05


@pytest.mark.parametrize("every", [1, 40])
def test_growth_as_a_power_of_the_step_is_quiet(every):
    alarms = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        levels = 10.0 * np.sqrt(np.arange(1.0, 61.0))
        values = levels * (1.0 + 0.05 * rng.standard_normal(60))
        detector = LevelShift()
        for i in range(60):
            alarms += detector.update(every * (i + 1), values[i], 0.05 * levels[i]) is not None
    assert alarms <= 1


@pytest.mark.parametrize("before", [0, 15])
@pytest.mark.parametrize("width", [30, 45, 60])
def test_a_smooth_fall_is_found_once_and_early(width, before):
    course = np.concatenate([np.full(before, 300.0), np.geomspace(300.0, 2.0, width)])
    levels = np.concatenate([course, np.full(15, 2.0)])
    delays, onsets, alarmed = [], [], 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        relative = rng.uniform(0.03, 0.1, levels.size)
        values = levels * np.exp(relative * rng.standard_normal(levels.size))
        alarms = feed(LevelShift(), values, stderrs=relative * values, every=10)
        assert [alarm.direction for alarm in alarms] in ([], [Direction.DOWN])
        alarmed += len(alarms)
        delays += [alarm.detected_step / 10 - before for alarm in alarms]
        onsets += [alarm.onset_step / 10 - before for alarm in alarms]
    if before == 0 and width == 60:
        return  # 8 % a measurement from the first on: hardly faster than what counts as slow
    assert alarmed == 10
    assert np.median(delays) <= 0.3 * width
    assert before == 0 or abs(np.median(onsets)) <= 0.1 * width


@pytest.mark.parametrize("run", RECORDED["streams"], ids=lambda run: run["run"])
def test_recorded_runs_give_the_rise_and_the_fall_once_each(run):
    detector = default("measured")
    alarms = [detector.update(*point) for point in run["points"]]
    rise, fall = (alarm for alarm in alarms if alarm is not None)
    assert (rise.direction, rise.onset_step, rise.detected_step) == (Direction.UP, 80, 120)
    assert (fall.direction, fall.onset_step, fall.detected_step) == (Direction.DOWN, 200, 280)
    assert fall.value_before > 300.0
    assert not detector.active


@pytest.mark.parametrize("num_points", [20, 40, 150])
def test_the_course_of_a_grokking_run_says_nothing_twice(num_points):
    for seed in range(5):
        values, stderrs = grokking_llc(num_points, seed)
        alarms = feed(default("measured"), values, stderrs=stderrs, every=40)
        directions = [alarm.direction for alarm in alarms]
        assert len(set(directions)) == len(directions)


def test_what_it_says_does_not_depend_on_leaving_out_needless_tests(monkeypatch):
    streams = [noisy([20.0] * 20 + [k] * 20, seed=k, low=1.0, high=2.0) for k in range(8, 24)]
    lazy = [feed(LevelShift(), values, stderrs=errors) for values, errors in streams]
    monkeypatch.setattr(level_shift, "SLACK", 0.0)
    assert [feed(LevelShift(), values, stderrs=errors) for values, errors in streams] == lazy
    assert sum(map(len, lazy)) >= 8


def test_most_points_of_a_stable_stream_need_no_full_test(monkeypatch):
    calls = []
    full = level_fits.best_change
    monkeypatch.setattr(level_fits, "best_change", lambda *a: calls.append(1) or full(*a))
    assert fed([10.0] * 300) == []
    assert len(calls) <= 300 / 5


def test_scatter_that_is_correlated_is_allowed_for():
    alarms = 0
    for seed in range(20):
        values = 10.0 + autoregressive(60, 0.5, 0.5, seed)
        alarms += bool(feed(LevelShift(), values, stderrs=[0.5] * 60))
    assert alarms <= 1


def test_an_episode_ends_when_the_level_has_settled():
    values, stderrs = noisy([20.0] * 20 + [10.0] * 20, seed=4)
    detector = LevelShift()
    active = [
        detector.update(i, *point) is not None or detector.active
        for i, point in enumerate(zip(values, stderrs, strict=True))
    ]
    assert 20 <= active.index(True) <= 24
    assert not any(active[:20])
    assert not any(active[32:])


def test_a_fall_right_after_a_rise_is_a_change_of_its_own():
    levels = [10.0] * 8 + [20.0, 40.0, 80.0] + (80.0 * 0.75 ** np.arange(1, 8)).tolist()
    alarms = feed(LevelShift(), levels, stderrs=[0.02 * x for x in levels], every=10)
    assert [alarm.direction for alarm in alarms] == [Direction.UP, Direction.DOWN]


def test_values_that_come_near_zero_and_leave_it_again_change_the_scale_only():
    rng = np.random.default_rng(0)
    values = np.concatenate([1.0 + 0.1 * rng.standard_normal(20), [0.1], np.full(150, 1.0)])
    assert feed(LevelShift(), values, stderrs=[0.1] * values.size) == []


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


def test_too_few_points_say_nothing():
    assert fed([10.0, 10.0, 30.0, 30.0, 30.0, 30.0]) == []


def test_a_stream_of_zeros_is_quiet():
    assert feed(LevelShift(), [0.0] * 50, stderrs=[0.0] * 50) == []


@pytest.mark.parametrize("size", [1e-300, 1e-170, 1e-99, 1e99, 1e170, 1e300])
def test_sizes_whose_squares_are_no_numbers_do_not_stop_it(size):
    values = [size, -size] * 20 + [3.0 * size, 2.0 * size] * 20 + [1.0, -1.0] * 5
    assert all(alarm.score >= 1.0 for alarm in feed(LevelShift(), values, stderrs=[size] * 90))


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
        ({"margin": -1.0}, r"margin is -1\.0, but must be above 0"),
        ({"slow": 0.0}, r"slow is 0\.0, but must be above 0"),
        ({"effect": 1.0}, r"effect is 1\.0, but must be between 0 and 1"),
        ({"min_after": 1}, r"min_after is 1, but must be at least 2"),
        ({"window": 7}, r"window is 7, but must be at least min_before \+ min_after = 8"),
    ],
)
def test_a_parameter_out_of_range_is_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        LevelShift(**parameters)


def test_a_fall_right_after_a_rise_comes_from_the_peak():
    """Else the fall would seem to go back to where the rise had begun, and be withdrawn."""
    detector = LevelShift()
    stream = [52.4, 162.9, 306.5, 242.4, 187.0]
    (alarm,) = filter(None, (detector.update(40 * i, x, 3.0) for i, x in enumerate(stream)))
    assert alarm.direction is Direction.DOWN
    assert alarm.value_before == pytest.approx(306.5)
    assert alarm.value_after == pytest.approx(187.0)
