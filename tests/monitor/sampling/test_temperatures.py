"""Other temperatures from the same draws."""

import math

import numpy as np
import pytest
import torch

from phasewatch.monitor.config.measuring import SamplerConfig
from phasewatch.monitor.core.errors import RefusedError
from phasewatch.monitor.sampling import estimate_llc, reweight
from phasewatch.monitor.sampling.closed_forms import Quadratic, plain_loss

SPECTRUM = [0.02, 0.05, 0.1, 0.4, 1.0]


def truth(n_beta, localization=1.0):
    return 0.5 * sum(n_beta * h / (n_beta * h + localization) for h in SPECTRUM)


@pytest.fixture(scope="module")
def estimate():
    config = SamplerConfig(n_beta=50.0, num_draws=4096, max_draws=0)
    batches = [torch.zeros(4, 1)]
    return estimate_llc(Quadratic(SPECTRUM), batches, plain_loss, n_samples=500, config=config)


@pytest.mark.slow
@pytest.mark.parametrize("n_beta", [30.0, 40.0, 50.0, 65.0, 80.0])
def test_a_quadratic_is_right_at_all_close_temperatures(estimate, n_beta):
    found = reweight(estimate, n_beta)
    assert found.lambda_hat == pytest.approx(truth(n_beta), abs=3.5 * found.lambda_stderr)
    assert found.lambda_hat == pytest.approx(truth(n_beta), rel=0.06)
    assert 0.0 < found.lambda_stderr < 0.1 * found.lambda_hat


def test_the_same_temperature_gives_the_same_number(estimate):
    found = reweight(estimate, estimate.n_beta)
    assert found.lambda_hat == pytest.approx(estimate.lambda_hat, rel=1e-6)
    assert found.lambda_stderr == pytest.approx(estimate.lambda_stderr, rel=1e-6)
    assert found.kish_share == pytest.approx(1.0)


def test_the_share_of_draws_that_count_is_that_of_a_gamma_law(estimate):
    delta, lam = 0.2, truth(50.0)
    expected = ((1 + 2 * delta) / (1 + delta) ** 2) ** lam
    assert reweight(estimate, 50.0 * (1 + delta)).kish_share == pytest.approx(expected, rel=0.05)


def test_a_far_temperature_is_refused(estimate):
    with pytest.raises(RefusedError, match=r"n_beta=500 is too far.*SamplerConfig\(n_beta=500\)"):
        reweight(estimate, 500.0)


@pytest.mark.parametrize("n_beta", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_must_be_a_positive_number(estimate, n_beta):
    with pytest.raises(RefusedError, match="above zero"):
        reweight(estimate, n_beta)


def test_without_draws_there_is_nothing_to_reweight(estimate):
    from dataclasses import replace

    with pytest.raises(RefusedError, match="no draws"):
        reweight(replace(estimate, chain_loss=np.empty((0, 0))), 50.0)
