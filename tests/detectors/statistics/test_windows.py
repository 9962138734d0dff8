import json

import numpy as np
import pytest

from phasewatch.detectors.statistics.noise import LaggedNoise, extrapolation_inflation
from phasewatch.detectors.statistics.windows import Level
from support.curves import autoregressive


def level_of(steps, values, shape):
    level = Level(1, [shape], memory=40)
    for step, value in zip(steps, values, strict=True):
        level.push(float(step), float(value))
    return level


@pytest.mark.parametrize("shape", [(3, 6), (4, 12), (24, 72)])
@pytest.mark.parametrize("spacing", ["equal", "growing", "random"])
def test_the_lines_agree_with_polyfit_in_the_step_at_every_point(shape, spacing):
    new, old = shape
    rng = np.random.default_rng(4)
    values = 1e3 + np.cumsum(rng.standard_normal(500))
    steps = {
        "equal": 7 * np.arange(500),
        "growing": np.round(1.02 ** np.arange(500) * 100) + np.arange(500),
        "random": np.cumsum(rng.integers(1, 50, 500)),
    }[spacing].astype(float)
    level = Level(1, [shape], memory=40)
    (lines,) = level.windows
    for count, (step, value) in enumerate(zip(steps, values, strict=True), start=1):
        level.push(step, value)
        if count < new + old or count % 7:
            continue
        lines.look(level)
        x, y = steps[:count][-new - old :], values[:count][-new - old :]
        origin = x[0]
        slope, start = np.polyfit(x[:old] - origin, y[:old], 1)
        assert lines.old_slope == pytest.approx(slope, abs=1e-6)
        assert lines.old_mean == pytest.approx(y[:old].mean())
        assert lines.old_end == pytest.approx(start + slope * (x[old - 1] - origin))
        assert lines.new_mean == pytest.approx(y[old:].mean())
        assert lines.new_slope == pytest.approx(
            np.polyfit(x[old:] - origin, y[old:], 1)[0], abs=1e-6
        )
        carried_on = start + slope * (x[old:].mean() - origin)
        assert lines.excess == pytest.approx(carried_on - y[old:].mean(), abs=1e-4)
        assert lines.span == pytest.approx(x[-1] - x[old - 1])


@pytest.mark.parametrize("phi", [0.0, 0.6, 0.9])
def test_the_standard_error_of_the_excess_is_that_of_the_running_noise(phi):
    excesses, errors = [], []
    level = Level(1, [(6, 18)], memory=40)
    (lines,) = level.windows
    for step, value in enumerate(autoregressive(8_000, phi, 0.1, seed=1)):
        level.push(float(step), float(value))
        if step > 1_000 and step % 24 == 0:
            lines.look(level)
            excesses.append(lines.excess)
            errors.append(lines.standard_errors(level)[1])
    assert np.std(excesses) == pytest.approx(np.mean(errors), rel=0.15)


def test_a_jump_of_the_scatter_counts_and_a_clean_step_or_ramp_does_not():
    flat = 0.01 * np.resize([1.0, -1.0], 18)

    def local_error(new):
        level = level_of(range(24), [*flat, *new], (6, 18))
        level.windows[0].look(level)
        return level.windows[0].standard_errors(level)[0]

    quiet = local_error(flat[:6])
    assert local_error([-0.1, -1, -1, -1, -1, -1]) == pytest.approx(quiet, rel=0.05)
    assert local_error([0, -1, -2, -3, -4, -5]) == pytest.approx(quiet, rel=0.05)
    assert local_error([0, -1, 0, -1, 0, -1]) > 10 * quiet


@pytest.mark.parametrize("stretch", [1, 10])
def test_the_crossing_of_two_lines_is_where_the_slope_changes(stretch):
    values = [0.0] * 40 + [-float(i) for i in range(1, 9)]
    level = level_of(stretch * np.arange(48), values, (12, 36))
    level.windows[0].look(level)
    assert level.windows[0].crossing(level) == pytest.approx(8, abs=2)


