"""The acceptance against closed forms and against textbook steps written out in numpy."""

import math

import numpy as np
import pytest
import torch

from phasewatch.monitor.sampling import SamplerConfig, estimate_llc
from phasewatch.monitor.sampling.closed_forms import Quadratic, plain_loss

N_BETA, GAMMA, CURVATURE = 10.0, 5.0, 2.0
KAPPA = N_BETA * CURVATURE + GAMMA


def measured(dimension, **config):
    settings = {"num_draws": 400, "max_draws": 0, "engine": "vmap", "num_chains": 64}
    return estimate_llc(
        Quadratic([CURVATURE] * dimension),
        [torch.zeros(4, 1)],
        plain_loss,
        n_samples=1000,
        config=SamplerConfig(**settings | {"n_beta": N_BETA, "localization": GAMMA} | config),
    )


@pytest.mark.parametrize(("dimension", "share"), [(50, 0.2), (200, 0.2), (200, 0.5)])
def test_langevin_steps_on_a_quadratic_pass_as_often_as_the_closed_form_says(dimension, share):
    # −log r = (ε κ²/8) Σ (x'² − x²): for many directions normal, of mean 0 and this variance.
    step = 2 * share / KAPPA
    variance = 1 / (KAPPA * (1 - step * KAPPA / 4))
    rho = 1 - step * KAPPA / 2
    spread = step * KAPPA**2 / 8 * 2 * variance * math.sqrt(dimension * (1 - rho**2))
    normal = 0.5 * math.erfc(spread / math.sqrt(2))
    truth = 0.5 + math.exp(spread**2 / 2) * normal
    estimate = measured(dimension, scheme="sgld", step_size=step)
    assert estimate.acceptance == pytest.approx(truth, abs=0.025)


def metropolised_baoab(dimension, h, friction, steps=4000):
    """Acceptance of BAOAB with closed half kicks, and the energy counted piece by piece."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=dimension) / math.sqrt(KAPPA)
    v = rng.normal(size=dimension)
    c = math.exp(-h * friction)
    passed = []
    for _ in range(steps):
        before = KAPPA / 2 * x @ x + v @ v / 2
        p = v - h / 2 * KAPPA * x
        noise = rng.uniform(-math.sqrt(3), math.sqrt(3), size=dimension)  # as the chains' own
        q = c * p + math.sqrt(1 - c * c) * noise
        x = x + h / 2 * p + h / 2 * q
        v = q - h / 2 * KAPPA * x
        heat = (q @ q - p @ p) / 2
        passed.append(min(1.0, math.exp(-(KAPPA / 2 * x @ x + v @ v / 2 - before - heat))))
    return np.mean(passed[steps // 4 :])


@pytest.mark.parametrize(
    ("scheme", "friction", "share"),
    [
        ("baoab", 10 * math.sqrt(GAMMA), 0.2),
        ("baoab", 10 * math.sqrt(GAMMA), 0.6),
        ("lm", math.inf, 0.4),
    ],
)
def test_split_steps_pass_as_often_as_the_textbook_says(scheme, friction, share):
    h = 2 * share / math.sqrt(KAPPA)
    truth = metropolised_baoab(40, h, friction)
    estimate = measured(40, scheme=scheme, step_size=h**2)
    assert 0.1 < truth < 0.999
    assert estimate.acceptance == pytest.approx(truth, abs=0.025)


@pytest.mark.parametrize("scheme", ["baoab", "lm", "sgld", "rmsprop_sgld"])
def test_all_steps_pass_as_the_step_size_goes_to_zero(scheme):
    acceptances = [
        measured(100, scheme=scheme, step_size=step, num_draws=100).acceptance
        for step in (3e-2, 3e-3, 1e-6)
    ]
    assert acceptances[0] < acceptances[1] < acceptances[2]
    assert acceptances[2] > 0.999


def test_minibatches_have_no_acceptance():
    batches = [torch.zeros(4, 1)] * 4
    config = SamplerConfig(scheme="sgld", batch_size=1, num_draws=64, max_draws=0)
    estimate = estimate_llc(Quadratic([1.0]), batches, plain_loss, n_samples=16, config=config)
    assert estimate.acceptance is None
