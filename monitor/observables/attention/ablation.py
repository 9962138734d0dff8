"""What each attention head is worth: the loss without it, less the loss with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.errors import ConfigError, RefusedError
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.meaning import StreamMeaning
from phasewatch.monitor.core.work import Cost, Steps, Work, run_through
from phasewatch.monitor.observables.attention.by_head import by_head
from phasewatch.monitor.observables.attention.layers import Heads
from phasewatch.monitor.observables.attention.looking import heads_at_weights
from phasewatch.monitor.observables.attention.model import WAY_OUT, Attention
from phasewatch.monitor.observables.attention.pattern_score import OLSSON
from phasewatch.monitor.observables.evaluation import at_weights, named_weight
from phasewatch.monitor.sampling.probe_loss import is_sum_and_count


class HeadAblation:
    """Loss without a head, less the loss with it; in total the maximum over the heads.

    Of each head, on the whole probe: L(its output replaced) − L, in nats. What is replaced is the
    head's own part of what its layer writes, W_O z; the biases stay. One or two evaluations of the
    probe loss for each head.

    Args:
        replacement: "zero", or "mean": the mean of the head's output over all positions and samples
            of the probe.
        attention: Who speaks for the model's attention, where its layers are of no known structure.

    Raises:
        ConfigError: `replacement` is something else.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from phasewatch.monitor.observables.once import measure_once
        >>> _ = torch.manual_seed(0)
        >>> layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
        >>> model = nn.Sequential(nn.Embedding(16, 8), layer, nn.Linear(8, 16))
        >>> tokens = torch.randint(16, (4, 12))
        >>> loss = lambda model, x: nn.functional.cross_entropy(model(x).flatten(0, 1), x.flatten())
        >>> [o.name for o in measure_once(HeadAblation(), model, [tokens], loss)]
        ['head_ablation', 'head_ablation/L0H0', 'head_ablation/L0H1']
    """

    name = "head_ablation"
    unit = "nats"
    cost = Cost.FORWARD
    needs = "attention layers and a probe loss"
    source = f'{OLSSON}, §"Argument 3"'
    streams: ClassVar = {"head_ablation": StreamMeaning()}

    def __init__(
        self,
        *,
        replacement: Literal["zero", "mean"] = "zero",
        attention: Attention | None = None,
    ) -> None:
        if replacement not in ("zero", "mean"):
            raise ConfigError(f'{self.name}: replacement is {replacement!r}; "zero" or "mean"')
        self._mean = replacement == "mean"
        self._attention = attention

    def check(self, context: MeasureContext) -> None:
        """Try it on one head and one batch, before the first step.

        Raises:
            RefusedError: There is no probe loss, no attention layer that is known, or it fails.
        """
        if context.loss_fn is None or not context.batches:
            raise RefusedError(f"{self.name}: looked for a probe loss and a probe, and found none")
        layers = self._layers(context)
        try:
            ablation = _Ablation(context, layers[:1], context.batches[:1], mean=self._mean)
            ablation.increase(layers[0], 0)
        except RefusedError:
            raise
        except Exception as error:
            raise RefusedError(
                f"{self.name}: the loss without a head failed ({type(error).__name__}: {error})"
            ) from error

    def work(self, context: MeasureContext) -> Work:
        """The loss, and for each head once or twice without it."""
        heads = sum(len(layer.w_o) for layer in self._layers(context))
        return Work(forwards=1.0 + heads * (2.0 if self._mean else 1.0))

    def measure(self, context: MeasureContext) -> list[Observation]:
        """The largest increase of the loss, then that of each head.

        Raises:
            RefusedError: As `check`.
        """
        return run_through(self.measure_in_steps(context))

    def measure_in_steps(self, context: MeasureContext) -> Steps[list[Observation]]:
        """The same, one head a step."""
        layers = self._layers(context)
        ablation = _Ablation(context, layers, context.batches, mean=self._mean)
        yield
        increases = []
        for heads in layers:
            found = []
            for head in range(len(heads.w_o)):
                found.append(ablation.increase(heads, head))
                yield
            increases.append(torch.tensor(found))
        return by_head(context, self.name, self.unit, increases)

    def _layers(self, context: MeasureContext) -> Sequence[Heads]:
        return heads_at_weights(context, self._attention)


class _Ablation:
    """The probe loss of a measurement, with one head at a time replaced.

    Args:
        context: The measurement's context, with a loss.
        layers: The layers of heads.
        batches: The probe batches to evaluate.
        mean: Replace by the mean, not by zero.
    """

    def __init__(
        self,
        context: MeasureContext,
        layers: Sequence[Heads],
        batches: Sequence[Any],
        *,
        mean: bool,
    ) -> None:
        self._context = context
        self._batches = batches
        self._written = {heads.module: _Mean() for heads in layers} if mean else {}
        self._loss = self._evaluate({}, self._written)

    def increase(self, heads: Heads, head: int) -> float:
        """Loss with the head's output replaced by zero, or by its mean, less the loss with it.

        Without its block of W_O a head writes nothing. Its mean output is what its layer then
        writes less, in the mean: all that comes before the layer stays as it was.
        """
        weight = named_weight(self._context, heads.output, HeadAblation.name)
        without = weight.clone()
        size = weight.shape[heads.output_axis] // len(heads.w_o)
        without.narrow(heads.output_axis, head * size, size).zero_()
        params = {heads.output: without}
        if not self._written:
            return self._evaluate(params, {}) - self._loss
        rest = _Mean()
        self._evaluate(params, {heads.module: rest})
        missing = self._written[heads.module].value(heads.module) - rest.value(heads.module)
        return self._evaluate(params, {heads.module: _Shift(missing)}) - self._loss

    def _evaluate(self, params: Mapping[str, Tensor], hooks: Mapping[str, _Hook]) -> float:
        """Mean probe loss with some weights replaced, and hooks on what layers write."""
        loss_fn, total, terms = self._context.loss_fn, 0.0, 0

        def loss(model: nn.Module, batch: Any) -> Tensor:
            with _hooked(model, hooks):
                return loss_fn(model, batch)  # type: ignore[misc]

        with torch.no_grad():
            for batch in self._batches:
                losses = at_weights(self._context, loss, batch, params=params)
                part, count = losses if is_sum_and_count(losses) else (losses, losses.numel())
                total += float(part.double().sum())
                terms += int(count)
        return total / terms


class _Hook:
    """Looks at what a layer writes, of shape (…, d_model), and may change it."""

    def __call__(self, written: Tensor) -> Tensor:
        raise NotImplementedError


class _Mean(_Hook):
    """The mean of what a layer writes, over positions and samples."""

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self._count = 0

    def __call__(self, written: Tensor) -> Tensor:
        total = written.double().flatten(0, -2).sum(dim=0)
        self._total = total if self._total is None else self._total + total
        self._count += written[..., 0].numel()
        return written

    def value(self, module: str) -> Tensor:
        """The mean.

        Raises:
            RefusedError: The layer was never called by the probe loss.
        """
        if self._total is None:
            raise RefusedError(
                f"{HeadAblation.name}: the probe loss does not call {module!r}, whose heads are to "
                f'be replaced by their mean; take replacement="zero", or {WAY_OUT}'
            )
        return self._total / self._count


class _Shift(_Hook):
    """Adds a constant to what a layer writes."""

    def __init__(self, by: Tensor) -> None:
        self._by = by

    def __call__(self, written: Tensor) -> Tensor:
        return written + self._by.to(written.dtype)


@contextmanager
def _hooked(model: nn.Module, hooks: Mapping[str, _Hook]) -> Iterator[None]:
    def attach(module: nn.Module, hook: _Hook) -> Any:
        def after(_: nn.Module, __: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (hook(output[0]), *output[1:])
            return hook(output)

        return module.register_forward_hook(after)

    handles = [attach(model.get_submodule(name), hook) for name, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
