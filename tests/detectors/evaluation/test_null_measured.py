"""Measured streams without a change of level."""

import numpy as np
import pytest

from phasewatch.detectors.evaluation import null_measured


def residuals(name, seed=0, num_points=200):
    """Deviations from a running mean, in standard errors."""
    curve = null_measured.curve(name, num_points, seed)
    values, stderrs = np.array(curve.values), np.array(curve.stderrs)
    return (values - np.median(values)) / stderrs


@pytest.mark.parametrize("name", sorted(null_measured.CLASSES))
def test_every_class_has_standard_errors_within_the_stated_range(name):
    for seed in range(5):
        curve = null_measured.curve(name, 60, seed)
        relative = np.array(curve.stderrs) / np.abs(curve.values)
        assert np.all(np.array(curve.stderrs) > 0.0)
        assert 0.008 < np.median(relative) < 0.17
        assert curve == null_measured.curve(name, 60, seed)
    assert null_measured.curve(name, 60, 1) != null_measured.curve(name, 60, 2)


def test_the_errors_are_right_but_where_the_class_says_otherwise():
    def spread(name):
        return np.mean([np.std(residuals(name, seed)) for seed in range(20)])

    assert spread("flat") == pytest.approx(1.0, abs=0.1)
    assert spread("errors too small") == pytest.approx(1.5, abs=0.15)


def test_correlated_errors_are_correlated():
    def lag_one(name):
        pairs = [residuals(name, seed) for seed in range(20)]
        return np.mean([np.corrcoef(z[1:], z[:-1])[0, 1] for z in pairs])

    assert lag_one("correlated") == pytest.approx(0.6, abs=0.1)
    assert abs(lag_one("flat")) < 0.1


def test_a_drift_takes_the_whole_stream():
    for seed in range(10):
        values = np.array(null_measured.curve("drift", 200, seed).values)
        quarters = [np.mean(part) for part in np.split(values, 4)]
        assert quarters == sorted(quarters, reverse=True)
        assert quarters[0] / quarters[3] > 1.4


def test_a_class_nobody_wrote_is_refused():
    with pytest.raises(ValueError, match=r"'pink'.*flat"):
        null_measured.curve("pink", 50)
