"""Learning coefficients of other data than the probe: validation data, and slices."""

import logging
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from phasewatch.monitor import Watch
from phasewatch.monitor.config.measuring import SamplerConfig
from phasewatch.monitor.core.errors import ConfigError, RefusedError
from phasewatch.monitor.core.estimates import EstimateStatus
from phasewatch.monitor.isolation import measure_context
from phasewatch.monitor.observables.llc import data as module
from phasewatch.monitor.observables.llc.data import LLCSlices, LLCValidation
from phasewatch.monitor.sampling.estimators import default_n_beta
from support.records import make_estimate

GAMMA = 1.0
SAMPLER = SamplerConfig(localization=GAMMA, num_draws=128, max_draws=0)
WIDTHS = (900, 300)


class Planted(nn.Module):
    """Sample i has the loss ½ h_i ‖w_{c_i}‖²: its class c_i says which weights matter to it."""

    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList(torch.zeros(width) for width in WIDTHS)

    def forward(self, batch):
        curvature, kind = batch
        squares = torch.stack([w.square().sum() for w in self.weights])
        return 0.5 * curvature * squares[kind]


def loss_of(model, batch):
    return model(batch)


def data(num, curvature, kind=None):
    """So many samples; half of them of each class, if none is given."""
    kinds = torch.arange(num) % 2 if kind is None else torch.full((num,), kind)
    return torch.full((num,), curvature), kinds


PROBE = data(4000, 5.0)
N_BETA = default_n_beta(4000)


def context_of(batches=(PROBE,), val_batches=(), **changes):
    made = measure_context(
        Planted(),
        step=7,
        loss_fn=loss_of,
        batches=batches,
        val_batches=val_batches,
        n_samples=4000,
        seed=3,
    )
    return replace(made, **changes)


def truth(curvature, width):
    """λ̂ of a quadratic: each direction has curvature h, and gives half of nβh / (nβh + γ)."""
    return width / 2 * N_BETA * curvature / (N_BETA * curvature + GAMMA)


def test_validation_data_has_a_coefficient_of_its_own_at_the_temperature_of_the_probe():
    # Half of the samples press on each class' weights, so the mean curvature is half of theirs.
    context = context_of(val_batches=[data(100, 0.004), data(300, 0.004)])
    observable = LLCValidation(SAMPLER)
    observable.check(context)
    llc, *beside = observable.measure(context)
    assert llc.name == "llc_validation"
    assert llc.value == pytest.approx(truth(0.002, sum(WIDTHS)), rel=0.06)
    assert (llc.detail.n_beta, llc.detail.n_samples) == (N_BETA, 400)
    assert [one.name for one in beside] == ["llc_validation/nu_hat", "llc_validation/waic"]


def test_a_temperature_that_was_given_is_kept():
    config = SAMPLER.model_copy(update={"n_beta": 77.0, "num_draws": 32})
    (llc, *_) = LLCValidation(config).measure(context_of(val_batches=[data(400, 1.0)]))
    assert llc.detail.n_beta == 77.0


def test_without_validation_data_it_refuses_with_the_way_out():
    with pytest.raises(RefusedError, match="there is no validation data; give val_probe="):
        LLCValidation().check(context_of())


def test_weights_that_are_no_minimum_of_the_validation_loss_are_told():
    """Off the bottom of the validation loss' bowl λ̂ is below zero, and says so."""
    model = nn.Linear(20, 1, bias=False)
    nn.init.zeros_(model.weight)
    x = torch.randn(500, 20, generator=torch.Generator().manual_seed(0))

    def loss(model, batch):
        return 0.5 * (model(batch[0]) - batch[1]).square().sum(-1)

    context = measure_context(
        model,
        step=1,
        loss_fn=loss,
        batches=[(x, torch.zeros(500, 1))],
        val_batches=[(x, x.sum(1, keepdim=True))],
        n_samples=500,
        seed=1,
    )
    llc, nu, *_ = LLCValidation(SAMPLER).measure(context)
    assert llc.status is nu.status is EstimateStatus.NEGATIVE
    assert llc.value < -100.0


SLICES = {"even": lambda batch: batch[1] == 0, "odd": lambda batch: batch[1] == 1}


def test_planted_slices_have_the_coefficients_of_the_weights_that_they_press_on():
    observable = LLCSlices(SLICES, SAMPLER)
    context = context_of(batches=(data(1000, 5.0), data(3000, 5.0)))
    observable.check(context)
    even, odd = observable.measure(context)
    assert (even.name, odd.name) == ("llc_slices/even", "llc_slices/odd")
    assert even.value == pytest.approx(truth(5.0, 900), rel=0.06)
    assert odd.value == pytest.approx(truth(5.0, 300), rel=0.06)
    assert (even.detail.n_beta, even.detail.n_samples) == (N_BETA, 2000)


