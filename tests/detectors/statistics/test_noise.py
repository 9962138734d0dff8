import json

import numpy as np
import pytest

from phasewatch.detectors.statistics.noise import (
    PastScale,
    RunningCorrelation,
    autocorrelation,
    inflation,
    scale,
)
from support.curves import autoregressive


def test_scale_is_the_standard_deviation_of_gaussian_noise():
    noise = np.random.default_rng(0).standard_normal(20_000)
    assert scale(3.0 * noise + 7.0) == pytest.approx(3.0, rel=0.03)


def test_scale_does_not_feel_a_tenth_of_wild_points():
    noise = np.random.default_rng(0).standard_normal(2_000)
    noise[::10] = 1e6
    assert scale(noise) == pytest.approx(1.0, rel=0.2)


def test_scale_of_nothing_is_zero():
    assert scale(np.empty(0)) == 0.0


@pytest.mark.parametrize("phi", [0.0, 0.3, 0.6, 0.9])
def test_autocorrelation_finds_that_of_ar1_noise(phi):
    assert autocorrelation(autoregressive(20_000, phi, 1.0, seed=3)) == pytest.approx(phi, abs=0.03)


def test_autocorrelation_is_never_negative_and_stays_below_one():
    assert autocorrelation(np.array([1.0, -1.0] * 20)) == 0.0
    assert autocorrelation(np.linspace(0.0, 1.0, 1000)) == 0.95


@pytest.mark.parametrize("values", [[], [1.0, 2.0], [5.0] * 9])
def test_autocorrelation_of_too_little_is_zero(values):
    assert autocorrelation(np.array(values)) == 0.0


def test_inflation_is_the_error_of_a_mean_of_ar1_noise():
    means = autoregressive(400_000, 0.6, 1.0, seed=1).reshape(-1, 400).mean(axis=1)
    assert means.std() * np.sqrt(400) == pytest.approx(inflation(0.6), rel=0.1)


def test_the_past_holds_back_what_is_new():
    past = PastScale(memory=100, delay=3)
    for value in (1.0, -2.0, 50.0):
        past.update(value)
        assert past.up == past.down == 0.0
    past.update(60.0)
    assert past.up == pytest.approx(np.sqrt(2.0))
    assert past.down == 0.0
    past.update(70.0)
    assert past.down == pytest.approx(np.sqrt(2.0 * 4.0 / 2.0))


def test_the_past_of_symmetric_noise_is_its_scale_both_ways():
    past = PastScale(memory=5_000, delay=1)
    for value in np.random.default_rng(2).standard_normal(20_000):
        past.update(0.3 * float(value))
    assert past.up == pytest.approx(0.3, rel=0.05)
    assert past.down == pytest.approx(0.3, rel=0.05)


def test_the_past_goes_through_json():
    past, again = PastScale(10, 2), PastScale(10, 2)
    for value in (1.0, -2.0, 3.0, 4.0):
        past.update(value)
    again.load_state_dict(json.loads(json.dumps(past.state_dict())))
    for one in (past, again):
        one.update(5.0)
    assert (past.up, past.down) == (again.up, again.down)


@pytest.mark.parametrize("phi", [0.0, 0.6, 0.9])
def test_the_running_correlation_is_that_of_ar1_noise(phi):
    running = RunningCorrelation()
    seen = []
    for value in autoregressive(20_000, phi, 1.0, seed=7).tolist():
        running.update(value)
        seen.append(running.phi)
    assert np.mean(seen[2_000:]) == pytest.approx(phi, abs=0.08)


def test_rounding_noise_and_a_fresh_change_are_no_correlation():
    running = RunningCorrelation()
    for value in autoregressive(2_000, 0.99, 0.01, seed=7).tolist():
        running.update(value)
    assert running.phi < 0.01
    for _ in range(RunningCorrelation.DELAY):
        running.update(10.0)
    assert running.phi < 0.01


def test_the_running_correlation_goes_through_json():
    running, again = RunningCorrelation(), RunningCorrelation()
    for value in autoregressive(100, 0.9, 1.0, seed=7).tolist():
        running.update(value)
    again.load_state_dict(json.loads(json.dumps(running.state_dict())))
    for one in (running, again):
        one.update(2.0)
    assert running.state_dict() == again.state_dict()
