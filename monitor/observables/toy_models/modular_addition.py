"""Reading a run on modular addition: which pairs are trained on, all logits, W_E and W_L."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.errors import RefusedError
from phasewatch.monitor.observables.evaluation import at_weights, device_of, listed

AUTO = "auto"
"""In place of a parameter's name: find it."""

ROWS_AT_ONCE = 8192
"""Pairs in one forward pass: bounds its memory for large p."""

Logits = Callable[[nn.Module, Tensor], Tensor]
"""`logits(model, pairs)`: from pairs of shape (N, 2), logits of shape (N, ≥ p)."""

WAY_OUT = (
    "For other inputs or outputs make GrokkingProgress in your code, with "
    "logits=function(model, pairs) and train_pairs="
)


@dataclass(frozen=True)
class Task:
    """What was found.

    Attributes:
        p: The modulus.
        train: The pairs trained on, (N, 2).
        suffix: What stands behind a and b in an input, (1, ≥ 0).
    """

    p: int
    train: Tensor
    suffix: Tensor


def read_task(context: MeasureContext, p: int | None, train_pairs: Any) -> Task:
    """Find p and the train pairs.

    Args:
        context: The measurement's context.
        p: The modulus; None takes the largest integer there is, and one.
        train_pairs: (N, 2); None reads the probe.

    Raises:
        RefusedError: This is not modular addition, or not in a form that can be read.
    """
    labels = None
    if train_pairs is None:
        inputs, labels = _joined(context)
        train, suffix = inputs[:, :2], inputs[:1, 2:]
        if not (inputs[:, 2:] == suffix).all():
            raise RefusedError(
                "grokking: what stands behind a and b in the inputs of the probe differs from "
                f"pair to pair, so inputs for all pairs cannot be made. {WAY_OUT}"
            )
    else:
        train = torch.as_tensor(train_pairs, device=device_of(context))
        if train.shape != (len(train), 2) or train.is_floating_point() or not len(train):
            raise RefusedError(
                f"grokking: train_pairs has shape {tuple(train.shape)} and {train.dtype}; it "
                "must be (N, 2) integers a and b, one pair at least"
            )
        suffix = train[:1, 2:]
    train = train.long()
    largest = int(train.max() if labels is None else torch.maximum(train.max(), labels.max()))
    p = p or largest + 1
    if p < 3 or largest >= p or int(train.min()) < 0:
        raise RefusedError(
            f"grokking: looked for integers from 0 to p − 1 = {p - 1}, p being 3 or more; there "
            f"are some from {int(train.min())} to {largest}. Give p="
        )
    if labels is not None and not (labels == train.sum(dim=1) % p).all():
        raise RefusedError(
            f"grokking: the labels of the probe are not (a + b) mod {p} of the first two integers "
            f"of its inputs. {WAY_OUT}"
        )
    return Task(p, train, suffix)


def grid_logits(
    context: MeasureContext, task: Task, pairs: Tensor, function: Logits | None
) -> Tensor:
    """Logits of all pairs, shape (p², p), in float64.

    Args:
        context: The measurement's context.
        task: What `read_task` found.
        pairs: All pairs, (p², 2).
        function: None calls the model on pairs with the suffix behind them.

    Raises:
        RefusedError: The model cannot be called so, or gives no logits over p classes.
    """
    if function is None:
        suffix = task.suffix.expand(len(pairs), -1)
        pairs = torch.cat([pairs.to(suffix.dtype), suffix], dim=1)
    parts = []
    for some in pairs.split(ROWS_AT_ONCE):
        try:
            output = at_weights(context, function or _called, some)
        except Exception as error:
            raise RefusedError(
                f"grokking: the model cannot be called on all pairs mod {task.p} "
                f"({type(error).__name__}: {error}). {WAY_OUT}"
            ) from error
        parts.append(_classes(output, len(some), task.p))
    return torch.cat(parts)


