"""Nets of the kinds that people train, with long-run values of λ̂: no closed form is known for them.

The values are those of the posterior that is sampled by default, exp(−nβ L_n(w) − ½ |w − w*|²).
They come from Metropolis-adjusted chains from both sides, which share no code with the estimator:

    python tests/benchmarks/llc_classes.py --selfcheck
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import nn

from phasewatch.monitor.sampling.closed_forms import Case


def fitted_net(
    widths: Sequence[int], activation: type[nn.Module], num_samples: int, seed: int
) -> tuple[nn.Sequential, tuple[torch.Tensor, torch.Tensor]]:
    """A net with random weights and the data that it fits without error; no training is needed.

    Args:
        widths: Units of each layer, inputs and outputs included.
        activation: Between two layers.
        num_samples: Samples of the data.
        seed: Of weights and data.
    """
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), activation()]
    model = nn.Sequential(*layers[:-1])
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 1.5 / math.sqrt(parameter.shape[-1]) if parameter.ndim > 1 else 0.5
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
        x = torch.randn(num_samples, widths[0], generator=generator)
        y: torch.Tensor = model(x)
    return model, (x, y)


def zero_loss_case() -> Case:
    """A tanh net with more hidden units than its data need, at zero loss."""
    model, batch = fitted_net((2, 24, 1), nn.Tanh, 512, seed=1)
    return Case("tanh 2-24-1 at zero loss", model, batch, math.nan, exact=ZERO_LOSS)


def scaled_case(factor: float = 20.0) -> Case:
    """A ReLU net whose first layer is multiplied by what the second is divided by."""
    model, batch = fitted_net((4, 6, 2), nn.ReLU, 512, seed=2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("0."):
                parameter.mul_(factor)
            elif name == "2.weight":
                parameter.div_(factor)
    return Case(f"ReLU 4-6-2 scaled by {factor:g}", model, batch, math.nan, exact=SCALED)


ZERO_LOSS = 6.14
SCALED = 6.31
"""Long-run values; their standard errors are 0.22 and 0.26."""


def net_cases() -> list[Case]:
    """All of them."""
    return [zero_loss_case(), scaled_case()]
