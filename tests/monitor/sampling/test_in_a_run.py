"""What is chosen for the measurements of a run: how local λ̂ is, and how early draws are enough."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from phasewatch.monitor.config.measuring import SamplerConfig
from phasewatch.monitor.core.estimates import EstimateStatus
from phasewatch.monitor.observables.llc.llc import LLC
from phasewatch.monitor.observables.llc.refined_llc import RefinedLLC
from phasewatch.monitor.sampling import Memory, measure_llc
from phasewatch.monitor.sampling.closed_forms import Quadratic, plain_loss
from phasewatch.monitor.sampling.measure import sampling_work
from phasewatch.monitor.sampling.pace import Pace, relaxed
from phasewatch.monitor.sampling.stopwatch import Stopwatch

SPECTRUM = np.geomspace(0.1, 1.0, 400)
N_BETA = 200.0


@pytest.fixture
def context(context_of):
    def one(seed=0, spectrum=SPECTRUM):
        made = context_of(Quadratic(spectrum.tolist()), [torch.zeros(8, 1)], plain_loss)
        made.generator.manual_seed(seed)
        return made

    return one


def truth(gamma, spectrum=SPECTRUM):
    """λ̂ of K = ½ Σ h_i w_i² in equilibrium: ½ Σ nβ h_i / (nβ h_i + γ)."""
    return 0.5 * float(np.sum(N_BETA * spectrum / (N_BETA * spectrum + gamma)))


def test_the_pull_grows_with_the_net_in_a_run_and_is_one_outside_of_it(context):
    config = SamplerConfig(n_beta=N_BETA, num_draws=32, max_draws=0)
    in_run = measure_llc(context(), config, memory=Memory())
    alone = measure_llc(context(), config)
    asked = measure_llc(context(), config.model_copy(update={"localization": 3.0}), memory=Memory())
    assert in_run.localization == pytest.approx(math.sqrt(400))
    assert alone.localization == 1.0
    assert asked.localization == 3.0


def test_parts_of_a_model_have_the_pull_of_the_whole(context_of):
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 1))
    data = [(torch.randn(64, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(64, 1))]
    config = SamplerConfig(num_draws=16, max_draws=0)
    observable = RefinedLLC({"first": "0.*", "last": "1.*"}, config)
    loss = lambda m, b: (m(b[0]) - b[1]).square().sum(-1)  # noqa: E731
    found = observable.measure(context_of(model, data, loss))
    assert [one.detail.localization for one in found] == [pytest.approx(math.sqrt(26))] * 2


def test_a_resumed_run_keeps_its_pull(context):
    config = SamplerConfig(n_beta=N_BETA, num_draws=16, max_draws=0)
    observable, resumed, earlier = LLC(config), LLC(config), LLC(config)
    observable.measure(context())
    state = observable.state_dict()
    assert state["localization"] == pytest.approx(20.0)
    resumed.load_state_dict({**state, "localization": 7.0})
    assert resumed.measure(context())[0].detail.localization == 7.0
    # Versions before this one measured at γ = 1 and did not keep it.
    earlier.load_state_dict({"sharpness": 1.0})
    assert earlier.measure(context())[0].detail.localization == 1.0


def test_few_draws_are_enough_where_both_sides_have_met_for_certain(context):
    memory = Memory()
    found = [measure_llc(context(seed), SamplerConfig(n_beta=N_BETA), memory=memory)
             for seed in range(12)]  # fmt: skip
    drawn = [one.num_draws + one.num_burnin for one in found]
    # κ = 1 + 200/20 = 11: the softest direction relaxes in √11 draws.
    assert all(16 <= number <= 64 for number in drawn)
    assert {one.status for one in found} <= {EstimateStatus.OK, EstimateStatus.UNCONVERGED}
    value = truth(20.0)
    assert np.mean([one.lambda_hat for one in found]) == pytest.approx(value, rel=0.03)
    held = [abs(one.lambda_hat - value) <= 2.5 * one.lambda_stderr for one in found]
    assert sum(held) >= 11


def test_soft_directions_are_waited_for(context):
    # At γ = 1 κ is 201: nothing may be said before 4 √201 = 57 draws.
    config = SamplerConfig(n_beta=N_BETA, localization=1.0)
    found = measure_llc(context(), config, memory=Memory())
    drawn = found.num_draws + found.num_burnin
    assert drawn >= 57
    pace = Pace(config, 2**20, Stopwatch(), is_live=True)
    run = SimpleNamespace(warm=False, localization=1.0, n_beta=N_BETA, curvature=1.013)
    assert pace.first(run) >= relaxed(run) > 57.0  # else the look would be one for nothing


def test_an_early_look_is_no_reason_to_take_less_than_was_asked_for(context):
    config = SamplerConfig(n_beta=N_BETA, num_draws=96)
    found = measure_llc(context(), config, memory=Memory())
    assert found.num_draws + found.num_burnin == 96
    alone = measure_llc(context(), SamplerConfig(n_beta=N_BETA, localization=20.0))
    assert alone.num_draws + alone.num_burnin >= 256


def test_single_losses_are_summed_also_where_draws_are_few(context_of):
    torch.manual_seed(0)
    model = torch.nn.Linear(20, 1)
    data = [(torch.randn(64, 20), torch.randn(64, 1))]
    loss = lambda m, b: 0.5 * (m(b[0]) - b[1]).square().sum(-1)  # noqa: E731
    config = SamplerConfig(num_draws=16, max_draws=0)
    names = [one.name for one in LLC(config).measure(context_of(model, data, loss))]
    assert names == ["llc", "nu_hat", "llc/wbic", "llc/waic"]


def test_what_is_predicted_is_the_first_look():
    by_itself = sampling_work(SamplerConfig(), [Memory()]).gradients
    asked = sampling_work(SamplerConfig(localization=1.0), [Memory()]).gradients
    assert by_itself < 0.2 * asked
