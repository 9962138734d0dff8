"""The observable around the estimator."""

import copy
import io
import math

import pytest
import torch
from torch import nn

from phasewatch.monitor.config.measuring import SamplerConfig
from phasewatch.monitor.core.contracts import Observable
from phasewatch.monitor.core.errors import ConfigError, RefusedError
from phasewatch.monitor.core.estimates import Estimate, EstimateStatus
from phasewatch.monitor.core.work import Cost
from phasewatch.monitor.observables.llc.llc import LLC
from phasewatch.monitor.observables.llc.refined_llc import RefinedLLC


def test_it_is_an_observable():
    assert isinstance(LLC(), Observable)
    assert (LLC().name, LLC().unit, LLC().cost) == ("llc", "1", Cost.SAMPLING)
    assert "2308.12108" in LLC.source


def test_it_reports_the_estimate(context_of, model, data):
    observable = LLC(SamplerConfig(num_draws=32, max_draws=0))
    observation, *_ = observable.measure(context_of(model, [data]))
    detail = observation.detail
    assert isinstance(detail, Estimate)
    assert (observation.step, observation.name) == (7, "llc")
    assert observation.value == detail.lambda_hat
    assert observation.stderr == detail.lambda_stderr
    assert observation.status is detail.status
    assert observation.reason == detail.reason
    assert observation.timestamp > 0


def test_what_else_the_chains_tell_comes_beside_it(context_of, model, data):
    found = LLC(SamplerConfig(num_draws=64, max_draws=0)).measure(context_of(model, [data]))
    llc, nu, wbic, waic = found
    assert [one.name for one in found] == ["llc", "nu_hat", "llc/wbic", "llc/waic"]
    assert [one.unit for one in found] == ["1", "1", "nats", "nats per sample"]
    estimate = llc.detail
    assert [one.value for one in (nu, wbic, waic)] == [
        estimate.nu_hat,
        estimate.wbic,
        estimate.waic,
    ]
    assert wbic.value == pytest.approx(200 * estimate.init_loss + math.log(200) * llc.value)
    assert wbic.stderr == pytest.approx(math.log(200) * llc.stderr)
    assert all(0.0 < one.stderr < abs(one.value) for one in (nu, wbic, waic))
    assert {one.status for one in (nu, wbic, waic)} == {estimate.status}
    assert [one.detail for one in (nu, wbic, waic)] == [None] * 3


def test_all_of_it_is_what_the_gaussian_posterior_of_a_regression_gives(context_of, loss):
    """With residuals r_i and s_i = x_iᵀ Σ x_i, Σ the posterior's covariance, ℓ_i(w) has variance
    r_i² s_i + s_i²/2, and exp(−ℓ_i) the mean (1 + s_i)^(−1/2) exp(−r_i² / (2 (1 + s_i)))."""
    generator = torch.Generator().manual_seed(4)
    x, y = (torch.randn(200, k, generator=generator) for k in (6, 1))
    model = nn.Linear(6, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(x, y).solution.T)
    config = SamplerConfig(localization=1.0, num_draws=512, max_draws=0)
    llc, nu, wbic, waic = LLC(config).measure(context_of(model, [(x, y)]))

    n_beta = 200 / math.log(200)
    x, y = x.double(), y.double()
    hessian = n_beta * x.T @ x / 200
    covariance = torch.linalg.inv(hessian + torch.eye(6).double())
    r = (x @ model.weight.T.detach().double() - y).flatten()
    s = torch.linalg.vecdot(x @ covariance, x)
    exact_llc = float(torch.trace(covariance @ hessian) / 2)
    variance = r**2 * s + s**2 / 2
    training_loss = (torch.log1p(s) / 2 + r**2 / (2 * (1 + s))).mean()
    exact = (
        (llc, exact_llc),
        (nu, float(n_beta / 200 / 2 * variance.sum())),
        (wbic, float(100 * (r**2).mean() + math.log(200) * exact_llc)),
        (waic, float(training_loss + n_beta / 200 * variance.mean())),
    )
    for one, truth in exact:
        assert one.stderr < 0.1 * truth, one.name
        assert abs(one.value - truth) < 4 * one.stderr, one.name


