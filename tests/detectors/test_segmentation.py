"""A history in hindsight: where it is cut, and which changes it shows."""

import math

import numpy as np
import pytest

from phasewatch.detectors import Direction
from phasewatch.detectors.scoring import Score, load_curves, match
from phasewatch.detectors.segmentation import (
    MAX_POINTS,
    Change,
    WeightedLines,
    change_points,
    find_changes,
    segment,
)
from support.curves import autoregressive, grokking_val_loss, power_law, sigmoid_fall, spiky
from support.needs import need_test_data


def cut(values, stderr=None, **settings):
    return change_points(segment(np.arange(len(values)), values, stderr, **settings))


def falls(values, steps=None, **settings):
    steps = np.arange(len(values)) if steps is None else steps
    return find_changes(steps, values, direction=Direction.DOWN, **settings)


# ---- the cost


@pytest.mark.parametrize("with_line", [True, False])
@pytest.mark.parametrize("with_weights", [True, False])
def test_the_cost_is_the_weighted_residual_sum_of_squares(with_line, with_weights):
    rng = np.random.default_rng(0)
    x, y = np.sort(rng.uniform(0, 1e6, 40)), 1e4 + rng.standard_normal(40)
    weights = rng.uniform(0.1, 10.0, 40) if with_weights else np.ones(40)
    cost = WeightedLines(x if with_line else None, weights if with_weights else None).fit(y)
    for start, end in [(0, 40), (3, 9), (20, 38)]:
        part, w = slice(start, end), weights[start:end]
        fit = np.polyfit(x[part] - x[part].mean(), y[part], int(with_line), w=np.sqrt(w))
        rest = y[part] - np.polyval(fit, x[part] - x[part].mean())
        assert cost.error(start, end) == pytest.approx(float(w @ rest**2), rel=1e-5)


# ---- cuts


def test_a_bend_is_found():
    values = np.concatenate([np.zeros(100), np.arange(100.0)])
    values += autoregressive(200, 0.0, 0.5, seed=1)
    (bend,) = cut(values)
    assert bend == pytest.approx(100, abs=5)


def test_levels_are_found_where_they_begin():
    values = np.repeat([0.0, 5.0, -3.0], 60) + autoregressive(180, 0.0, 1.0, seed=2)
    assert cut(values, shape="level") == [60, 120]


def test_segments_leave_no_gap_and_hold_the_fit():
    values = np.repeat([0.0, 8.0], 50) + autoregressive(100, 0.0, 0.1, seed=3)
    first, second = segment(np.arange(100), values, shape="level")
    assert (first.start, first.end, second.start, second.end) == (0, 50, 50, 100)
    assert first.first == first.last == pytest.approx(values[:50].mean())
    assert second.first == pytest.approx(values[50:].mean())


@pytest.mark.parametrize("phi", [0.0, 0.6])
def test_noise_alone_is_not_cut(phi):
    for seed in range(5):
        assert cut(autoregressive(1000, phi, 1.0, seed=seed)) == []


@pytest.mark.parametrize("values", [np.zeros(50), np.full(50, 1e6), np.arange(50.0) / 7.0])
def test_a_straight_series_is_not_cut(values):
    assert cut(values) == []


def test_a_smooth_curve_without_noise_does_not_shatter():
    assert len(cut(np.log10(sigmoid_fall(1000, 0.1)))) <= 4


def test_the_known_errors_weigh_the_levels():
    rng = np.random.default_rng(4)
    stderr = np.where(np.arange(80) % 2 == 0, 0.1, 5.0)
    values = np.repeat([10.0, 11.0], 40) + stderr * rng.standard_normal(80)
    assert cut(values, stderr, shape="level", share=0.0) == [pytest.approx(40, abs=2)]
    assert cut(values, shape="level", share=0.0) == []


