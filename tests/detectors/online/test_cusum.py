import math

import numpy as np
import pytest

from phasewatch.detectors import Cusum
from phasewatch.detectors.online.cusum import TwoSidedSums, average_run_length, threshold_for


def mean_run_length(shift, runs, seed, *, slack=0.5, threshold=5.0):
    """Points to the first alarm of the bare recursion on white noise, averaged."""
    rng = np.random.default_rng(seed)
    total = 0
    for _ in range(runs):
        sums = TwoSidedSums(slack)
        while sums.statistic < threshold:
            for z in (shift + rng.standard_normal(16)).tolist():
                sums.update(z)
                total += 1
                if sums.statistic >= threshold:
                    break
    return total / runs


@pytest.mark.slow
def test_points_between_false_alarms_are_the_textbook_ones():
    # Standard error of the mean of 4000 geometric-like runs: 1.6 %.
    assert mean_run_length(0.0, 4_000, seed=1) == pytest.approx(466.0, rel=0.05)


@pytest.mark.parametrize("shift", [1.0, -1.0])
def test_the_delay_at_a_shift_of_one_scale_is_the_textbook_one(shift):
    assert mean_run_length(shift, 4_000, seed=2) == pytest.approx(10.4, rel=0.03)


def test_siegmunds_closed_form_agrees_with_the_textbook():
    assert average_run_length(0.5, 5.0) == pytest.approx(466.0, rel=0.01)
    assert average_run_length(0.5, 4.0) == pytest.approx(168.0, rel=0.02)


@pytest.mark.parametrize("slack", [0.01, 0.5, 1.0])
@pytest.mark.parametrize("points", [200.0, 1e4, 1e9])
def test_the_threshold_gives_the_run_length_it_was_asked_for(slack, points):
    assert average_run_length(slack, threshold_for(slack, points)) == pytest.approx(points)


def test_very_long_runs_do_not_overflow():
    assert math.isfinite(threshold_for(0.5, 1e300))
    assert average_run_length(0.5, 1e4) == math.inf


def test_the_sums_are_those_of_the_definition():
    z = np.random.default_rng(0).standard_normal(500)
    sums = TwoSidedSums(0.5)
    for n in range(1, z.size + 1):
        sums.update(float(z[n - 1]))
        walks = {sign: np.concatenate([[0.0], np.cumsum(sign * z[:n] - 0.5)]) for sign in (1, -1)}
        both = {sign: walk[-1] - walk.min() for sign, walk in walks.items()}
        assert sums.statistic == pytest.approx(max(both.values()))
        if sums.statistic > 1e-9:
            side = max(both, key=both.get)
            assert sums.sign == side
            assert sums.run_length == n - int(np.argmin(walks[side]))


def test_a_threshold_given_wins_over_the_run_length():
    assert Cusum(threshold=8.0, average_run_length=1e3).threshold == 8.0
    assert Cusum(average_run_length=469.1).threshold == pytest.approx(5.0, abs=0.01)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"slack": 0.0}, r"slack is 0\.0, but must be at least 0\.01"),
        ({"threshold": -1.0}, r"threshold is -1\.0, but must be above 0"),
        ({"average_run_length": 1.0}, r"average_run_length is 1\.0, but must be above 1\.04"),
    ],
)
def test_a_parameter_out_of_range_is_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        Cusum(**parameters)
