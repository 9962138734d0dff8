"""The mean over seeds: right where all have trusted values, and nothing where one has not."""

from __future__ import annotations

import numpy as np
import pytest

from phasewatch.monitor.core.history import History
from phasewatch.monitor.serve.comparison import mean


def made(steps, values, codes=None):
    errors = np.full(len(steps), np.nan)
    return History("x", "1", steps, values, errors, codes=codes or [0] * len(steps),
                   include_unconverged=True)  # fmt: skip


def test_it_is_over_the_steps_that_all_runs_have():
    found = mean([(made([0, 10, 20], [1, 1, 1]), 0), (made([5, 15, 30], [3, 3, 3]), 0)])
    assert (found["x"][0], found["x"][-1]) == (5, 20)
    assert set(found["y"]) == {2.0}
    width = 2 * np.sqrt(2) / np.sqrt(2)  # two standard errors of two values 2 apart
    assert found["high"][0] - found["y"][0] == pytest.approx(width)


def test_runs_are_shifted_to_where_they_are_aligned():
    found = mean([(made([100, 200], [0, 1]), 100), (made([300, 400], [0, 1]), 300)])
    assert (found["x"][0], found["x"][-1]) == (0, 100)
    np.testing.assert_allclose(found["y"], np.array(found["x"]) / 100, rtol=1e-4)
    assert found["low"] == found["high"] == found["y"]


def test_there_is_none_across_a_value_that_is_not_ok():
    doubtful = made([0, 10, 20, 30], [1, 99, 1, 1], codes=[0, 1, 0, 0])
    found = mean([(doubtful, 0), (made([0, 30], [1, 1]), 0)])
    by_step = dict(zip(found["x"], found["y"], strict=True))
    assert by_step[0] == by_step[20] == by_step[25] == 1.0
    assert by_step[5] is None
    assert by_step[10] is None


@pytest.mark.parametrize(
    "histories",
    [
        [made([0, 10], [1, 1])],
        [made([0, 10], [1, 1]), made([], [])],
        [made([0, 10], [1, 1]), made([20, 30], [1, 1])],
        [made([0, 10], [1, 1]), made([0, 10], [1, 1], codes=[1, 2])],
    ],
)
def test_there_is_none_of_what_cannot_be_laid_over_one_another(histories):
    assert mean([(history, 0) for history in histories]) is None
