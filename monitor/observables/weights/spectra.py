"""Spectra: singular values and effective rank of weight matrices and of end-to-end maps.

A deep linear network learns one singular value of its end-to-end map at a time: each is an S-curve
of its own (Saxe et al. 2014, arXiv 1312.6120).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.errors import ConfigError, RefusedError
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.meaning import FORMATION, SUPPORTING
from phasewatch.monitor.core.work import Cost, Work
from phasewatch.monitor.observables.evaluation import at_weights, device_of, finite
from phasewatch.monitor.observables.weights.matrices import matrices, matrix, shapes, wide
from phasewatch.monitor.observables.weights.norms import observed
from phasewatch.monitor.observables.work import (
    COPIED,
    DECOMPOSED,
    MULTIPLIED,
    added,
    decomposition,
    of_probe,
    reads,
)

MAX_MATRICES = 16
"""Effective ranks are reported for so many matrices, the largest; one of n×n costs n³."""

CHUNK = 256
"""Unit vectors sent through the model at a time."""

LINEAR = 0.05
"""Largest relative deviation from a linear map: above what bf16 rounds away."""


def effective_rank(singular_values: Tensor) -> float:
    """exp(−Σ p_i ln p_i) with p_i = σ_i/Σσ: 1 for rank one, r for r equal values; 0 for no map."""
    total = singular_values.sum()
    if not total > 0:
        return 0.0
    p = singular_values / total
    return math.exp(float(torch.special.entr(p).sum()))


class _EndToEnd:
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
        return _values(product, "the end-to-end map")

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


class SingularValues:
    """Largest singular values of an end-to-end map, and of chosen weight matrices.

    σ_1 ≥ σ_2 ≥ … of W_L … W_1 are the streams "singular_value_1", "singular_value_2", …, each with
    a detector of its own; those of a matrix are "singular_value_1_of_<matrix>", …. In float64;
    units of output per unit of input.

    The end-to-end map is that of the named `layers`, or of the whole model measured numerically
    where `input_size` is given, by sending 0 and every unit vector through it: the linear part of
    an affine model. With no arguments it is that of the model's nn.Sequential of nothing but linear
    layers. With `weights` alone no end-to-end map is measured.

    A singular value that begins near zero grows exponentially long before it matters, and detectors
    see any change of an exact stream. `resolution` says what cannot be told from zero, such as
    1/√nβ on white data with unit noise; it is given as the standard error of each value, and the
    S-curves are found where they show.

    Args:
        layers: Modules or parameters of shape (outputs, inputs), the first to be applied first.
        input_size: Numbers in an input of shape (batch, input_size).
        weights: Matrices, by the name of their parameter or module.
        top: How many singular values of each.
        resolution: See above; None takes the values for exact.

    Raises:
        ConfigError: `layers` and `input_size` are both given, or an argument makes no sense.

    Example:
        >>> import torch
        >>> from phasewatch.monitor.observables.once import measure_once
        >>> layers = [torch.nn.Linear(2, 2, bias=False) for _ in range(2)]
        >>> _ = layers[0].weight.data.copy_(torch.diag(torch.tensor([3.0, 0.5])))
        >>> _ = layers[1].weight.data.copy_(torch.eye(2))
        >>> found = measure_once(SingularValues(), torch.nn.Sequential(*layers), [torch.ones(1, 2)])
        >>> [(o.name, round(o.value, 3)) for o in found[:2]]
        [('singular_value_1', 3.0), ('singular_value_2', 0.5)]
    """

    name = "singular_values"
    unit = "output/input"
    cost = Cost.FORWARD
    needs = "an nn.Sequential of linear layers, or names of layers, or a linear model's input size"
    source = "Saxe et al. 2014, arXiv 1312.6120, eq. (12)"
    streams: ClassVar = {"singular_value_*": FORMATION}

    def __init__(
        self,
        layers: Sequence[str] | None = None,
        input_size: int | None = None,
        weights: Sequence[str] = (),
        top: int = 5,
        resolution: float | None = None,
    ) -> None:
        if top < 1:
            raise ConfigError(f"{self.name}: top is {top}; it must be at least 1")
        if resolution is not None and not 0 < resolution < math.inf:
            raise ConfigError(f"{self.name}: resolution is {resolution}; it must be above 0")
        if isinstance(weights, str):
            raise ConfigError(f"{self.name}: weights is {weights!r}; it must be a list of names")
        end_to_end = layers is not None or input_size is not None or not weights
        self._map = _EndToEnd(layers, input_size, self.name) if end_to_end else None
        self._weights = tuple(weights)
        self._top = top
        self._resolution = resolution
        self.cost = Cost.WEIGHTS if self._map is None else self._map.cost

    @property
    def reads_live(self) -> bool:
        """Whether it may be measured on the weights as they are."""
        return self._map is None or self._map.reads_live

    def check(self, context: MeasureContext) -> None:
        """Refuse before the first step what cannot be measured.

        Raises:
            RefusedError: Names what was looked for, and what the model has.
        """
        if self._map is not None:
            self._map.check(context)
        for name in self._weights:
            matrix(context, name, self.name)

    def work(self, context: MeasureContext) -> Work:
        """Singular values of each matrix, and what the end-to-end map takes."""
        chosen = [matrix(context, name, self.name)[1] for name in self._weights]
        own = reads(context, sum(map(decomposition, chosen)))
        return own if self._map is None else added(own, self._map.work(context))

    def measure(self, context: MeasureContext) -> list[Observation]:
        """Those of the end-to-end map first, then those of each matrix.

        Raises:
            RefusedError: There is no such map or matrix.
            MeasurementError: It is not finite.
        """
        spectra: dict[str, Tensor] = {}
        if self._map is not None:
            spectra[""] = self._map.values(context)
        for name in self._weights:
            _, weight = matrix(context, name, self.name)
            spectra[f"_of_{name}"] = _values(weight, name)
        return [
            observed(context, f"singular_value_{i}{suffix}", self.unit, value, self._resolution)
            for suffix, values in spectra.items()
            for i, value in enumerate(values[: self._top].tolist(), start=1)
        ]


class EffectiveRank:
    """Effective rank exp(−Σ p_i ln p_i), p_i = σ_i/Σσ, of weight matrices and of the whole map.

    1 for a map of rank one, r for r equal singular values, 0 for none; dimensionless. Each matrix
    is "effective_rank/<matrix>", and their mean is "effective_rank". The weight of a convolution
    counts as a matrix of shape (outputs, the rest). Of more than 16 matrices the largest 16 are
    measured. Where there is an end-to-end map, its effective rank is "effective_rank_end_to_end"
    (see `SingularValues` for how it is found).

    Args:
        layers: Modules or parameters of shape (outputs, inputs), the first to be applied first.
        input_size: Numbers in an input of a model that is linear.
        weights: Matrices, by the name of their parameter or module; None takes the trainable ones.

    Raises:
        ConfigError: `layers` and `input_size` are both given, or an argument makes no sense.

    Example:
        >>> import torch
        >>> from phasewatch.monitor.observables.once import measure_once
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> _ = model.weight.data.copy_(torch.eye(2))
        >>> found = measure_once(EffectiveRank(), model, [torch.ones(1, 2)])
        >>> found[0].name, round(found[0].value, 3)
        ('effective_rank', 2.0)
    """

    name = "effective_rank"
    unit = "1"
    cost = Cost.FORWARD
    needs = "a trainable weight matrix"
    source = "Roy & Vetterli 2007, The effective rank, eq. (3)"
    streams: ClassVar = {"effective_rank": SUPPORTING, "effective_rank_end_to_end": SUPPORTING}

    def __init__(
        self,
        layers: Sequence[str] | None = None,
        input_size: int | None = None,
        weights: Sequence[str] | None = None,
    ) -> None:
        if isinstance(weights, str):
            raise ConfigError(f"{self.name}: weights is {weights!r}; it must be a list of names")
        self._map = _EndToEnd(layers, input_size, self.name)
        self._named = layers is not None or input_size is not None
        self._weights = weights
        self.cost = self._map.cost

    @property
    def reads_live(self) -> bool:
        """Whether it may be measured on the weights as they are."""
        return self._map.reads_live

    def check(self, context: MeasureContext) -> None:
        """Refuse before the first step what cannot be measured.

        Raises:
            RefusedError: Names what was looked for, and what the model has.
        """
        if self._has_map(context):
            self._map.check(context)
        if not self._matrices(context):
            raise RefusedError(
                f"{self.name}: looked for trainable weights of two or more dimensions; the model "
                f"has {shapes(context.params)}"
            )

    def _has_map(self, context: MeasureContext) -> bool:
        return self._named or self._map.found(context) is not None

    def _matrices(self, context: MeasureContext) -> Mapping[str, Tensor]:
        if self._weights is not None:
            return {name: matrix(context, name, self.name)[1] for name in self._weights}
        found = {
            name: p
            for name, p in context.params.items()
            if p.ndim > 1 and min(len(p), p[:1].numel()) > 1
        }
        largest = sorted(found, key=lambda name: -found[name].numel())[:MAX_MATRICES]
        return {name: found[name] for name in largest}

    def work(self, context: MeasureContext) -> Work:
        """Singular values of each matrix, and what the end-to-end map takes."""
        own = reads(context, sum(map(decomposition, self._matrices(context).values())))
        return added(own, self._map.work(context)) if self._has_map(context) else own

    def measure(self, context: MeasureContext) -> list[Observation]:
        """The mean first, then the end-to-end map's, then each matrix's.

        Raises:
            RefusedError: There is no such map or matrix.
            MeasurementError: A weight is not finite.
        """
        ranks = {
            name: effective_rank(_values(weight, name))
            for name, weight in self._matrices(context).items()
        }
        result = [observed(context, self.name, self.unit, sum(ranks.values()) / len(ranks))]
        if self._has_map(context):
            whole = effective_rank(self._map.values(context))
            result.append(observed(context, f"{self.name}_end_to_end", self.unit, whole))
        return [
            *result,
            *(observed(context, f"{self.name}/{n}", self.unit, rank) for n, rank in ranks.items()),
        ]


def _values(weight: Tensor, name: str) -> Tensor:
    """Singular values of one weight, the largest first."""
    values: Tensor = torch.linalg.svdvals(finite(wide(weight).flatten(start_dim=1), name))
    return values
