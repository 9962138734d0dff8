"""Errors of many means at once against those of one, and covariances against numpy's."""

import numpy as np
import pytest

from phasewatch.monitor.sampling import covariances as module
from phasewatch.monitor.sampling.covariances import covariances, standard_errors
from phasewatch.monitor.sampling.diagnostics import standard_error


def remembering(memory, shape=(4, 50, 40), seed=0):
    """Draws of a stationary process that keeps a share `memory` of each draw."""
    draws = np.random.default_rng(seed).normal(size=shape)
    for draw in range(1, shape[1]):
        draws[:, draw] = memory * draws[:, draw - 1] + np.sqrt(1 - memory**2) * draws[:, draw]
    return draws


@pytest.mark.parametrize("memory", [-0.5, 0.0, 0.8, 0.97])
@pytest.mark.parametrize("length", [24, 51])
def test_the_error_of_each_column_is_that_of_a_mean(memory, length):
    draws = remembering(memory, (4, length, 40))
    alone = [standard_error(draws[:, :, column]) for column in range(40)]
    assert standard_errors(draws) == pytest.approx(alone, rel=0.15)


def test_columns_that_do_not_vary_have_no_error():
    assert standard_errors(np.ones((4, 20, 3))).tolist() == [0.0, 0.0, 0.0]


def test_covariances_are_those_of_all_draws_whatever_the_size_of_a_block(monkeypatch):
    left, right = remembering(0.5, seed=1)[:, :, :7], remembering(0.5, seed=2)[:, :, :3]
    right += left[:, :, :3]
    value, error = covariances(left, right)
    flat = np.concatenate([left.reshape(200, -1), right.reshape(200, -1)], axis=1)
    assert value == pytest.approx(np.cov(flat.T)[:7, 7:])
    monkeypatch.setattr(module, "BLOCK", 1)
    assert covariances(left, right)[0] == pytest.approx(value)
    assert covariances(left, right)[1] == pytest.approx(error)


def test_the_stated_error_is_the_spread_over_repetitions():
    found = []
    for seed in range(60):
        draws = remembering(0.7, (4, 60, 20), seed)
        value, error = covariances(draws[:, :, :1], draws[:, :, :1] + draws[:, :, 1:])
        found.append((value[0], error[0]))
    values, errors = np.array(found).swapaxes(0, 1)
    assert values.mean() == pytest.approx(1.0, abs=0.1)
    assert 0.9 < errors.mean() / values.std(axis=0, ddof=1).mean() < 2.0
