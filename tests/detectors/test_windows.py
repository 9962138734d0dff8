from collections import deque

import numpy as np
import pytest

from phasewatch.detectors.windows import REFRESH, Level, TwinLines


@pytest.fixture
def series():
    rng = np.random.default_rng(4)
    return 1e3 + np.cumsum(rng.standard_normal(3 * REFRESH))


@pytest.mark.parametrize("width", [4, 6, 24])
def test_running_sums_agree_with_polyfit_at_every_point(series, width):
    lines = TwinLines(width, memory=40)
    values = deque(maxlen=4 * width + 1)
    for count, value in enumerate(series, start=1):
        values.append(float(value))
        if count < 4 * width:
            continue
        lines.update(values, count)
        seen = series[:count][-4 * width :]
        old, new = seen[: 3 * width], seen[3 * width :]
        slope, start = np.polyfit(np.arange(3 * width), old, 1)
        assert lines.old_slope == pytest.approx(slope, abs=1e-7)
        assert lines.old_mean == pytest.approx(old.mean())
        assert lines.old_end == pytest.approx(start + slope * (3 * width - 1))
        assert lines.new_mean == pytest.approx(new.mean())
        new_slope = np.polyfit(np.arange(width), new, 1)[0]
        assert lines.new_slope == pytest.approx(new_slope, abs=1e-7)
        carried_on = start + slope * (3 * width + (width - 1) / 2)
        assert lines.excess == pytest.approx(carried_on - new.mean(), abs=1e-5)


def test_the_standard_error_of_the_excess_is_that_of_white_noise():
    rng = np.random.default_rng(0)
    lines = TwinLines(12, memory=40)
    excesses, errors = [], []
    for _ in range(2_000):
        values = deque(rng.standard_normal(48).tolist())
        lines.ready = False
        lines.update(values, 48)
        excesses.append(lines.excess)
        errors.append(lines.standard_error(lines.split(values)[0]))
    assert np.std(excesses) == pytest.approx(np.mean(errors), rel=0.05)


def test_the_crossing_of_two_lines_is_where_the_slope_changes():
    values = deque([0.0] * 40 + [-float(i) for i in range(1, 9)])
    lines = TwinLines(12, memory=40)
    lines.update(values, 48)
    assert lines.crossing() == pytest.approx(8.0, abs=2.0)


def test_parallel_lines_cross_nowhere_and_the_new_window_is_taken():
    lines = TwinLines(6, memory=40)
    lines.update(deque([1.0] * 24), 24)
    assert lines.crossing() == 6.0


def test_each_level_holds_the_means_of_twice_as_many_points():
    first, second = Level(1, (4,), 40), Level(2, (4,), 40)
    for i in range(10):
        mean = first.push(i, float(i))
        if mean is not None:
            second.push(i, mean)
    assert list(second.values) == [0.5, 2.5, 4.5, 6.5, 8.5]
    assert list(second.steps) == [1, 3, 5, 7, 9]
    assert second.latest == 6.5
