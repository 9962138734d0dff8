"""What must not change λ̂: how the weights are scaled between layers, how the probe is cut.

Scaling. Where a layer is multiplied by c and the next divided by it, the function and its loss
stay, and so does λ. The density that is sampled does not: γ/2 ‖w − w*‖² is no function of the loss,
and in the old coordinates its pull is γ c² on one layer and γ/c² on the other. λ̂ is invariant as
far as it does not depend on γ: directions of curvature h enter by nβh/(nβh + γ), and flat ones by
nothing. So the models here are such that γ = 1 is small beside nβh, also when it is multiplied by
c², and c is small: at c = 4 the ReLU net with n = 10³ gave a quarter less.

Cutting. All batches are used at each step, so that λ̂ of the same seed is the same up to rounding.
"""

import copy
import math

import pytest
import torch
from torch import nn

from phasewatch.monitor.core.estimates import EstimateStatus
from phasewatch.monitor.sampling import SamplerConfig, estimate_llc
from support.random_nets import Shape, build
from support.reference_chains import Effort, deep_linear_reference


def mean_squares(model, batch):
    x, y = batch
    return 0.5 * (model(x) - y).square().sum(dim=-1)


def relu_net(dtype=torch.float32):
    """A net without idle units, and 1,024 samples that it fits."""
    generator = torch.Generator().manual_seed(4)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        x = torch.randn(1024, 4, generator=generator).to(dtype)
        return model, (x, model(x))


def rescaled(model, first, second, factor):
    """`first` times the factor with its bias, `second` (its weight alone) divided by it."""
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in scaled.named_parameters():
            if name.startswith(first):
                parameter.mul_(factor)
            elif name == second:
                parameter.div_(factor)
    return scaled


def assert_agree(one, other, *, is_sum=False):
    """Within three joint errors, and these are small enough to tell."""
    if is_sum:  # data that stand for many samples have a loss that is a sum, and that is said
        assert "is a sum over its samples" in one.reason
    else:
        assert one.status is other.status is EstimateStatus.OK
    joint = math.hypot(one.lambda_stderr, other.lambda_stderr)
    assert joint < 0.15 * one.lambda_hat
    assert abs(one.lambda_hat - other.lambda_hat) < 3 * joint


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_rescaling_relu_layers_leaves_lambda_as_it_is(factor):
    model, data = relu_net()
    scaled = rescaled(model, "0.", "2.weight", factor)
    assert torch.allclose(model(data[0]), scaled(data[0]), atol=1e-4)
    one, other = (
        estimate_llc(net, [data], mean_squares, n_samples=1024) for net in (model, scaled)
    )
    assert_agree(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.5, 2.0])
@pytest.mark.parametrize(("widths", "rank"), [((4, 3, 4), 3), ((5, 4, 5), 2)])
def test_rescaling_linear_layers_leaves_lambda_as_it_is(widths, rank, factor):
    net = build(Shape(widths, rank, (False,) * 2), "exact", seed=2)
    scaled = rescaled(net.model, "weights.0", "weights.1", factor)
    one, other = (
        estimate_llc(model, [net.condensed()], net.condensed_loss, n_samples=net.num_samples)
        for model in (net.model, scaled)
    )
    assert_agree(one, other, is_sum=True)


@pytest.mark.slow
def test_the_density_itself_hardly_feels_the_rescaling():
    """Long-run values before and after: what γ leaves of the invariance."""
    net = build(Shape((5, 4, 5), 2, (False,) * 2), "exact", seed=2)
    scaled = rescaled(net.model, "weights.0", "weights.1", 2.0)
    one, other = (
        deep_linear_reference(
            model.weights,
            *net.data,
            n_beta=net.num_samples / math.log(net.num_samples),
            localization=1.0,
            effort=Effort(relative_stderr=0.007, max_seconds=10.0),
        )
        for model in (net.model, scaled)
    )
    assert one.value == pytest.approx(other.value, rel=0.04)


@pytest.mark.slow
@pytest.mark.parametrize("reduce", [False, True])
def test_cutting_the_probe_changes_nothing_but_rounding(reduce):
    """In float64, where chains of the same seed stay together for as long as they last."""
    model, data = relu_net(torch.float64)

    def loss_fn(model, batch):
        losses = mean_squares(model, batch)
        return losses.mean() if reduce else losses

    def value(size):
        batches = list(zip(*(part.split(size) for part in data), strict=True))
        config = SamplerConfig(engine="loop", num_draws=32, max_draws=0)
        return estimate_llc(model, batches, loss_fn, n_samples=1024, config=config)

    whole = value(1024)
    for size in (32, 100):  # 100 leaves a shorter last batch
        cut = value(size)
        assert cut.lambda_hat == pytest.approx(whole.lambda_hat, rel=1e-6)
        assert cut.lambda_stderr == pytest.approx(whole.lambda_stderr, rel=1e-5)
        assert cut.sharpness == pytest.approx(whole.sharpness, rel=1e-9)
        assert cut.status is whole.status


@pytest.mark.slow
def test_cutting_the_probe_in_float32_stays_within_the_error():
    """There rounding parts the chains, and what is left to compare is their distribution."""
    model, data = relu_net()
    one, other = (
        estimate_llc(
            model,
            list(zip(*(part.split(size) for part in data), strict=True)),
            mean_squares,
            n_samples=1024,
        )
        for size in (1024, 32)
    )
    assert_agree(one, other)
