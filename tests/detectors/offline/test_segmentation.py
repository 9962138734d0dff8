"""A history in hindsight: where it is cut."""

import math

import numpy as np
import pytest

from phasewatch.detectors.offline.changes import find_changes
from phasewatch.detectors.offline.segmentation import MAX_POINTS, change_points, segment
from phasewatch.detectors.statistics.weighted_lines import WeightedLines
from support.curves import autoregressive, sigmoid_fall


def cut(values, stderr=None, **settings):
    return change_points(segment(np.arange(len(values)), values, stderr, **settings))


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
