"""Errors and statuses from draws whose truth is known."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from phasewatch.monitor.core.estimates import EstimateStatus
from phasewatch.monitor.sampling import estimate_llc
from phasewatch.monitor.sampling.closed_forms import Quadratic
from phasewatch.monitor.sampling.diagnostics import standard_error, summarise
from phasewatch.monitor.sampling.verdict import judge, weaknesses


def chains(mean=10.0, spread=1.0, correlation=0.0, num_chains=4, num_draws=128, seed=0):
    rng = np.random.default_rng(seed)
    draws = np.empty((num_chains, num_draws))
    draws[:, 0] = rng.normal(size=num_chains)
    for t in range(1, num_draws):
        fresh = rng.normal(size=num_chains)
        draws[:, t] = correlation * draws[:, t - 1] + math.sqrt(1 - correlation**2) * fresh
    return mean + spread * draws


def summary_of(draws, virial=1.0, degree=2.0):
    virials = np.full((len(draws), 8), virial)
    outside = [index >= len(draws) // 2 for index in range(len(draws))] if len(draws) > 1 else []
    return summarise(draws, len(draws[0]) // 4, virials, degree * draws.mean(), outside=outside)


def test_a_calm_set_of_chains_is_ok():
    summary = summary_of(chains())
    assert summary.value == pytest.approx(10.0, abs=0.3)
    assert summary.rhat == pytest.approx(1.0, abs=0.05)
    assert summary.ess > 200
    assert judge(summary, 1000, 0, 4) == (EstimateStatus.OK, "")


@pytest.mark.parametrize("correlation", [0.0, 0.8, 0.95])
def test_the_interval_holds_the_mean_about_as_often_as_it_says(correlation):
    hits = 0
    for seed in range(200):
        draws = chains(correlation=correlation, seed=seed)[:, 32:]
        hits += abs(draws.mean() - 10.0) < 1.96 * standard_error(draws)
    assert hits / 200 >= 0.90


@pytest.mark.parametrize("num_chains", [2, 4, 32])
def test_the_error_reaches_beyond_both_sides_however_many_chains_there_are(num_chains):
    draws = chains(num_chains=num_chains, spread=0.5)
    draws[num_chains // 2 :] += 2.0
    summary = summary_of(draws)
    within, outside = summary.sides.within, summary.sides.outside
    assert summary.value - 1.96 * summary.stderr <= within + 1e-9
    assert summary.value + 1.96 * summary.stderr >= outside - 1e-9


def test_one_chain_has_an_error_too():
    draws = chains(num_chains=1, correlation=0.5, num_draws=400)
    assert 0.03 < standard_error(draws) < 0.3
    assert math.isnan(summary_of(draws).rhat)


def test_constant_draws_have_no_error():
    assert standard_error(np.ones((4, 20))) == 0.0


@pytest.mark.parametrize(
    ("draws", "virial", "n_samples", "word"),
    [
        (chains(mean=0.3), 1.0, 1000, "standard error"),
        (chains(), 1.6, 1000, "too hot"),
        (chains(), 1.0, 30, "probe too small"),
    ],
)
def test_each_weakness_is_named(draws, virial, n_samples, word):
    status, reason = judge(summary_of(draws, virial), n_samples, 0, 4)
    assert status is EstimateStatus.UNCONVERGED
    assert word in reason


def two_sides(within, beyond):
    return np.concatenate([chains(within, num_chains=2), chains(beyond, num_chains=2, seed=1)])


def test_sides_that_have_not_met_are_told_with_what_each_says():
    found = weaknesses(summary_of(two_sides(8.0, 14.0)), 1000)
    assert "from w* say 7.98" in found["apart"]
    assert "from outside 13.9" in found["apart"]
    assert summary_of(two_sides(9.9, 10.1)).sides.gap == pytest.approx(0.2, abs=0.3)
    assert weaknesses(summary_of(two_sides(9.9, 10.1)), 1000) == {}


@pytest.mark.parametrize("lag", [0.5, 1.0, 2.0])
def test_the_stated_interval_holds_what_lies_between_the_sides(lag):
    summary = summary_of(two_sides(10.0 - lag, 10.0 + lag))
    assert 1.96 * summary.stderr >= lag


def test_one_side_alone_is_no_evidence():
    draws = chains()
    summary = summarise(draws, 32, np.ones((4, 8)), 20.0)
    status, reason = judge(summary, 1000, 0, 4)
    assert status is EstimateStatus.UNCONVERGED
    assert "no chains came from outside" in reason


def test_below_zero_is_what_the_chains_from_the_centre_say():
    summary = summary_of(two_sides(-20.0, 300.0))
    assert summary.value == pytest.approx(-20.0, abs=0.5)
    assert judge(summary, 1000, 0, 4)[0] is EstimateStatus.NEGATIVE


def test_a_drift_beyond_noise_is_named():
    rising = chains() * np.linspace(0.6, 1.0, 128)
    found = weaknesses(summary_of(rising), 1000)
    assert "+1" in found["drift"]
    calm = summary_of(chains())
    assert "drift" in weaknesses(replace(calm, drift=-0.3, drift_stderr=0.05), 1000)
    assert weaknesses(replace(calm, drift=-0.3, drift_stderr=0.1), 1000) == {}


def test_what_the_last_doubling_changed_is_part_of_the_error():
    level, risen = np.ones((4, 100)), np.ones((4, 100))
    risen[:, 50:] = 2.0
    assert standard_error(level) == 0.0
    assert standard_error(risen) >= 0.5


def test_negative_needs_significance():
    assert judge(summary_of(chains(mean=-5.0)), 1000, 0, 4)[0] is EstimateStatus.NEGATIVE
    assert judge(summary_of(chains(mean=-0.01)), 1000, 0, 4)[0] is EstimateStatus.UNCONVERGED


def test_nothing_finite_is_diverged():
    assert judge(None, 1000, 4, 4)[0] is EstimateStatus.DIVERGED


def bowl_beside(model_center, start, n_samples=1000):
    """λ̂ of K = ½ Σ (w − c)² measured at `start`, away from c."""
    model = Quadratic([1.0] * 20)
    with torch.no_grad():
        model.w.fill_(start)

    def loss(module, batch):
        return 0.5 * (module.w - model_center).square().sum().expand(len(batch))

    return estimate_llc(model, [torch.zeros(4, 1)], loss, n_samples=n_samples)


def test_a_fall_down_a_slope_names_the_gradient():
    estimate = bowl_beside(0.0, 1.0)
    assert estimate.status is EstimateStatus.NEGATIVE
    assert "still move downhill (gradient norm 4.5" in estimate.reason


def test_a_fall_from_a_saddle_names_the_curvature():
    model = Quadratic([1.0] * 20)

    def loss(module, batch):
        squares = module.w.square()
        return (squares.square() - squares).sum().expand(len(batch))

    estimate = estimate_llc(model, [torch.zeros(4, 1)], loss, n_samples=1000)
    assert estimate.status is EstimateStatus.NEGATIVE
    assert "curves downwards" in estimate.reason