def test_parallel_lines_cross_nowhere_and_the_new_window_is_taken():
    level = level_of(range(24), [1.0] * 24, (6, 18))
    level.windows[0].look(level)
    assert level.windows[0].crossing(level) == 6


def test_each_level_holds_the_means_of_twice_as_many_points():
    first, second = Level(1, [(4, 12)], 40), Level(2, [(4, 12)], 40)
    for i in range(10):
        mean = first.push(float(i), float(i))
        if mean is not None:
            second.push(*mean)
    assert second.values == [0.5, 2.5, 4.5, 6.5, 8.5]
    assert second.steps == second.values
    assert second.latest == 6.5


def test_the_latest_level_is_blind_to_one_odd_point():
    assert level_of(range(5), [1.0, 1.0, 1.1, -9.0, 1.0], (4, 12)).latest == 1.0


def test_the_points_held_are_bounded():
    level = level_of(range(5_000), np.zeros(5_000), (24, 72))
    assert 97 <= len(level.values) <= 194
    assert len(level.steps) == len(level.values) == len(level.sums) - 1


def test_a_restored_level_goes_on_with_the_same_digits():
    rng = np.random.default_rng(0)
    values = (5.0 + rng.standard_normal(900)).tolist()
    level = level_of(range(0, 2100, 3), values[:700], (24, 72))
    again = Level(1, [(24, 72)], memory=40)
    again.load_state_dict(json.loads(json.dumps(level.state_dict())))
    for i, value in enumerate(values[700:], start=700):
        for one in (level, again):
            one.push(3.0 * i, value)
            one.windows[0].look(one)
    assert again.windows[0].excess == level.windows[0].excess
    assert again.state_dict() == level.state_dict()


@pytest.mark.parametrize("phi", [0.0, 0.3, 0.6, 0.9])
def test_scale_and_correlation_of_noise_on_a_moving_level(phi):
    noise = LaggedNoise()
    values = (autoregressive(6_000, phi, 0.1, seed=3) - 1e-4 * np.arange(6_000)).tolist()
    phis, sigmas = [], []
    for end in range(60, 6_000):
        noise.update(values[end - 30 : end])
        phis.append(noise.phi)
        sigmas.append(noise.sigma)
    assert np.median(phis[300:]) == pytest.approx(phi, abs=0.05)
    assert np.median(sigmas[300:]) == pytest.approx(0.1, rel=0.25)


def test_one_spike_moves_the_noise_little_and_a_change_waits():
    noise, spiked = LaggedNoise(), LaggedNoise()
    values = autoregressive(600, 0.0, 0.1, seed=3).tolist()
    wild = values.copy()
    wild[400] += 100.0
    for end in range(60, 600):
        noise.update(values[end - 30 : end])
        spiked.update(wild[end - 30 : end])
        if end <= 400 + LaggedNoise.DELAY:
            assert spiked.sigma == noise.sigma
    assert spiked.sigma == pytest.approx(noise.sigma, rel=0.2)


def test_noise_is_unknown_at_first_and_zero_on_a_constant():
    noise = LaggedNoise()
    assert (noise.sigma, noise.phi) == (0.0, 0.0)
    for _ in range(100):
        noise.update([2.0] * 30)
    assert (noise.sigma, noise.phi) == (0.0, 0.0)


def test_correlated_noise_inflates_the_error_of_an_extrapolation():
    rng = np.random.default_rng(0)
    old, new = 18, 6
    x = np.arange(old)
    errors = []
    for seed in rng.integers(0, 10**9, 3_000):
        y = autoregressive(old + new + 50, 0.6, 1.0, int(seed))[50:]
        slope, start = np.polyfit(x, y[:old], 1)
        errors.append(start + slope * (old + (new - 1) / 2) - y[old:].mean())
    white = np.sqrt(1 / new + 1 / old + 12.0**2 / (old * (old**2 - 1) / 12))
    assert extrapolation_inflation(new, old, 0.0) == pytest.approx(1.0)
    assert np.std(errors) == pytest.approx(white * extrapolation_inflation(new, old, 0.6), rel=0.05)
