"""From a live module to everything an observable may look at."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from phasewatch.monitor.core.context import LossFn, MeasureContext, SharedWork
from phasewatch.monitor.core.together import ALONE
from phasewatch.monitor.isolation.meta_copy import (
    MetaCopy,
    make_meta_copy,
    original_of,
    split_parameters,
)
from phasewatch.monitor.isolation.shards import Shards


def measure_context(
    model: nn.Module,
    *,
    step: int,
    epoch: int | None = None,
    loss_fn: LossFn | None = None,
    batches: Sequence[Any] = (),
    val_batches: Sequence[Any] = (),
    n_samples: int = 0,
    n_data: int | None = None,
    sample_unit: str = "sample",
    mode: Literal["eval", "train"] = "eval",
    seed: int = 0,
    substitutes: Mapping[int, object] | None = None,
    lend: bool = False,
    shards: Shards | None = None,
) -> MeasureContext:
    """Copy `model` as it is now. Call it inside a `guard`.

    Args:
        model: The live module; only read.
        step: Optimizer steps completed.
        epoch: Epoch, if known.
        loss_fn: `loss_fn(model, batch)`, in nats.
        batches: Probe batches.
        val_batches: Probe batches of validation data.
        n_samples: Number of terms the probe loss averages over.
        n_data: Size of the training dataset, if known.
        sample_unit: What one term is.
        mode: Mode of the copy.
        seed: Seed of the context's own generator.
        substitutes: Stand-ins for live objects, by identity; see `make_meta_copy`.
        lend: Let chains run in the memory of the live weights. Their values move while a
            measurement runs; nothing else may read them meanwhile. Shards are never lent.
        shards: Where the parts of sharded weights lie; then all processes call this alike.

    Raises:
        RefusedError: The module cannot be copied.
    """
    together = shards or ALONE
    with together.failing():
        copied = make_meta_copy(model, substitutes=substitutes, mode=mode, shards=shards)
        if shards is not None:
            shards.of_first(dict(copied.module.named_buffers()))
    return MeasureContext(
        step=step,
        epoch=epoch,
        copied=lambda: copied.module,
        params=copied.params,
        buffers=copied.buffers,
        frozen=copied.frozen,
        lent=_memory_of(original_of(model), copied) if lend and shards is None else {},
        loss_fn=loss_fn,
        batches=tuple(batches),
        val_batches=tuple(val_batches),
        n_samples=n_samples,
        n_data=n_data,
        sample_unit=sample_unit,
        probe_mode=mode,
        generator=own_generator((*copied.params.values(), *copied.buffers.values()), seed),
        shared=SharedWork(seed),
        together=together,
    )


def live_context(
    model: nn.Module,
    *,
    step: int,
    epoch: int | None = None,
    n_samples: int = 0,
    n_data: int | None = None,
    sample_unit: str = "sample",
    mode: Literal["eval", "train"] = "eval",
    seed: int = 0,
    substitutes: Callable[[], Mapping[int, object]] | None = None,
) -> MeasureContext:
    """The weights of `model` as they are, for observables that read weights and nothing else.

    Nothing is copied: parameters and buffers are the live ones, detached, in their own dtype. Only
    observables for which `observables.reads_live` holds may see them: they write nothing and call
    no code of the user's, so that no guard is needed. There is no loss and no data. A copy of the
    model without weights is made if one of them asks for `context.model`.

    Args:
        model: The live module; only read.
        step: Optimizer steps completed.
        epoch: Epoch, if known.
        n_samples: Number of terms the probe loss averages over.
        n_data: Size of the training dataset, if known.
        sample_unit: What one term is.
        mode: Mode of the copy.
        seed: Seed of the context's own generator.
        substitutes: Gives stand-ins for live objects, by identity; see `make_meta_copy`. Asked only
            if the copy is made.

    Raises:
        RefusedError: Parameters are sharded, not initialised yet, or without values.
    """
    model = original_of(model)
    trainable, frozen = split_parameters(model)
    params = {name: parameter.detach() for name, parameter in trainable.items()}
    buffers = {name: buffer.detach() for name, buffer in model.named_buffers()}
    buffers |= {name: parameter.detach() for name, parameter in frozen.items()}

    @functools.cache
    def copied() -> nn.Module:
        return make_meta_copy(
            model, substitutes=substitutes() if substitutes else None, mode=mode
        ).module

    return MeasureContext(
        step=step,
        epoch=epoch,
        copied=copied,
        params=params,
        buffers=buffers,
        frozen=frozenset(frozen),
        n_samples=n_samples,
        n_data=n_data,
        sample_unit=sample_unit,
        probe_mode=mode,
        generator=own_generator((*params.values(), *buffers.values()), seed),
        shared=SharedWork(seed),
    )


def _memory_of(model: nn.Module, copied: MetaCopy) -> dict[str, torch.Tensor]:
    """The trainable weights without their autograd side; nothing where they cannot be moved alone.

    That is where two share memory, are expanded, or are of a kind of their own.
    """
    live = dict(model.named_parameters())
    lent = {name: live[name].data for name in copied.params}
    places = {weight.untyped_storage().data_ptr() for weight in lent.values()}
    movable = all(
        type(weight) is torch.Tensor
        and not weight.is_inference()
        and weight.untyped_storage().nbytes() >= weight.nbytes
        for weight in lent.values()
    )
    return lent if movable and len(places) == len(lent) else {}


def own_generator(tensors: Sequence[torch.Tensor], seed: int) -> torch.Generator:
    """A generator of our own on the device of the first of the tensors."""
    device = tensors[0].device if tensors else torch.device("cpu")
    return torch.Generator(device=device).manual_seed(seed)
