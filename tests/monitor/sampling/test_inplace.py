"""Chains in the memory of the live weights: the same numbers, and nothing left behind."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from phasewatch.monitor.core.estimates import EstimateStatus
from phasewatch.monitor.isolation import guard, measure_context
from phasewatch.monitor.sampling import SamplerConfig, estimate_llc, measure_llc
from phasewatch.monitor.sampling.closed_forms import Quadratic, plain_loss
from phasewatch.monitor.sampling.engine import InPlaceEngine, LoopEngine, evaluate
from phasewatch.monitor.sampling.posing import pose


class Tied(nn.Module):
    """Tied weights, BatchNorm with statistics, a frozen layer, and a layer in bf16."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.norm = nn.BatchNorm1d(3)
        self.narrow = nn.Linear(3, 3).bfloat16()
        self.out = nn.Linear(3, 2)

    def forward(self, x):
        x = self.norm(self.frozen(torch.tanh(self.second(torch.tanh(self.first(x))))))
        return self.out(self.narrow(x.bfloat16()).float())


@pytest.fixture
def tied():
    torch.manual_seed(0)
    model = Tied()
    model(torch.randn(8, 3)).sum().backward()
    return model


def traces(model):
    """Everything training could notice about the parameters and buffers of a model."""
    return {
        name: (
            id(tensor),
            tensor.data_ptr(),
            tensor._version,
            tensor.requires_grad,
            id(tensor.grad),
            tensor.detach().clone().view(torch.uint8).tolist() if tensor.ndim else tensor.item(),
            None if tensor.grad is None else tensor.grad.tolist(),
            tensor._backward_hooks and list(tensor._backward_hooks),
        )
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }


def test_the_numbers_are_those_of_the_loop(tied, data, loss):
    batches = list(zip(*(part.split([120, 80]) for part in data), strict=True))
    with guard(tied, seed=0):
        context = measure_context(tied, step=0, loss_fn=loss, batches=batches, lend=True)
        problem = pose(context)
        x = 0.1 * torch.randn(1, problem.layout.num_parameters)
        expected = evaluate(LoopEngine(problem), problem, x, range(2))
        engine = InPlaceEngine(problem)
        with engine.session():
            found = evaluate(engine, problem, x, range(2))
            assert not torch.equal(tied.first.weight, context.params["first.weight"])
    assert torch.equal(found.loss, expected.loss)
    assert torch.equal(found.terms, expected.terms)
    assert torch.allclose(found.grad, expected.grad, rtol=1e-6, atol=1e-8)


def test_one_chain_in_place_is_one_chain_in_a_loop(model, data, loss, quick):
    looped, moved = (
        estimate_llc(
            model,
            [data],
            loss,
            n_samples=200,
            config=quick(engine=engine, num_chains=1, burnin_fraction=0.25),
        )
        for engine in ("loop", "inplace")
    )
    assert (looped.engine, moved.engine) == ("loop", "inplace")
    # The extra start of the one-by-one chains draws from the generator: the noise differs.
    assert moved.init_loss == looped.init_loss
    assert moved.sharpness == looped.sharpness
    assert moved.chain_loss.shape == looped.chain_loss.shape


@pytest.mark.parametrize("scheme", ["baoab", "sgld"])
def test_chains_one_by_one_measure_what_chains_side_by_side_do(scheme):
    """On a quadratic of d = 6000 the truth is known, and the noise is small beside it."""
    config = SamplerConfig(
        scheme=scheme,
        n_beta=50.0,
        num_draws=128,
        max_draws=0,
        engine="inplace",
        burnin_fraction=0.5,
    )
    model = Quadratic([1.0] * 6000)
    estimate = estimate_llc(model, [torch.zeros(4, 1)], plain_loss, n_samples=30_000, config=config)
    truth = 6000 * 50.0 / (2 * 51.0) * (1.0 if scheme == "baoab" else 1 / (1 - 0.2 / 4))
    assert estimate.lambda_hat == pytest.approx(truth, rel=0.03)
    assert estimate.chain_loss.shape == (4, 64)
    assert estimate.status is EstimateStatus.OK


def test_minibatches_are_paired_with_their_own_baseline():
    """Each chain draws batches of its own; their losses differ a hundredfold more than λ̂."""
    model = Quadratic([1.0] * 2000)

    def loss_fn(model, batch):
        return plain_loss(model, batch) + batch[:, 0]

    batches = [torch.full((10, 1), float(level)) for level in (0, 100, 500, 1000)]
    config = SamplerConfig(
        scheme="sgld",
        batch_size=1,
        n_beta=50.0,
        num_draws=400,
        max_draws=0,
        step_size=0.002,
        engine="inplace",
    )
    estimate = estimate_llc(model, batches, loss_fn, n_samples=40, config=config)
    truth = 2000 * 50.0 / (2 * 51.0 * (1 - 0.002 * 51.0 / 4))
    assert estimate.lambda_hat == pytest.approx(truth, rel=0.02)