def test_a_penalty_of_ones_own_replaces_the_rule():
    values = np.repeat([0.0, 1.0], 50) + autoregressive(100, 0.0, 0.1, seed=5)
    gain = WeightedLines().fit(values).error(0, 100)
    assert cut(values, shape="level", penalty=gain) == []
    assert cut(values, shape="level", penalty=0.5 * gain) == [50]


@pytest.mark.parametrize("place", [20_011, 33_333])
def test_a_long_history_is_thinned_and_the_cut_placed_at_full_resolution(place):
    values = autoregressive(30 * MAX_POINTS, 0.0, 0.1, seed=6)
    values[place:] += 2.0
    assert cut(values, shape="level") == [pytest.approx(place, abs=1)]


def test_a_log_scale_takes_the_logarithm():
    values = 10.0 ** np.repeat([0.0, -3.0], 50)
    first, second = segment(np.arange(100), values, scale="log", shape="level")
    assert (first.first, second.first) == (pytest.approx(0.0), pytest.approx(-3.0))


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_too_few_points_are_one_segment(count):
    (only,) = segment(np.arange(count), np.arange(count) ** 2.0)
    assert (only.start, only.end) == (0, count)
    assert find_changes(np.arange(count), np.arange(count) ** 2.0) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, 2], [1.0, math.nan]), r"values\[1\] is nan, but must be finite"),
        (([1, 2], [1.0, -math.inf]), r"values\[1\] is -inf, but must be finite"),
        (([1, 2, 3], [1.0, 2.0]), r"values has shape \(2,\), but must be \(3,\)"),
        (([1, 1], [1.0, 2.0]), r"steps must increase, but 1 is followed by 1"),
        (([1, 2], [1.0, 2.0], [0.1, 0.0]), r"stderr has 0\.0, but must be above 0"),
        (([1, 2], [1.0, 2.0], [0.1, math.nan]), r"stderr\[1\] is nan"),
    ],
)
def test_bad_numbers_are_refused(arguments, message):
    for function in (segment, find_changes):
        with pytest.raises(ValueError, match=message):
            function(*arguments)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shape": "curve"}, "shape is 'curve', but must be 'line' or 'level'"),
        ({"scale": "dex"}, "scale is 'dex', but must be 'auto', 'log' or 'linear'"),
        ({"scale": "log"}, r"values has -1\.0, but must be above 0 on a log scale"),
        ({"penalty": 0.0}, r"penalty is 0\.0, but must be above 0"),
        ({"share": 1.0}, r"share is 1\.0, but must be in \[0, 1\)"),
        ({"floor": -1.0}, r"floor is -1\.0, but must be at least 0"),
        ({"min_size": 1}, "min_size is 1, but must be at least 2"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        segment([1, 2], [-1.0, 2.0], **settings)


@pytest.mark.parametrize("name", ["gate", "abrupt"])
def test_a_threshold_out_of_range_is_refused(name):
    with pytest.raises(ValueError, match=rf"{name} is 0\.0"):
        find_changes([1, 2], [1.0, 2.0], **{name: 0.0})


# ---- abrupt changes


def test_a_fall_has_its_onset_end_and_size():
    (fall,) = falls(sigmoid_fall(1000, 0.1) * 10.0 ** autoregressive(1000, 0.0, 0.01, seed=1))
    # 80 % of the fall lie within ±0.055 of the middle.
    assert fall.onset_step == pytest.approx(440, abs=25)
    assert fall.end_step == pytest.approx(560, abs=25)
    assert fall.size == pytest.approx(0.9, abs=0.15)
    assert fall.direction is Direction.DOWN
    assert not fall.open


def test_grokking_is_one_fall():
    steps, losses = grokking_val_loss(1000)
    (fall,) = falls(losses, steps)
    assert fall.onset_step == pytest.approx(5500, abs=400)
    assert fall.size > 2.5


def test_both_directions_are_found_in_a_series_of_any_sign():
    values = np.repeat([0.0, 3.0, -3.0], 100) + autoregressive(300, 0.0, 0.2, seed=2)
    up, down = find_changes(np.arange(300), values)
    assert (up.direction, down.direction) == (Direction.UP, Direction.DOWN)
    assert (up.onset_step, up.end_step) == (99, 100)
    assert (down.onset_step, down.end_step) == (199, 200)
    assert down.size == pytest.approx(6.0, abs=0.3)


def test_a_history_that_ends_within_a_fall_says_so():
    values = sigmoid_fall(1000, 0.2)[:510] * 10.0 ** autoregressive(510, 0.0, 0.003, seed=1)
    (fall,) = falls(values)
    assert fall.open


@pytest.mark.parametrize(
    "values",
    [
        power_law(2000),
        power_law(2000) * 10.0 ** autoregressive(2000, 0.3, 0.03, seed=1),
        4.0 * np.exp(-np.arange(2000) / 30.0) + 1e-6,
        10.0 ** autoregressive(2000, 0.6, 0.1, seed=1),
        10.0 ** autoregressive(2000, 0.9, 0.1, seed=1),
        10.0 ** (0.05 * np.random.default_rng(0).standard_t(3, 2000)),
        2.0 + 0.2 * (np.arange(2000) % 8) / 8.0,
        spiky(2000, 400),
        np.full(2000, 0.5),
    ],
    ids=["decay", "noisy decay", "flat tail", "AR(0.6)", "AR(0.9)", "t3", "saw", "spikes", "flat"],
)
def test_a_loss_without_a_transition_has_none(values):
    assert falls(values) == []


@pytest.mark.parametrize("every", [1, 4, 16])
def test_how_often_was_logged_does_not_matter(every):
    values = sigmoid_fall(1600, 0.1) * 10.0 ** autoregressive(1600, 0.0, 0.005, seed=3)
    steps = np.arange(1600)
    (fall,) = falls(values[::every], steps[::every])
    assert fall.onset_step == pytest.approx(700, abs=50)
    assert fall.end_step == pytest.approx(900, abs=50)


def test_a_step_of_a_measured_stream_is_found_by_its_errors():
    rng = np.random.default_rng(0)
    level = np.repeat([20.0, 12.0], 20)
    stderr = rng.uniform(0.03, 0.06, 40) * level
    values = level + stderr * rng.standard_normal(40)
    (fall,) = find_changes(10 * np.arange(40), values, stderr, scale="linear", gate=0.15)
    assert (fall.onset_step, fall.end_step) == (190, 200)


# ---- recorded curves


@pytest.fixture(scope="module")
def curves():
    return load_curves(need_test_data("training_curves.json"))


def found_in(curve) -> list[Change]:
    return find_changes(curve.steps, curve.values, scale="log", direction=Direction.DOWN)


@pytest.mark.parametrize(("every", "floor"), [(1, 0.93), (2, 0.93), (4, 0.9), (8, 0.8)])
def test_the_recorded_transitions_are_found(curves, every, floor):
    total = Score()
    for curve in (curve.every(every) for curve in curves):
        middles = [(c.onset_step + c.end_step) / 2 for c in found_in(curve)]
        total += match(np.searchsorted(curve.steps, middles).tolist(), curve)
    assert total.f1 >= floor
    assert total.strict_f1 >= floor


def test_onset_and_end_lie_near_those_of_the_annotation(curves):
    onsets, ends = [], []
    for curve in curves:
        for known in curve.transitions:
            start, end = curve.steps[known.start], curve.steps[known.end]
            for change in found_in(curve):
                if change.onset_step <= end and start <= change.end_step:
                    onsets.append(abs(change.onset_step - start) / (end - start))
                    ends.append(abs(change.end_step - end) / (end - start))
    assert len(onsets) >= 28
    assert np.median(onsets) <= 0.2
    assert np.median(ends) <= 0.1
