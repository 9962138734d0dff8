"""Models, data and contexts for the sampler's tests."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from phasewatch.monitor.isolation import measure_context
from phasewatch.monitor.sampling import SamplerConfig

QUICK = {"num_draws": 32, "max_draws": 0}


def mean_squares(model, batch):
    """Gaussian negative log-likelihood of each sample."""
    x, y = batch
    return 0.5 * (model(x) - y).square().sum(dim=-1)


def regression(num=200, inputs=3, outputs=2, seed=0, noise=0.0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num, inputs, generator=generator)
    weight = torch.randn(inputs, outputs, generator=generator)
    y = x @ weight + noise * torch.randn(num, outputs, generator=generator)
    return x, y


def perceptron(seed=0, inputs=3, hidden=4, outputs=2):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs))


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny models are quicker on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model():
    return perceptron()


@pytest.fixture
def data(model):
    """Data that the model fits but for a little noise."""
    x, _ = regression()
    noise = torch.randn(len(x), 2, generator=torch.Generator().manual_seed(9))
    return x, model(x).detach() + 0.1 * noise


@pytest.fixture
def loss():
    return mean_squares


@pytest.fixture
def quick():
    """A configuration of few draws, with changes."""
    return lambda **changes: SamplerConfig(**QUICK | changes)


@pytest.fixture
def context_of():
    """A context as the monitor makes it, without any guard around it."""

    def make(model, batches, loss_fn=mean_squares, **fields):
        later = {name: fields.pop(name) for name in ("deadline_seconds", "pause") if name in fields}
        made = measure_context(
            model, step=7, loss_fn=loss_fn, batches=batches, n_samples=200, seed=3, **fields
        )
        return replace(made, **later)

    return make
