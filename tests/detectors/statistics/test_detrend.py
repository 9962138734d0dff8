import json

import numpy as np
import pytest

from phasewatch.detectors.statistics.detrend import CLIP, MEMORY, MIN_POINTS, MIN_SIZES, Detrend
from support.curves import autoregressive, power_law

FIRST = MIN_POINTS + MIN_SIZES
"""Points before the first residual."""


def residuals(values, steps=None, *, unit=1.0, **parameters):
    detrend = Detrend(**parameters)
    steps = range(len(values)) if steps is None else steps
    every = [detrend.update(int(t), float(y), unit) for t, y in zip(steps, values, strict=True)]
    assert every[:FIRST] == [None] * min(FIRST, len(every))
    return np.array(every[FIRST:], dtype=float)


def irregular_steps(count, seed=0):
    return np.cumsum(np.random.default_rng(seed).integers(1, 50, count))


@pytest.mark.parametrize("steps", [None, np.unique(np.geomspace(1, 1e7, 400).astype(int))])
def test_a_straight_line_leaves_nothing_however_it_is_logged(steps):
    steps = np.arange(300) if steps is None else steps
    assert np.abs(residuals(1e3 - 0.01 * steps, steps)).max() < 1e-4


@pytest.mark.parametrize("trend", [10, 20, 40])
@pytest.mark.parametrize("steps", [np.arange(5_000), irregular_steps(5_000)])
def test_residuals_of_white_noise_on_a_line_have_scale_one(trend, steps):
    noise = np.random.default_rng(1).standard_normal(steps.size)
    z = residuals(0.3 * steps + 5.0 * noise, steps, points=trend)[MEMORY:]
    assert abs(z.mean()) < 0.05
    assert z.std() == pytest.approx(1.0, rel=0.06)


def test_the_residual_is_that_of_a_least_squares_forecast():
    rng = np.random.default_rng(2)
    steps, values = irregular_steps(60), rng.standard_normal(60)
    detrend = Detrend(noise_floor=1e3)
    for i, (step, value) in enumerate(zip(steps.tolist(), values.tolist(), strict=True)):
        z = detrend.update(step, value, 1.0)
        if z is None:
            continue
        x = steps[max(i - 30, 0) : i]
        design = np.stack([np.ones(x.size), x - step], axis=1)
        level, slope = np.linalg.lstsq(design, values[max(i - 30, 0) : i], rcond=None)[0]
        variance = 1.0 + np.linalg.inv(design.T @ design)[0, 0]
        assert z == pytest.approx((value - level) / np.sqrt(variance) / 1e3)
        assert detrend.slope == pytest.approx(slope)


def test_noise_free_curves_do_not_explode():
    z = residuals(np.log10(power_law(1000)))
    assert np.abs(z).max() < 1.0


def test_the_floor_is_measured_in_the_unit():
    wave = np.sin(np.arange(300.0) / 3.0)
    assert np.abs(residuals(wave, noise_floor=0.01, unit=1e4)).max() < 0.05
    assert np.abs(residuals(wave, noise_floor=0.01)).max() > 1.0


@pytest.mark.parametrize("size", [1, 2])
def test_a_spike_is_clipped_and_does_not_bend_the_line(size):
    noise = np.random.default_rng(3).standard_normal(400)
    spiked = noise.copy()
    spiked[300 : 300 + size] += 1e6
    quiet, z = residuals(noise), residuals(spiked)
    spike = slice(300 - FIRST, 300 - FIRST + size)
    assert z[spike] == pytest.approx([CLIP] * size, rel=0.2)
    after = slice(300 - FIRST + size, None)
    assert np.abs(z[after] - quiet[after]).max() < 1.5


def test_a_change_of_level_is_believed():
    values = np.random.default_rng(3).standard_normal(400)
    values[300:] -= 1e4
    z = residuals(values)
    start = 300 - FIRST
    assert z[start : start + 3] == pytest.approx([-CLIP] * 3, rel=0.2)
    assert np.abs(z[start + 35 :]).max() < 5.0


def test_spikes_on_both_sides_in_turn_are_never_believed():
    values = np.zeros(200)
    values[100:106] = [9.0, -9.0] * 3
    assert np.abs(residuals(values)[106 - FIRST :]).max() < 1e-9


def test_correlation_is_taken_out_of_long_sums():
    z = residuals(autoregressive(40_000, 0.95, 1.0, seed=5))[1_000:]
    sums = z[: z.size // 100 * 100].reshape(-1, 100).sum(axis=1) / 10.0
    assert sums.std() < 1.0


def test_values_whose_sums_overflow_are_survived():
    values = np.ones(200)
    values[50:60] = 1.7e308
    z = residuals(values, unit=1e300)
    assert np.isnan(z).any()  # given as None
    assert z[-1] == pytest.approx(0.0)


def test_it_goes_through_json_at_every_point():
    values = autoregressive(160, 0.6, 1.0, seed=1)
    values[100:102] += 50.0
    values[130:] += 50.0
    detrend = Detrend()
    for i, value in enumerate(values.tolist()):
        again = Detrend()
        again.load_state_dict(json.loads(json.dumps(detrend.state_dict())))
        assert again.update(i, value, 1.0) == detrend.update(i, value, 1.0)
        assert again.state_dict() == detrend.state_dict()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"points": 4}, "trend is 4, but must be at least 5"),
        ({"noise_floor": 0.0}, r"noise_floor is 0\.0, but must be above 0"),
    ],
)
def test_a_parameter_out_of_range_is_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        Detrend(**parameters)
