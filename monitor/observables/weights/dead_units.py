"""Units that never answer: the share of rectified units that are silent on the probe."""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from phasewatch.monitor.core.context import LossFn, MeasureContext
from phasewatch.monitor.core.errors import RefusedError
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.meaning import SUPPORTING
from phasewatch.monitor.core.work import Cost, Work
from phasewatch.monitor.observables.evaluation import at_weights, listed
from phasewatch.monitor.observables.weights.norms import grouped, observed

RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU)
"""Activations that are silent for one sign of their input."""


class DeadUnits:
    """Share of units that are never positive on the probe, in all and for each module path.

    Over every place x and sample of the fixed probe, unit i of a rectifier is dead where
    max_x a_i(x) ≤ 0: it passes nothing on (ReLU), or next to nothing (GELU, SiLU). Rectifiers are
    found by type: `nn.ReLU`, `nn.ReLU6`, `nn.GELU`, `nn.SiLU`; one that is called as a function is
    not seen. One that is used in several places counts as several. Units are features, the last
    axis, but channels after a convolution. A path is that of the module, two levels deep.

    Example:
        >>> import torch
        >>> from phasewatch.monitor.observables.once import measure_once
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 4, bias=False), torch.nn.ReLU())
        >>> _ = model[0].weight.data.copy_(torch.tensor([[1.0], [-1.0], [2.0], [0.0]]))
        >>> loss = lambda model, batch: model(batch).sum(dim=1)
        >>> found = measure_once(DeadUnits(), model, [torch.ones(3, 1)], loss)
        >>> found[0].name, found[0].value
        ('dead_units', 0.5)
    """

    name = "dead_units"
    unit = "1"
    cost = Cost.FORWARD
    needs = "a probe loss, and modules of type ReLU, ReLU6, GELU or SiLU"
    source = "share of units; Lu et al. 2020, arXiv 1903.06733"
    streams: ClassVar = {"dead_units": SUPPORTING}

    def check(self, context: MeasureContext) -> None:
        """Refuse a model without rectifiers, or without a probe.

        Raises:
            RefusedError: Says what was looked for.
        """
        _needed_loss(context, self.name)
        kinds = {type(module).__name__: module for module in context.model.modules()}
        if not any(isinstance(module, RECTIFIERS) for module in kinds.values()):
            raise RefusedError(
                f"{self.name} looked for modules of type {listed(r.__name__ for r in RECTIFIERS)}; "
                f"the model has {listed(kinds)}. An activation that is called as a function, such "
                "as F.relu, is not seen: make it a module"
            )

    def work(self, _: MeasureContext) -> Work:
        """A forward pass over the probe."""
        return Work(forwards=1.0)

    def measure(self, context: MeasureContext) -> list[Observation]:
        """Shares at w*, that of all units first.

        Raises:
            RefusedError: No rectifier is called when the loss is.
        """
        loss_fn = _needed_loss(context, self.name)
        with _Listening(context.model) as listening, torch.no_grad():
            for batch in context.batches:
                listening.begin()
                at_weights(context, loss_fn, batch)
        if not listening.awake:
            raise RefusedError(f"{self.name}: the probe loss calls no rectifier of the model")
        parts = {"": list(listening.awake.values()), **grouped(listening.awake)}
        result = []
        for part, awake in parts.items():
            dead = 1.0 - float(torch.cat([a.cpu() for a in awake]).double().mean())
            name = f"{self.name}/{part}" if part else self.name
            result.append(observed(context, name, self.unit, dead))
        return result


def _needed_loss(context: MeasureContext, name: str) -> LossFn:
    if context.loss_fn is None or not context.batches:
        raise RefusedError(f"{name} needs a probe and a loss; give probe= and loss_fn=")
    return context.loss_fn


class _Listening:
    """Notes which units of the rectifiers of a model are ever positive, by module and call."""

    def __init__(self, model: nn.Module) -> None:
        self.awake: dict[str, Tensor] = {}
        self._names = {module: name for name, module in model.named_modules()}
        self._calls: Counter[str] = Counter()
        self._axis = -1  # of the units

    def __enter__(self) -> Self:
        kinds = (*RECTIFIERS, nn.Linear, _ConvNd)
        chosen = [module for module in self._names if isinstance(module, kinds)]
        self._hooks = [module.register_forward_hook(self._called) for module in chosen]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def begin(self) -> None:
        """A forward pass begins."""
        self._calls.clear()
        self._axis = -1

    def _called(self, module: nn.Module, _: Any, output: Tensor) -> None:
        if isinstance(module, nn.Linear):
            self._axis = -1
        elif isinstance(module, _ConvNd):
            self._axis = -1 - len(module.kernel_size)
        else:
            axis = self._axis if output.dim() >= -self._axis else -1
            awake = (output > 0).movedim(axis, 0).reshape(output.shape[axis], -1).any(dim=1)
            name = self._names[module]
            key = f"{name}.{self._calls[name]}"
            self._calls[name] += 1
            self.awake[key] = awake | self.awake.get(key, torch.zeros_like(awake))
