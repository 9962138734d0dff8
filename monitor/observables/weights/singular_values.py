"""The singular values of an end-to-end map or of one weight matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.errors import ConfigError
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.meaning import FORMATION
from phasewatch.monitor.core.work import Cost, Work
from phasewatch.monitor.observables.weights.end_to_end import EndToEnd, spectrum
from phasewatch.monitor.observables.weights.matrices import matrix
from phasewatch.monitor.observables.weights.norms import observed
from phasewatch.monitor.observables.work import (
    added,
    decomposition,
    reads,
)


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
        self._map = EndToEnd(layers, input_size, self.name) if end_to_end else None
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
            spectra[f"_of_{name}"] = spectrum(weight, name)
        return [
            observed(context, f"singular_value_{i}{suffix}", self.unit, value, self._resolution)
            for suffix, values in spectra.items()
            for i, value in enumerate(values[: self._top].tolist(), start=1)
        ]
