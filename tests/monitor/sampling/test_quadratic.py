"""On a quadratic everything is known exactly: a missing ½, β, γ or noise scale shows at once."""

import pytest
import torch

from phasewatch.monitor.sampling import SamplerConfig, estimate_llc
from phasewatch.monitor.sampling.closed_forms import Quadratic, plain_loss
from phasewatch.monitor.sampling.increments import uniform_noise

COPIES = 6000
"""Independent directions of each curvature: they average the chains' noise away."""


def measured(curvatures, **config):
    """λ̂ per copy, on K = ½ Σ h w², every curvature repeated `COPIES` times."""
    model = Quadratic([h for h in curvatures for _ in range(COPIES)], center=0.3)
    with torch.no_grad():
        model.w.zero_()
    settings = SamplerConfig(**{"num_draws": 300, "max_draws": 0, "engine": "loop"} | config)
    estimate = estimate_llc(model, [torch.zeros(4, 1)], plain_loss, n_samples=1000, config=settings)
    return estimate.lambda_hat / COPIES, estimate


def continuous(curvatures, n_beta, gamma):
    return sum(n_beta * h / (2 * (n_beta * h + gamma)) for h in curvatures)


def test_sgld_is_inflated_by_exactly_the_euler_factor():
    value, estimate = measured([2.0], scheme="sgld", n_beta=10.0, localization=5.0, step_size=0.02)
    kappa = 10.0 * 2.0 + 5.0
    assert value == pytest.approx(20.0 / (2 * kappa * (1 - 0.02 * kappa / 4)), rel=5e-3)
    assert value == pytest.approx(0.4571, rel=5e-3)
    assert estimate.step_size == 0.02


def test_sgld_sums_the_factors_over_curvatures():
    step, n_beta, gamma, curvatures = 0.03, 7.0, 3.0, (0.5, 2.0, 8.0)
    value, _ = measured(
        curvatures, scheme="sgld", n_beta=n_beta, localization=gamma, step_size=step
    )
    truth = 0.0
    for h in curvatures:
        kappa = n_beta * h + gamma
        truth += n_beta * h / (2 * kappa * (1 - step * kappa / 4))
    assert value == pytest.approx(truth, rel=5e-3)


@pytest.mark.parametrize("scheme", ["baoab", "lm"])
@pytest.mark.parametrize("share_of_stability_limit", [0.2, 0.4, 0.8])
def test_baoab_and_lm_are_exact_for_every_stable_step(scheme, share_of_stability_limit):
    kappa = 10.0 * 2.0 + 5.0
    step = 2 * share_of_stability_limit / kappa**0.5
    value, _ = measured([2.0], scheme=scheme, n_beta=10.0, localization=5.0, step_size=step**2)
    assert value == pytest.approx(0.4, rel=5e-3)


@pytest.mark.slow
def test_a_preconditioned_step_is_inflated_by_the_euler_factor_of_its_metric():
    # At these gradients V settles at E[ĝ²]; P = 1/(√V + 0.1) follows from the variance itself.
    step, n_beta, gamma, h = 0.02, 10.0, 5.0, 2.0
    value, estimate = measured(
        [h],
        scheme="rmsprop_sgld",
        n_beta=n_beta,
        localization=gamma,
        step_size=step,
        num_draws=1000,
    )
    kappa, variance = n_beta * h + gamma, 0.04
    for _ in range(20):
        metric = 1 / (h * variance**0.5 + 0.1)
        variance = 1 / (kappa * (1 - step * metric * kappa / 4))
    assert value == pytest.approx(n_beta * h * variance / 2, rel=0.02)
    plain = n_beta * h / (2 * kappa)
    assert estimate.step_inflation / COPIES == pytest.approx(value - plain, rel=0.3)


@pytest.mark.parametrize(
    ("curvatures", "n_beta", "gamma"),
    [((2.0,), 10.0, 5.0), ((0.5, 2.0, 8.0), 7.0, 3.0), ((1.0,), 500.0, 1.0), ((1.0,), 2.0, 10.0)],
)
def test_baoab_with_its_own_step_gives_the_continuous_value(curvatures, n_beta, gamma):
    value, estimate = measured(curvatures, n_beta=n_beta, localization=gamma)
    assert value == pytest.approx(continuous(curvatures, n_beta, gamma), rel=5e-3)
    assert estimate.virial == pytest.approx(1.0, abs=0.01)
    assert estimate.sharpness == pytest.approx(max(curvatures), rel=0.15)


def test_without_localization_lambda_is_half_the_number_of_parameters():
    value, _ = measured([1.0, 3.0], n_beta=50.0, localization=0.0)
    assert value == pytest.approx(1.0, rel=0.04)


def test_a_chain_that_starts_cold_is_warm_after_burnin_even_when_stiff():
    # κ = 10⁶ and γ = 1: friction alone would need a thousand steps to heat the chains up.
    # From rest, or with the velocities of equilibrium, it would be half of the truth.
    value, _ = measured([1000.0, 10.0], n_beta=1000.0, num_draws=128)
    assert value == pytest.approx(1.0, rel=0.1)


def test_the_centre_is_subtracted():
    plain, _ = measured([2.0], n_beta=10.0, localization=5.0)
    shifted_model = Quadratic([2.0] * COPIES, center=0.3)

    def shifted_loss(model, batch):
        return 0.5 * (model.h * (model.w - 0.3).square()).sum().expand(len(batch)) + 7.0

    shifted = estimate_llc(
        shifted_model,
        [torch.zeros(4, 1)],
        shifted_loss,
        n_samples=1000,
        config=SamplerConfig(
            n_beta=10.0, localization=5.0, num_draws=300, max_draws=0, engine="loop"
        ),
    )
    assert shifted.init_loss == pytest.approx(7.0)
    assert shifted.lambda_hat / COPIES == pytest.approx(plain, rel=2e-3)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (4, 250_001)])
def test_the_cheap_noise_has_the_right_moments(shape):
    generator = torch.Generator().manual_seed(0)
    noise = uniform_noise(torch.empty(shape), 2.0, generator)
    limit = 2.0 * 3**0.5
    assert float(noise.abs().max()) <= limit + 1e-3
    if noise.numel() > 1000:
        assert float(noise.mean()) == pytest.approx(0.0, abs=0.01)
        assert float(noise.std()) == pytest.approx(2.0, rel=5e-3)
        rows = torch.corrcoef(noise)
        assert float((rows - torch.eye(len(rows))).abs().max()) < 0.01
        lagged = (noise[:, 1:] * noise[:, :-1]).mean() / 4.0
        assert abs(float(lagged)) < 0.01
