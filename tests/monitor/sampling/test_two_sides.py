"""Chains from w* and chains from outside: where they meet is the truth."""

import math

import numpy as np
import pytest
import torch

from phasewatch.monitor.core.estimates import EstimateStatus
from phasewatch.monitor.sampling import Memory, SamplerConfig, estimate_llc, measure_llc
from phasewatch.monitor.sampling.closed_forms import Quadratic, plain_loss
from phasewatch.monitor.sampling.pace import USUAL_DRAWS
from support.net_classes import with_noise, zero_loss


def measured(net, **changes):
    return estimate_llc(
        net.model, [net.batch], net.loss, n_samples=net.num_samples, config=SamplerConfig(**changes)
    )


@pytest.mark.slow
def test_a_net_at_zero_loss_is_right():
    """From w* alone, 1,024 draws said 11.4 ± 1.1; the long-run value is 15.9 ± 0.3."""
    found = measured(zero_loss((2, 80, 1), torch.nn.Tanh, 256, 0))
    assert found.status is EstimateStatus.OK
    assert found.lambda_hat == pytest.approx(15.9, rel=0.12)
    assert abs(found.lambda_hat - 15.9) < 2.5 * np.hypot(found.lambda_stderr, 0.3)


@pytest.mark.slow
def test_a_small_net_at_its_minimum_is_right():
    """Twelve chains of 120,000 draws say 43.7 ± 0.9, Metropolis-adjusted ones 42.2 ± 0.8.

    Chains change basins every few thousand draws only, and the sides stay apart for as long: those
    from w* read 40, those from outside 50. The truth lies between them, and the error says so.
    """
    net = with_noise((7, 10, 4), torch.nn.Tanh, 1000, 0)
    found = measured(net, num_chains=8, max_draws=3072, max_seconds=math.inf)
    assert found.lambda_within < 43.7 < found.lambda_outside
    assert found.lambda_hat == pytest.approx(43.7, rel=0.12)
    assert abs(found.lambda_hat - 43.7) < 1.96 * np.hypot(found.lambda_stderr, 0.9)
    half_gap = (found.lambda_outside - found.lambda_within) / 2
    assert 1.96 * found.lambda_stderr >= half_gap - 1e-6


def quadratic(spectrum, **changes):
    return estimate_llc(
        Quadratic(list(spectrum)),
        [torch.zeros(8, 1)],
        plain_loss,
        n_samples=2000,
        config=SamplerConfig(n_beta=200.0, **changes),
    )


@pytest.mark.parametrize("engine", ["vmap", "loop", "inplace"])
def test_the_sides_enclose_the_truth_before_they_meet(engine):
    """Soft directions: few draws do not fill them from w*, and do not empty them from outside."""
    spectrum = np.concatenate([np.full(400, 0.02), np.full(4, 3000.0)])
    truth = 0.5 * np.sum(200 * spectrum / (200 * spectrum + 1))
    found = quadratic(spectrum, num_draws=48, max_draws=0, engine=engine)
    assert found.lambda_within < 0.9 * truth
    assert found.lambda_outside > 0.98 * truth
    assert found.status is not EstimateStatus.OK or found.lambda_hat == pytest.approx(
        truth, rel=0.2
    )
    assert abs(found.lambda_hat - truth) < 2.5 * found.lambda_stderr


def test_a_mass_for_each_weight_lets_badly_scaled_weights_be_measured():
    spectrum = np.concatenate([np.full(40, 1e5), np.full(60, 0.05)])
    truth = 0.5 * np.sum(200 * spectrum / (200 * spectrum + 1))
    found = quadratic(spectrum, num_draws=512, max_draws=512)
    assert found.lambda_hat == pytest.approx(truth, rel=0.1)
    assert found.virial == pytest.approx(1.0, abs=0.15)


def test_one_chain_is_never_ok():
    found = quadratic(np.ones(20), num_chains=1)
    assert found.status is EstimateStatus.UNCONVERGED
    assert "take num_chains of at least 2" in found.reason
    assert quadratic(np.ones(20), num_chains=2).status is EstimateStatus.OK


def test_draws_go_on_until_the_error_is_the_target():
    loose, tight = (quadratic(np.ones(8), target_error=error) for error in (0.2, 0.05))
    assert tight.num_draws > loose.num_draws
    assert 2 * tight.lambda_stderr <= 0.05 * tight.lambda_hat


def test_no_more_draws_are_begun_when_the_time_is_over():
    found = quadratic(np.ones(2), max_seconds=0.0, target_error=0.001)
    assert found.num_draws + found.num_burnin == USUAL_DRAWS


def test_a_live_run_does_not_draw_for_exactness_alone(context_of):
    context = context_of(Quadratic([1.0] * 20), [torch.zeros(8, 1)], plain_loss)
    config = SamplerConfig(n_beta=200.0, target_error=0.01)
    assert measure_llc(context, config, memory=Memory()).status is EstimateStatus.OK
    alive = measure_llc(context, config, memory=Memory())
    assert alive.num_draws + alive.num_burnin < 1000


def test_the_cause_of_a_fall_is_the_same_for_every_seed(loss, data):
    model = torch.nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.fill_(5.0)
    reasons = {
        estimate_llc(
            model, [data], loss, n_samples=200, config=SamplerConfig(seed=seed)
        ).reason.split("minimum of the probe loss; ")[1]
        for seed in range(4)
    }
    assert len(reasons) == 1
