"""The end-to-end map of a deep linear network: its Jacobian, and its singular values.

A deep linear network learns one singular value of this map at a time: each is an S-curve of its
own (Saxe et al. 2014, arXiv 1312.6120).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.errors import ConfigError, RefusedError
from phasewatch.monitor.core.work import Cost, Work
from phasewatch.monitor.observables.evaluation import at_weights, device_of, finite
from phasewatch.monitor.observables.weights.matrices import matrices, matrix, shapes, wide
from phasewatch.monitor.observables.work import (
    COPIED,
    DECOMPOSED,
    MULTIPLIED,
    of_probe,
    reads,
)

CHUNK = 256
"""Unit vectors sent through the model at a time."""


LINEAR = 0.05
"""Largest relative deviation from a linear map: above what bf16 rounds away."""


class EndToEnd:
    """Finds the map that goes from end to end.

    Args:
        layers: Modules or parameters of shape (outputs, inputs), the first to be applied first.
        input_size: Numbers in an input: the map is then measured by sending unit vectors through
            the model.
        name: Who asks, for errors.

    Raises:
        ConfigError: Both are given, or what is given makes no sense.
    """

    def __init__(self, layers: Sequence[str] | None, input_size: int | None, name: str) -> None:
        if layers is not None and input_size is not None:
            raise ConfigError(f"{name}: give layers or input_size; both name the end-to-end map")
        if isinstance(layers, str) or (layers is not None and not layers):
            raise ConfigError(f"{name}: layers is {layers!r}; it must be a list of names")
        if input_size is not None and input_size < 1:
            raise ConfigError(f"{name}: input_size is {input_size}; it must be at least 1")
        self._layers = layers
        self._input_size = input_size
        self._name = name
        self._found: tuple[Sequence[str], list[str] | None] | None = None

    @property
    def cost(self) -> Cost:
        """Reading a chain of layers takes no forward pass."""
        return Cost.WEIGHTS if self._input_size is None else Cost.FORWARD

    @property
    def reads_live(self) -> bool:
        """Whether weights are all it looks at: it is named, or was found at the check."""
        known = self._layers is not None or self._found is not None
        return self._input_size is None and known

    def found(self, context: MeasureContext) -> list[str] | None:
        """The model's chain of linear layers, looked for once in the same parameters."""
        names = list(context.params)
        if self._found is None or self._found[0] != names:
            self._found = (names, _linear_chain(context.model))
        return self._found[1]

    def chain(self, context: MeasureContext) -> list[Tensor]:
        """Weights of the chain, the first first.

        Raises:
            RefusedError: There is none, or their shapes do not follow one another.
        """
        names = self._layers if self._layers is not None else self.found(context)
        if names is None:
            raise RefusedError(
                f"{self._name}: looked for an nn.Sequential of nothing but linear layers; the "
                f"model has none. Name a chain of linear layers in `layers`, or give `input_size` "
                f"of a model that is linear; it has {shapes(matrices(context))}"
            )
        found = [matrix(context, name, self._name) for name in names]
        for (before, first), (after, second) in itertools.pairwise(found):
            if first.shape[0] != second.shape[1]:
                raise RefusedError(
                    f"{self._name}: {after} {tuple(second.shape)} cannot follow {before} "
                    f"{tuple(first.shape)}: it takes {second.shape[1]} numbers and is given "
                    f"{first.shape[0]}"
                )
        return [weight for _, weight in found]

    def check(self, context: MeasureContext) -> None:
        """Refuse what cannot be measured.

        Raises:
            RefusedError: There is no such map.
        """
        if self._input_size is None:
            self.chain(context)
        else:
            self._measured(context, self._input_size)

    def work(self, context: MeasureContext) -> Work:
        """The products of the chain, or the unit vectors' forward passes; singular values."""
        if self._input_size is not None:
            return Work(forwards=of_probe(context, self._input_size + 2))
        first, *rest = self.chain(context)
        inputs, total = first.shape[1], COPIED * first.numel()
        for weight in rest:
            total += COPIED * weight.numel() + MULTIPLIED * weight.numel() * inputs
        outputs = (rest or [first])[-1].shape[0]
        total += DECOMPOSED * outputs * inputs * min(outputs, inputs)
        return reads(context, total)

    def values(self, context: MeasureContext) -> Tensor:
        """Singular values, float64, the largest first.

        Raises:
            RefusedError: There is no such map.
            MeasurementError: It is not finite.
        """
        if self._input_size is not None:
            product = self._measured(context, self._input_size)
        else:
            product, *rest = (wide(weight) for weight in self.chain(context))
            for weight in rest:
                product = weight @ product
        return spectrum(product, "the end-to-end map")

    def _measured(self, context: MeasureContext, size: int) -> Tensor:
        """The map as a matrix: what the model makes of each unit vector, less what it makes of 0.

        Raises:
            RefusedError: The model cannot be called so, or is not linear.
        """
        device = device_of(context)
        dtypes = (p.dtype for p in context.model.parameters())
        dtype = next((d for d in dtypes if d.is_floating_point or d.is_complex), torch.float32)
        mix = torch.randn(1, size, generator=context.generator, device=device)
        inputs = torch.cat(
            [torch.zeros(1, size, device=device), mix, torch.eye(size, device=device)]
        )
        try:
            with torch.no_grad():
                called = [
                    at_weights(context, lambda model, x: model(x), part).flatten(start_dim=1)
                    for part in inputs.to(dtype).split(CHUNK)
                ]
        except Exception as error:
            raise RefusedError(
                f"{self._name}: the model cannot be called with inputs of shape (batch, {size}): "
                f"{type(error).__name__}: {error}"
            ) from error
        outputs = wide(torch.cat(called))
        columns = outputs[2:] - outputs[0]
        said, expected = outputs[1] - outputs[0], wide(mix)[0].to(columns.dtype) @ columns
        if torch.isfinite(outputs).all():
            scale = max(float(said.norm()), float(expected.norm()))
            if float((said - expected).norm()) > LINEAR * scale:
                raise RefusedError(
                    f"{self._name}: the model is not linear: of a random input it makes something "
                    f"that differs by {float((said - expected).norm()) / scale:.2g} of its size "
                    "from what its action on unit vectors adds up to. Name linear `layers`"
                )
        return columns.T


def _linear_chain(model: nn.Module) -> list[str] | None:
    """Linear layers of the only nn.Sequential that has nothing else, if there is one."""
    found = []
    for path, module in model.named_modules():
        if not isinstance(module, nn.Sequential):
            continue
        children = dict(module.named_children())
        linear = [name for name, child in children.items() if isinstance(child, nn.Linear)]
        rest = [child for name, child in children.items() if name not in linear]
        passing = all(isinstance(child, (nn.Identity, nn.Dropout)) for child in rest)
        if len(linear) > 1 and passing and len(children) == len(module):
            found.append([f"{path}.{name}".lstrip(".") for name in linear])
    return found[0] if len(found) == 1 else None


def spectrum(weight: Tensor, name: str) -> Tensor:
    """Singular values of one weight, the largest first."""
    values: Tensor = torch.linalg.svdvals(finite(wide(weight).flatten(start_dim=1), name))
    return values
