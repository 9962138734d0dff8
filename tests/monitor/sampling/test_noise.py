"""Losses that draw random numbers."""

import math

import pytest
import torch
from torch import nn

from phasewatch.monitor.core.estimates import EstimateStatus
from phasewatch.monitor.sampling import SamplerConfig, estimate_llc
from phasewatch.monitor.sampling.closed_forms import Quadratic

SIZE, N = 12, 2000


def noisy(model, batch):
    """½ |w − ξ|² of each sample, ξ ~ N(0, 1): its mean over ξ is ½ |w|² and a constant."""
    return 0.5 * (model.w - torch.randn(len(batch), SIZE)).square().sum(dim=1)


def measured(loss, mode="average", seed=0, **changes):
    config = SamplerConfig(noise=mode, seed=seed, **changes)
    return estimate_llc(
        Quadratic([1.0] * SIZE), [torch.zeros(200, 1)], loss, n_samples=N, config=config
    )


TRUTH = SIZE / 2 / (1 + math.log(N) / N)


def test_the_expected_loss_is_measured_and_the_estimate_says_so():
    found = [measured(noisy, seed=seed) for seed in range(3)]
    for estimate in found:
        assert estimate.noise == "averaged"
        assert estimate.status is EstimateStatus.OK
        assert abs(estimate.lambda_hat - TRUTH) < 3 * estimate.lambda_stderr
    assert abs(sum(e.lambda_hat for e in found) / 3 - TRUTH) < 0.15 * TRUTH


def test_one_frozen_draw_is_named():
    found = measured(noisy, "frozen", num_draws=64, max_draws=0)
    assert found.noise == "frozen"


def test_a_function_is_no_noise(model, data, loss, quick):
    assert estimate_llc(model, [data], loss, n_samples=200, config=quick()).noise == ""


@pytest.mark.parametrize("engine", ["vmap", "loop", "inplace"])
def test_every_engine_averages_the_same_draws(engine):
    found = measured(noisy, engine=engine, num_draws=48, max_draws=0, noise_draws=4)
    assert found.engine == engine
    assert found.init_loss == pytest.approx(
        measured(noisy, num_draws=48, max_draws=0, noise_draws=4).init_loss
    )


def test_dropout_in_train_mode_is_noise(context_of, data):
    from phasewatch.monitor.sampling import measure_llc

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 2))
        found = measure_llc(
            context_of(model, [data], mode="train"), SamplerConfig(num_draws=32, max_draws=0)
        )
    assert found.noise == "averaged"


def test_the_global_generators_stay_where_they_were():
    before = torch.get_rng_state()
    measured(noisy, num_draws=32, max_draws=0, noise_draws=2)
    assert torch.equal(torch.get_rng_state(), before)
