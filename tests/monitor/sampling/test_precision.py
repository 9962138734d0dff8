"""The chains' state is fp32 or wider, whatever the forward pass runs in: λ̂ is that of fp32."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from phasewatch.monitor.sampling import SamplerConfig, engine_choice, estimate_llc
from phasewatch.monitor.sampling.engine import LoopEngine, VmapEngine, evaluate
from phasewatch.monitor.sampling.posing import pose

ENGINES = ["vmap", "loop", "inplace"]


def squares(model, batch):
    return 0.5 * (model(batch[0]) - batch[1]).float().square().sum(dim=-1)


def mixed(model, batch):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return squares(model, batch)


def deep_linear(num=1000, widths=(6, 5, 6)):
    """A product of full rank that fits its data but for rounding: a regular point."""
    torch.manual_seed(0)
    layers = [nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(widths)]
    model = nn.Sequential(*layers)
    x = torch.randn(num, widths[0])
    return model, (x, model(x).detach())


def estimate(model, batch, loss, engine):
    config = SamplerConfig(engine=engine, num_draws=256, max_draws=0, localization=10.0)
    return estimate_llc(model, [batch], loss, n_samples=1000, config=config)


@pytest.fixture(scope="module")
def plain():
    model, batch = deep_linear()
    return estimate(model, batch, squares, "loop")


def agree(found, expected):
    error = (found.lambda_stderr**2 + expected.lambda_stderr**2) ** 0.5
    return abs(found.lambda_hat - expected.lambda_hat) < 3 * error


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_autocast_measures_what_fp32_does(engine, plain):
    model, batch = deep_linear()
    found = estimate(model, batch, mixed, engine)
    assert found.engine == engine
    assert agree(found, plain), (found, plain)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_a_bf16_model_measures_what_its_fp32_twin_does(engine, plain):
    model, (x, _) = deep_linear()
    model = model.bfloat16()
    batch = (x.bfloat16(), model(x.bfloat16()).detach())
    found = estimate(model, batch, squares, engine)
    assert found.engine == engine
    assert agree(found, plain), (found, plain)
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())


@pytest.mark.parametrize("engine", ENGINES)
def test_steps_that_bf16_would_round_away_are_kept(engine):
    """d = 200 directions beside w* = 1, where bf16 numbers are 0.004 to 0.008 apart."""

    class Plane(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(200, dtype=torch.bfloat16))

    def loss(model, batch):
        return 0.5 * (model.w.float() - 1.0).square().sum().expand(len(batch))

    config = SamplerConfig(n_beta=1000.0, num_draws=128, max_draws=0, engine=engine)
    found = estimate_llc(Plane(), [torch.zeros(4)], loss, n_samples=2000, config=config)
    # Rounding alone adds a variance of (1/128)²/12 or (1/256)²/12 to the chains' 1/1001.
    assert found.lambda_hat == pytest.approx(100.0, rel=0.1)


def crossed(model, batch):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return functional.cross_entropy(model(batch[0]).float(), batch[1], reduction="none")


@pytest.fixture
def low(context_of):
    """A problem on which two right bf16 gradients differ by more than the tolerance."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    model.append(nn.Linear(64, 10))
    batch = (torch.randn(512, 784), torch.randint(0, 10, (512,)))
    return pose(context_of(model, [batch], crossed))


def test_vmap_is_judged_by_the_truth_where_bf16_gradients_differ(low):
    x = engine_choice._perturbed(low, 2)
    loop, vmapped = LoopEngine(low), VmapEngine(low, 2)
    expected, found = evaluate(loop, low, x, [0]), evaluate(vmapped, low, x, [0])
    gap = engine_choice._gaps(found, expected)["gradient"]
    assert gap > engine_choice.tolerance_of(low)
    assert engine_choice._fault(vmapped, loop, x, expected) is None
    # No more than rounding is forgiven: a tenth of the gradient, or another chain's, is not.
    for wrong in (found.grad * 1.1, found.grad.flip(0) * 1.05, found.grad.roll(1, dims=1)):
        assert not engine_choice._as_exact(low, loop, x, replace(found, grad=wrong), expected)


def test_a_loss_that_cannot_do_without_its_dtypes_is_judged_by_the_plain_gradient(low):
    def stubborn(model, batch):
        return crossed(model, (batch[0].bfloat16().float(), batch[1])).float()

    stubborn_low = replace(low, loss=type(low.loss)(low.loss.model, stubborn))
    x = engine_choice._perturbed(low, 2)
    loop, vmapped = LoopEngine(stubborn_low), VmapEngine(stubborn_low, 2)
    expected = evaluate(loop, stubborn_low, x, [0])
    assert "gradient by vmap differs" in engine_choice._fault(vmapped, loop, x, expected)
