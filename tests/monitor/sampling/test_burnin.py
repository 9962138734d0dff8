"""The plateau test: what is dropped is what still tells where the chains began."""

import numpy as np
import pytest

from phasewatch.monitor.sampling.burnin import plateau


def noise(num_chains=4, num_draws=128, seed=0):
    return np.random.default_rng(seed).normal(size=(num_chains, num_draws))


def test_a_climb_is_dropped_and_the_plateau_is_kept():
    climb = np.minimum(np.arange(128) / 40, 1.0) * 20.0
    dropped = [plateau(climb + noise(seed=seed)) for seed in range(20)]
    assert min(dropped) >= 28
    assert np.median(dropped) <= 48


def test_little_is_dropped_of_chains_that_began_in_equilibrium():
    dropped = [plateau(noise(seed=seed)) for seed in range(200)]
    assert np.mean(dropped) < 0.2 * 128
    assert np.mean(np.array(dropped) == 0) > 0.3


def test_the_mean_is_better_than_with_a_fixed_share():
    rise = 1.0 - np.exp(-np.arange(128) / 25)
    found, fixed = [], []
    for seed in range(200):
        draws = 10.0 * rise + noise(seed=seed)
        found.append(draws[:, plateau(draws) :].mean() - 10.0)
        fixed.append(draws[:, 32:].mean() - 10.0)
    assert np.sqrt(np.mean(np.square(found))) < 0.7 * np.sqrt(np.mean(np.square(fixed)))


def test_never_more_than_half_is_dropped():
    assert plateau(np.arange(128.0) + noise()) == 64


@pytest.mark.parametrize(("num_chains", "num_draws"), [(0, 128), (4, 0), (4, 15)])
def test_too_little_to_judge_drops_nothing(num_chains, num_draws):
    assert plateau(noise(num_chains, num_draws)) == 0


def test_an_odd_length_drops_the_odd_draws_first():
    assert plateau(np.zeros((4, 131))) == 3