def test_the_live_model_is_as_it_was(tied, data, loss, quick):
    tied.first.weight.register_hook(lambda _: pytest.fail("a hook of training has fired"))
    optimizer = torch.optim.Adam(tied.parameters())
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    before = traces(tied)
    estimate = estimate_llc(tied, [data], loss, n_samples=200, config=quick(engine="inplace"))
    assert estimate.engine == "inplace"
    assert np.isfinite(estimate.lambda_hat)
    assert traces(tied) == before
    assert str(optimizer.state_dict()) == str(state)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("after", [1, 2, 5, 30, 100])
def test_it_is_as_it_was_after_an_exception_inside_the_loss(error, after, tied, data, loss, quick):
    calls = []

    def failing(model, batch):
        calls.append(1)
        losses = loss(model, batch)
        if len(calls) > after:
            raise error("in the middle")
        return losses

    before = traces(tied)
    with pytest.raises((error, Exception), match="in the middle"):
        estimate_llc(tied, [data], failing, n_samples=200, config=quick(engine="inplace"))
    assert traces(tied) == before


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_the_engine_itself_puts_the_weights_back(error, tied, data, loss):
    """Also where no guard holds a copy of them: it holds none of large models."""
    problem = pose(measure_context(tied, step=0, loss_fn=loss, batches=[data], lend=True))
    before, engine = traces(tied), InPlaceEngine(problem)
    x = torch.full((1, problem.layout.num_parameters), 0.1)

    def measure():
        with engine.session():
            engine.batch(x, 0)
            assert traces(tied) != before
            if error is not None:
                raise error

    if error is None:
        measure()
    else:
        with pytest.raises(error):
            measure()
    assert traces(tied) == before


def test_training_goes_on_between_forward_and_backward(model, data, loss, quick):
    """Its graph holds the weights by version, and none has moved."""
    twin = copy.deepcopy(model)
    live, other = loss(model, data).mean(), loss(twin, data).mean()
    estimate_llc(model, [data], loss, n_samples=200, config=quick(engine="inplace"))
    live.backward()
    other.backward()
    for left, right in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(left.grad, right.grad)


def test_weights_that_share_memory_are_not_moved(data, loss, quick):
    flat = torch.randn(8, generator=torch.Generator().manual_seed(0))
    model = nn.Linear(3, 2)
    model.weight.data = flat[:6].view(2, 3)
    model.bias.data = flat[6:]
    seen = []

    def watching(copied, batch):
        seen.append(flat.clone())
        return loss(copied, batch)

    estimate = estimate_llc(model, [data], watching, n_samples=200, config=quick(engine="inplace"))
    assert np.isfinite(estimate.lambda_hat)
    assert all(torch.equal(flat, earlier) for earlier in seen)


def test_a_live_run_is_never_moved(model, data, loss, quick, context_of):
    pristine = [parameter.detach().clone() for parameter in model.parameters()]

    def watching(copied, batch):
        assert all(map(torch.equal, model.parameters(), pristine))
        return loss(copied, batch)

    estimate = measure_llc(context_of(model, [data], watching), quick(engine="inplace"))
    assert estimate.engine == "inplace"


def test_a_lost_chain_is_left_out_and_told(data, loss, quick):
    """The second chain meets a loss that is not finite; the others are kept."""
    calls = []

    def cliff(model, batch):
        calls.append(1)
        factor = float("nan") if len(calls) == 50 else 1.0
        return loss(model, batch) * factor

    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(data[0], data[1]).solution.T)
        model.bias.zero_()
    config = quick(engine="inplace", step_size=1e-4, burnin_fraction=0.25)
    estimate = estimate_llc(model, [data], cliff, n_samples=200, config=config)
    assert estimate.num_diverged == 1
    assert estimate.chain_loss.shape == (3, 24)
    assert np.isfinite(estimate.lambda_hat)
    assert "1 of 4 chains diverged" in estimate.reason


def test_a_deadline_is_shared_out_among_the_chains(context_of, model, data, quick):
    context = context_of(model, [data], deadline_seconds=0.0)
    estimate = measure_llc(context, quick(engine="inplace", num_draws=2000, burnin_fraction=0.25))
    assert estimate.chain_loss.shape == (4, 24)
