"""Statistics of the loss terms against the same numbers computed plainly from all draws."""

import math

import pytest
import torch
from torch import nn

from phasewatch.monitor.config.measuring import SamplerConfig
from phasewatch.monitor.sampling import estimate_llc
from phasewatch.monitor.sampling.pointwise import TermSums, pointwise

N_BETA, N_SAMPLES = 30.0, 50


@pytest.fixture
def terms():
    """ℓ_i at w*, and along 4 chains of 32 draws: shapes (terms,) and (draws, chains, terms)."""
    generator = torch.Generator().manual_seed(0)
    center = torch.rand(25, generator=generator)
    return center, center + torch.randn(32, 4, 25, generator=generator)


def summed(center, draws, block=8):
    parts = []
    for index, draw in enumerate(draws):
        if index % block == 0:
            parts.append(TermSums(index, len(center), center))
        parts[-1].add(draw - center)
    return parts


@pytest.mark.parametrize("burnin", [0, 8, 9])
def test_the_sums_give_what_the_definitions_say(terms, burnin):
    center, draws = terms
    found = pointwise(summed(center, draws), burnin, center, N_BETA, N_SAMPLES)
    kept = draws[8 * math.ceil(burnin / 8) :].flatten(0, 1).double()
    variance = float(N_SAMPLES * kept.var(dim=0).mean())
    training_loss = -float((torch.logsumexp(-kept, dim=0) - math.log(len(kept))).mean())
    beta = N_BETA / N_SAMPLES
    assert found.functional_variance == pytest.approx(variance, rel=1e-5)
    assert found.nu_hat == pytest.approx(beta / 2 * variance, rel=1e-5)
    assert found.waic == pytest.approx(training_loss + beta / N_SAMPLES * variance, rel=1e-5)


def test_without_draws_there_are_no_statistics(terms):
    center, draws = terms
    assert pointwise([], 0, center, N_BETA, N_SAMPLES) is None
    assert pointwise(summed(center, draws), 32, center, N_BETA, N_SAMPLES) is None


def test_the_stated_errors_are_the_spread_over_repetitions():
    """Draws of a stationary process that forgets by a fifth at each; 40 times the same."""
    generator = torch.Generator().manual_seed(2)
    center = torch.rand(10, generator=generator)
    found = []
    for _ in range(40):
        deviation = torch.randn(4, 10, generator=generator)
        draws = []
        for _ in range(192):
            noise = torch.randn(4, 10, generator=generator)
            deviation = 0.8 * deviation + 0.6 * noise
            draws.append(center + 0.5 * deviation)
        found.append(pointwise(summed(center, draws, 16), 0, center, N_BETA, N_SAMPLES))
    for value, error in (("nu_hat", "nu_stderr"), ("waic", "waic_stderr")):
        spread = torch.tensor([getattr(one, value) for one in found]).std()
        stated = torch.tensor([getattr(one, error) for one in found]).median()
        assert 0.7 < float(stated / spread) < 1.6, value


def test_one_block_of_draws_tells_no_error(terms):
    center, draws = terms
    found = pointwise(summed(center, draws[:8]), 0, center, N_BETA, N_SAMPLES)
    assert math.isfinite(found.nu_hat)
    assert math.isnan(found.nu_stderr)
    assert math.isnan(found.waic_stderr)


@pytest.mark.slow
def test_waic_estimates_the_loss_on_new_data(loss):
    """Regular regression: the Bayes generalisation loss exceeds the entropy by λ/n at β = 1."""
    generator = torch.Generator().manual_seed(1)
    gaps = []
    for _ in range(12):
        x = torch.randn(400, 8, generator=generator)
        y = torch.randn(400, 1, generator=generator)
        model = nn.Linear(8, 1, bias=False)
        with torch.no_grad():
            model.weight.copy_(torch.linalg.lstsq(x, y).solution.T)
        config = SamplerConfig(n_beta=400.0, localization=0.1)
        found = estimate_llc(model, [(x, y)], loss, n_samples=400, config=config)
        # The loss leaves out the constant log(2π)/2; its entropy is then 1/2.
        gaps.append(found.waic - found.init_loss)
        assert found.nu_hat == pytest.approx(4.0, rel=0.25)
    # E[WAIC] = 1/2 + λ/n, and the loss at the minimum is 1/2 − λ/n on average.
    assert sum(gaps) / len(gaps) == pytest.approx(2 * 4.0 / 400, rel=0.2)