def test_of_a_mean_loss_alone_there_is_nothing_beside_it(context_of, model, data, loss):
    observable = LLC(SamplerConfig(num_draws=32, max_draws=0))
    found = observable.measure(context_of(model, [data], lambda m, b: loss(m, b).mean()))
    assert [one.name for one in found] == ["llc"]


def test_an_error_that_cannot_be_told_is_marked(context_of, model, data):
    observable = LLC(SamplerConfig(num_draws=12, max_draws=0, burnin_fraction=0.5))
    _, nu, *_ = observable.measure(context_of(model, [data]))
    assert math.isnan(nu.stderr)
    assert nu.status is EstimateStatus.UNCONVERGED
    assert nu.reason


def test_check_refuses_before_the_first_step(context_of, data):
    live = nn.Linear(3, 2)
    context = context_of(live, [data], lambda _m, b: live(b[0]).sum(-1))
    with pytest.raises(RefusedError, match="loss_fn="):
        LLC().check(context)
    with pytest.raises(RefusedError, match="probe_loss"):
        LLC().check(context_of(live, [data], None))


def test_check_lets_a_loss_pass_that_may_be_finite_later(context_of, model, data, loss):
    LLC().check(context_of(model, [data], lambda m, b: loss(m, b) + float("inf")))


def test_the_state_survives_a_checkpoint(context_of, model, data):
    observable = LLC(SamplerConfig(num_draws=32, max_draws=0))
    assert observable.state_dict()["sharpness"] is None
    observable.measure(context_of(model, [data]))
    file = io.BytesIO()
    torch.save(observable.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    given = copy.deepcopy(state)
    other = LLC(SamplerConfig(num_draws=32, max_draws=0))
    other.load_state_dict(state)
    assert other.state_dict()["sharpness"] == observable.state_dict()["sharpness"] > 0
    assert file.getbuffer().nbytes < 4096, "a checkpoint must not grow with the model"
    assert state["sharpness"] == given["sharpness"]
    other.measure(context_of(model, [data]))


def test_a_sharpness_of_another_model_is_only_a_first_guess(context_of, model, data):
    observable = LLC(SamplerConfig(num_draws=32, max_draws=0))
    observable.load_state_dict({"sharpness": 1e6})
    misled, *_ = observable.measure(context_of(model, [data]))
    other = LLC(SamplerConfig(num_draws=32, max_draws=0))
    fresh, *_ = other.measure(context_of(model, [data]))
    assert misled.detail.sharpness == pytest.approx(fresh.detail.sharpness, rel=0.5)


def test_part_of_the_weights(context_of, model, data):
    config = SamplerConfig(num_draws=32, max_draws=0)
    observable = LLC(config, parameters=["2.*"], name="llc/head")
    found = observable.measure(context_of(model, [data]))
    assert [one.name for one in found] == [
        "llc/head",
        "llc/head/nu_hat",
        "llc/head/wbic",
        "llc/head/waic",
    ]


PARTS = {"first": "0.*", "last": ["2.*"]}


def refined():
    return RefinedLLC(PARTS, SamplerConfig(num_draws=32, max_draws=0))


def test_parts_are_streams_of_one_observable(context_of, model, data):
    observable = refined()
    assert isinstance(observable, Observable)
    observable.check(context_of(model, [data]))
    first, last = observable.measure(context_of(model, [data]))
    assert (first.name, last.name) == ("refined_llc/first", "refined_llc/last")
    assert 0.0 < first.value != last.value > 0.0
    assert (first.value, first.stderr) == (first.detail.lambda_hat, first.detail.lambda_stderr)
    again, _ = observable.measure(context_of(model, [data]))
    assert again.detail.warm


def test_the_state_of_parts_survives_a_checkpoint(context_of, model, data):
    observable = refined()
    observable.measure(context_of(model, [data]))
    state = observable.state_dict()
    assert set(state["sharpness"]) == set(PARTS)
    assert all(state["sharpness"].values())
    other = refined()
    other.load_state_dict(state | {"sharpness": state["sharpness"] | {"gone": 1.0}})
    assert other.state_dict() == state


def test_a_part_that_is_not_there_is_refused_before_the_first_step(context_of, model, data):
    with pytest.raises(RefusedError, match="'head', which matches none of"):
        RefinedLLC({"head": "head"}).check(context_of(model, [data]))
    with pytest.raises(ConfigError, match="at least one part"):
        RefinedLLC({})