def matrix(
    context: MeasureContext, wanted: str | Sequence[str] | None, what: str, p: int
) -> Tensor | None:
    """W_E or W_L, its first p rows, in float64; None where none is wanted.

    Args:
        context: The measurement's context.
        wanted: A path of attributes from the model, or several, which are multiplied; "auto" takes
            the first embedding, or the last linear layer, of p rows or more.
        what: "embedding" or "unembedding".
        p: The modulus.

    Raises:
        RefusedError: There is none, or its shape is wrong.
    """
    if wanted is None:
        return None
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    if wanted == AUTO:
        names = [_found(context.model, what, p)]
    try:
        factors = at_weights(context, lambda model: [_attribute(model, name) for name in names])
        product = reduce(torch.matmul, [factor.detach().double() for factor in factors])
    except (AttributeError, RuntimeError) as error:
        raise RefusedError(
            f"grokking: looked for {what}={' @ '.join(names)}: {error}; the model has "
            f"{listed([*context.params, *context.buffers])}"
        ) from error
    if product.ndim != 2 or len(product) < p:
        raise RefusedError(
            f"grokking: {what}={' @ '.join(names)} has shape {tuple(product.shape)}; it must be a "
            f'matrix of p = {p} rows or more. A name that ends in ".T" is transposed'
        )
    rows: Tensor = product[:p]
    return rows


def _joined(context: MeasureContext) -> tuple[Tensor, Tensor]:
    """Inputs (N, ≥ 2) and labels (N,) of the whole probe."""
    batches = list(_read(context))
    if not batches:
        raise RefusedError(f"grokking: there is no probe to read the train pairs from. {WAY_OUT}")
    inputs, labels = zip(*batches, strict=True)
    return torch.cat(inputs), torch.cat(labels)


def _read(context: MeasureContext) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in context.batches:
        items = batch if isinstance(batch, (tuple, list)) else ()
        tensors = [item for item in items if isinstance(item, Tensor)]
        if len(tensors) != 2 or not _are_pairs(*tensors):
            shapes = ", ".join(f"{tuple(t.shape)} {t.dtype}" for t in tensors)
            raise RefusedError(
                "grokking: looked for batches (inputs, labels), inputs (N, 2 or more) and labels "
                f"(N,) of integers, as modular addition has them; the probe has "
                f"{shapes or type(batch).__name__}. {WAY_OUT}"
            )
        yield tensors[0], tensors[1]


def _are_pairs(inputs: Tensor, labels: Tensor) -> bool:
    whole = not (inputs.dtype.is_floating_point or labels.dtype.is_floating_point)
    return whole and inputs.ndim == 2 and inputs.shape[1] >= 2 and labels.ndim == 1


def _called(model: nn.Module, inputs: Tensor) -> Any:
    return model(inputs)


def _classes(output: Any, count: int, p: int) -> Tensor:
    """The last position and the first p classes of what the model gave."""
    logits = getattr(output, "logits", output)
    if isinstance(logits, Tensor) and logits.ndim == 3:
        logits = logits[:, -1]
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < p:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise RefusedError(
            f"grokking: looked for logits of shape ({count}, {p} or more), perhaps with positions "
            f"between; the model gives {shape}. {WAY_OUT}"
        )
    return logits[:, :p].double()


def _attribute(model: nn.Module, path: str) -> Any:
    return reduce(getattr, path.split("."), model)


def _found(model: nn.Module, what: str, p: int) -> str:
    """Path of the first embedding, or of the last linear layer, that is large enough."""
    kind: type[nn.Module]
    if what == "embedding":
        kind, where, large, index = nn.Embedding, "first", "num_embeddings", 0
    else:
        kind, where, large, index = nn.Linear, "last", "out_features", -1
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, kind)]
    fit = [name for name, module in layers if getattr(module, large) >= p]
    if not fit:
        have = listed(f"{name or 'itself'}: {m}" for name, m in layers)
        raise RefusedError(
            f"grokking: looked for the {where} nn.{kind.__name__} with {large} of p = {p} or more; "
            f"the model has {have}. Name its weight with {what}=, or go without with {what}=None"
        )
    return f"{fit[index]}.weight".lstrip(".")