def test_a_slice_may_be_data_of_its_own():
    observable = LLCSlices(
        {"batches": [data(100, 0.01, kind=1)], "dataset": TensorDataset(*data(64, 0.1, kind=1))},
        SAMPLER,
    )
    batches, dataset = observable.measure(context_of())
    assert batches.value == pytest.approx(truth(0.01, 300), rel=0.12)
    assert dataset.value == pytest.approx(truth(0.1, 300), rel=0.12)
    assert (batches.detail.n_samples, dataset.detail.n_samples) == (100, 64)


def test_of_losses_per_token_a_slice_has_its_share():
    context = context_of(batches=[data(40, 1.0)], n_samples=4000)
    even, _ = LLCSlices(SLICES, SAMPLER.model_copy(update={"num_draws": 32})).measure(context)
    assert even.detail.n_samples == 2000


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (lambda batch: batch[1] > 5, "slice 'part' is empty: its mask chose no probe sample"),
        (lambda batch: batch[1], r"gave torch.int64 \(4000,\); .* boolean .* shape \(4000,\)"),
        (lambda batch: (batch[1] == 0)[:7], r"gave torch.bool \(7,\)"),
        (lambda batch: [True], r"gave \[True\]; it must give a boolean tensor"),
    ],
)
def test_what_is_no_slice_is_refused_before_the_first_step(mask, message):
    with pytest.raises(RefusedError, match=message):
        LLCSlices({"part": mask}).check(context_of())


def test_a_batch_that_cannot_be_cut_is_refused():
    class Batch:
        def __init__(self):
            self.curvature, self.kind = PROBE

        def __iter__(self):
            return iter((self.curvature, self.kind))

    with pytest.raises(RefusedError, match="batch of type Batch cannot be cut into samples"):
        LLCSlices({"part": lambda batch: batch.kind == 0}).check(context_of(batches=(Batch(),)))


@pytest.mark.parametrize("slices", [{}, "all", None])
def test_without_slices_it_cannot_be_made(slices):
    with pytest.raises(ConfigError, match="give a mapping from names to functions"):
        LLCSlices(slices)


def test_slices_take_turns_where_the_budget_does_not_reach(monkeypatch, caplog):
    given = []

    def scripted(context, config, *, memory):
        given.append((len(context.batches[0][0]), context.deadline_seconds))
        yield
        return make_estimate(step=context.step, duration_seconds=2.0)

    monkeypatch.setattr(module, "llc_steps", scripted)
    observable = LLCSlices(
        {"even": lambda b: b[1] == 0, "first": lambda b: torch.arange(len(b[0])) < 3}
    )
    with caplog.at_level(logging.INFO, logger="phasewatch"):
        for deadline in (math.inf, 3.0, 3.0, 5.0):
            observable.measure(context_of(deadline_seconds=deadline))
    assert [size for size, _ in given] == [2000, 3, 2000, 3, 2000, 3]
    assert given[2][1] == pytest.approx(3.0, abs=0.1)
    assert given[4][1] == pytest.approx(2.5, abs=0.1)
    assert "left for next time: first. Raise `overhead`" in caplog.text


def test_the_state_of_slices_survives_a_checkpoint():
    observable = LLCSlices(SLICES, SAMPLER.model_copy(update={"num_draws": 16}))
    observable.measure(context_of())
    state = observable.state_dict()
    assert all(state["sharpness"][name] > 0.0 for name in SLICES)
    other = LLCSlices(SLICES)
    other.load_state_dict(state | {"sharpness": state["sharpness"] | {"gone": 1.0}})
    assert other.state_dict() == state


def test_a_plain_loop_gives_its_validation_data(tmp_path):
    settings = {
        "store": str(tmp_path / "runs.db"),
        "exporter": {"enabled": False},
        "observables": ["llc", "llc_validation"],
        "every_n_steps": 1,
        "sampler": {"num_draws": 64, "max_draws": 0, "localization": GAMMA},
    }
    model = Planted()
    probe, val_probe = TensorDataset(*data(300, 5.0)), [data(300, 0.01)]
    with Watch(settings, probe=probe, val_probe=val_probe, loss_fn=loss_of) as watch:
        watch.check(model)
        watch.due(1)
        watch.probe(1, model)
        found = {
            name: watch.history(name, include_unconverged=True)[1][0]  # n is below 4 λ̂
            for name in settings["observables"]
        }
    beta = default_n_beta(300)
    soft, hard = (600 * beta * h / (beta * h + GAMMA) for h in (0.005, 2.5))
    assert found == pytest.approx({"llc": hard, "llc_validation": soft}, rel=0.15)
