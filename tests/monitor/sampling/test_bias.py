"""Predicted heat against exact heat: on quadratics both are known in closed form."""

import pytest
import torch
from torch import nn

from phasewatch.monitor.core.estimates import EstimateStatus
from phasewatch.monitor.sampling import SamplerConfig, estimate_llc
from phasewatch.monitor.sampling.closed_forms import Quadratic, plain_loss

COPIES, N_BETA, GAMMA = 800, 10.0, 5.0


class NoisyQuadratic(Quadratic):
    """K = ½ Σ h w² whose batches pull in directions of their own, which cancel over the probe."""

    def forward(self, pull):
        return super().forward(pull) + pull @ self.w


def measured(curvatures, batches, **config):
    model = NoisyQuadratic([h for h in curvatures for _ in range(COPIES)])
    settings = {"num_draws": 400, "max_draws": 0, "engine": "vmap", "num_chains": 4}
    settings |= {"n_beta": N_BETA, "localization": GAMMA}
    return estimate_llc(
        model, batches, plain_loss, n_samples=1000, config=SamplerConfig(**settings | config)
    )


def calm(curvatures):
    return [torch.zeros(2, COPIES * len(curvatures))]


def pulls(dimension, spread, num_batches=16):
    """Batches of two samples whose mean pulls have a known covariance and cancel."""
    generator = torch.Generator().manual_seed(1)
    means = torch.randn(num_batches, dimension, generator=generator)
    means = spread * (means - means.mean(0))
    return [mean.expand(2, -1).clone() for mean in means], means


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_the_step_heats_sgld_by_as_much_as_predicted(share):
    curvatures = (0.5, 8.0)
    step = 2 * share / (N_BETA * 8.0 + GAMMA)
    estimate = measured(curvatures, calm(curvatures), scheme="sgld", step_size=step)
    excess = 0.0
    for h in curvatures:
        kappa = N_BETA * h + GAMMA
        excess += COPIES * N_BETA * h / (2 * kappa) * (1 / (1 - step * kappa / 4) - 1)
    assert estimate.step_inflation == pytest.approx(excess, rel=0.02)
    assert estimate.batch_inflation == 0.0


@pytest.mark.parametrize("scheme", ["baoab", "lm"])
def test_schemes_exact_on_quadratics_predict_no_heat(scheme):
    estimate = measured((0.5, 8.0), calm((0.5, 8.0)), scheme=scheme)
    assert (estimate.step_inflation, estimate.batch_inflation) == (0.0, 0.0)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_minibatches_heat_sgld_by_as_much_as_predicted(batch_size):
    batches, means = pulls(COPIES, spread=2.0)
    h, step = 2.0, 0.004
    estimate = measured(
        (h,), batches, scheme="sgld", step_size=step, batch_size=batch_size, num_draws=2048
    )  # with 400 its own error was as large as the bound
    kappa = N_BETA * h + GAMMA
    # Drawn without replacement: Cov of the mean of m out of M.
    left = (len(batches) - batch_size) / (len(batches) - 1)
    trace = N_BETA**2 * float(means.square().sum(1).mean()) / batch_size * left
    assert estimate.batch_inflation == pytest.approx(step / 8 * trace, rel=0.1)
    truth = COPIES * N_BETA * h / (2 * kappa)
    exact = (COPIES + step / 4 * trace) * N_BETA * h / (2 * kappa * (1 - step * kappa / 4))
    assert exact / truth > 1.1
    assert estimate.lambda_hat == pytest.approx(exact, rel=0.06)
    predicted = estimate.lambda_hat - estimate.step_inflation - estimate.batch_inflation
    # γ pulls a little of the noise's heat into its own share of U: the prediction errs upwards.
    assert predicted == pytest.approx(truth, rel=0.15)


def test_a_heated_estimate_is_refused_and_says_what_heats_it():
    batches, _ = pulls(COPIES, spread=2.5)
    estimate = measured((2.0,), batches, scheme="sgld", step_size=0.004, batch_size=1)
    assert estimate.status is EstimateStatus.UNCONVERGED
    assert "heat, most of it from minibatch noise" in estimate.reason
    assert "batch_size" in estimate.reason


def test_a_long_step_is_refused_and_named():
    kappa = N_BETA * 2.0 + GAMMA
    estimate = measured((2.0,), calm((2.0,)), scheme="sgld", step_size=1.0 / kappa)
    assert estimate.status is EstimateStatus.UNCONVERGED
    assert "most of it from the finite step" in estimate.reason


def test_the_control_variate_takes_out_noise_that_does_not_depend_on_w():
    batches, _ = pulls(COPIES, spread=8.0)
    estimate = measured((2.0,), batches, scheme="lm", batch_size=1)
    truth = COPIES * 20.0 / (2 * 25.0)
    assert estimate.lambda_hat == pytest.approx(truth, rel=0.01)
    assert estimate.batch_inflation == pytest.approx(0.0, abs=1e-3 * truth)
    assert estimate.init_loss == pytest.approx(0.0, abs=1e-6)


@pytest.mark.slow
def test_minibatch_noise_that_grows_with_w_is_seen_by_lm_too():
    class Stretched(nn.Module):
        """Each batch has a curvature of its own; their mean is two."""

        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(COPIES))

        def forward(self, scale):
            return (scale * self.w.square()).sum(1)

    generator = torch.Generator().manual_seed(2)
    scales = 1.0 + 0.9 * (2 * torch.rand(16, COPIES, generator=generator) - 1)
    scales = scales / scales.mean(0)
    batches = [scale.expand(2, -1).clone() for scale in scales]
    found = [
        estimate_llc(
            Stretched(),
            batches,
            plain_loss,
            n_samples=1000,
            config=SamplerConfig(
                scheme="lm",
                batch_size=size,
                num_draws=300,
                max_draws=0,
                n_beta=N_BETA,
                localization=GAMMA,
                step_size=0.05,
            ),
        )
        for size in (None, 1)
    ]
    heat = found[1].lambda_hat - found[0].lambda_hat
    assert heat > 0.03 * found[0].lambda_hat
    assert found[1].batch_inflation == pytest.approx(heat, rel=0.4)
