"""From a measurement's context to the posterior that is sampled, checked on the way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.errors import MeasurementError, RefusedError
from phasewatch.monitor.isolation.batches import leading_size, tensors_in
from phasewatch.monitor.isolation.places import told_with_place
from phasewatch.monitor.sampling.batches import Draw, describe, same
from phasewatch.monitor.sampling.layout import PREFIX, Layout
from phasewatch.monitor.sampling.posterior import Problem
from phasewatch.monitor.sampling.probe_loss import (
    ProbeLoss,
    averaged,
    checked_terms,
    is_sum_and_count,
)
from phasewatch.monitor.sampling.terms import (
    GIVEN,
    GIVEN_COUNT,
    Count,
    candidates,
    pieces_of,
)

MAX_TRIED_BYTES = 2**30
"""Frozen weights larger than this together are not looked at for whether the loss writes into them:
that takes a copy."""


def pose(
    context: MeasureContext, names: Sequence[str] | None = None, count: Count | None = None
) -> Problem:
    """Put together the problem of a measurement, and check that it can be measured.

    Args:
        context: Model copy, weights, loss and probe.
        names: Parameters to sample, the rest stay at w*; None takes all.
        count: How to count the terms of a mean; None takes the likeliest way.

    Raises:
        RefusedError: No loss, no data, no parameters, or a batch that the loss cannot take.
        MeasurementError: The loss is not finite at w*: it may be again at a later step.
    """
    if context.loss_fn is None:
        raise RefusedError("there is no probe loss; give loss_fn=, or a method probe_loss(batch)")
    if len(context.batches) == 0:
        raise RefusedError("the probe has no batches; give it at least one")
    if not context.params:
        raise RefusedError(
            "the model has no parameters that require gradients; set requires_grad on those whose "
            "learning coefficient is wanted"
        )
    kept = set(context.params if names is None else names)
    chosen = {name: tensor for name, tensor in context.params.items() if name in kept}
    frozen = {name: tensor for name, tensor in context.params.items() if name not in kept}
    fixed = _prefixed(context, frozen)
    buffers = {PREFIX + name for name, _ in context.model.named_buffers()}
    num_bytes = sum(tensor.nbytes for name, tensor in fixed.items() if name not in buffers)
    problem = Problem(
        loss=ProbeLoss(context.model, context.loss_fn, context.together),
        layout=Layout.of(context.model, chosen),
        params=chosen,
        fixed=fixed,
        batches=context.batches,
        weights=(1.0,) * len(context.batches),
        written=frozenset(fixed) if num_bytes <= MAX_TRIED_BYTES else frozenset(buffers),
        moved=frozenset(PREFIX + name for name in chosen),
        copies_batch=True,
        aliases=_aliases(context.model),
        lent=context.lent,
        max_bytes=context.max_bytes,
        noise_is_shared=getattr(context.loss_fn, "noise_is_shared", False),
        together=context.together,
        probe=context.batches,
    )
    if context.together.is_spread:
        return _spread(problem, count)
    return _inspected(problem, count)


def _prefixed(context: MeasureContext, frozen: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Buffers and frozen parameters under the names of the wrapper module."""
    declared = dict(context.model.named_parameters())
    fixed = {PREFIX + name: tensor for name, tensor in context.buffers.items()}
    for name, tensor in frozen.items():
        fixed[PREFIX + name] = tensor.detach().to(declared[name].dtype)
    return fixed


def _aliases(model: nn.Module) -> tuple[tuple[str, str], ...]:
    """Further names of tensors that the model holds more than once, with their first names."""
    first: dict[Tensor, str] = {}
    found = []
    for members in (model.named_parameters, model.named_buffers):
        for name, tensor in members(remove_duplicate=False):
            known = first.setdefault(tensor, name)
            if known != name:
                found.append((PREFIX + name, PREFIX + known))
    return tuple(found)


def _inspected(problem: Problem, count: Count | None) -> Problem:
    """Look at each batch once, on copies: terms, finiteness, memory, and what is written into."""
    plain = [batch.batch if isinstance(batch, Draw) else batch for batch in problem.probe]
    reading = count or candidates(plain)[0]
    batches = [batch.batch if isinstance(batch, Draw) else batch for batch in problem.batches]
    counts: list[int] = []
    kept, precision = 0, 0.0
    writes_batch = False
    written: set[str] = set()
    moved: set[str] = set()
    used: list[Any] = []
    for index, pristine in enumerate(problem.batches):
        batch, constants = problem.batch(index), problem.constants()
        leaf = problem.center().requires_grad_()
        weights = problem.weights_of(leaf)
        result, size, coarsest = _tried(problem, index, batch, constants, leaf, weights)
        number, way = _number_of_terms(result, batches[index], reading)
        if number == 0 and len(problem.batches) > 1 and not problem.shares:
            continue
        reading = way
        if number == 0 and problem.share(index) > 0.0 and problem.shares:
            raise RefusedError(
                f"all terms are masked in the part of probe batch {index} that rank "
                f"{problem.together.rank} evaluates; give the probe as fewer, larger batches"
            )
        mean = float(checked_terms(averaged(result)).cpu().double().mean())
        if not math.isfinite(mean):
            raise MeasurementError(
                f"the probe loss at the current weights is {mean} on batch {index}; the learning "
                "coefficient needs a finite loss. Check the weights and the probe data"
            )
        used.append(pristine)
        # A batch alone has all the weight; a stand-in has none.
        counts.append(max(number, 1) if problem.share(index) > 0.0 else 0)
        kept = max(kept, problem.together.kept_bytes or size)
        precision = max(precision, coarsest)
        writes_batch = writes_batch or not same(batch, pristine)
        written |= {n for n in problem.written if not same(constants[n], problem.fixed[n])}
        before = problem.layout.unflatten(leaf.detach())
        moved |= {n for n in problem.moved if not same(weights[n].detach(), before[n])}
        del leaf, weights, before
    if not used:
        raise RefusedError(
            "the loss has no terms on any probe batch: all of them are masked; give it samples"
        )
    shares: tuple[float, ...] = ()
    if problem.shares:
        here = torch.tensor(counts, dtype=torch.float64)
        whole = problem.together.total(here)
        shares, counts = tuple((here / whole).tolist()), [round(c) for c in whole.tolist()]
    total = sum(counts)
    return replace(
        problem,
        batches=used,
        shares=shares,
        weights=tuple(count / total for count in counts),
        kept_bytes=kept,
        precision=precision,
        written=frozenset(written),
        moved=frozenset(moved),
        copies_batch=writes_batch,
        count=reading,
        left_out=len(problem.batches) - len(used),
    )


def _spread(problem: Problem, count: Count | None) -> Problem:
    """Give each process its part of the probe, and inspect it; all parts count from here on.

    Whole batches where there are enough of them, else a piece of each batch. A process for which
    nothing is left evaluates what another one does, and it does not count.
    """
    together, probe = problem.together, list(problem.probe)
    size, rank = together.size, together.rank
    pieces: list[list[Any]] = [pieces_of(batch, size) for batch in probe]
    if len(probe) < size and all(len(some) == size for some in pieces):
        parts = [some[rank] for some in pieces]
        counted = [1.0] * len(parts)
    else:
        rounds = range(0, len(probe), size)
        parts = [probe[min(first + rank, len(probe) - 1)] for first in rounds]
        counted = [float(first + rank < len(probe)) for first in rounds]
    spread = replace(problem, batches=parts, weights=(1.0,) * len(parts), shares=tuple(counted))
    _check_alike(problem)
    return _inspected(spread, count)


def _check_alike(problem: Problem) -> None:
    """Refuse probes that differ: each process takes a part of one and the same."""
    sums = [
        float(tensor.double().sum()) if tensor.numel() else 0.0
        for batch in problem.probe
        for tensor in tensors_in(batch.batch if isinstance(batch, Draw) else batch)
        if not tensor.is_complex()
    ]
    own = math.fsum(value * (1 + index % 7) for index, value in enumerate(sums))
    found = problem.together.each(own if math.isfinite(own) else 0.0)
    if len(set(found)) > 1 or len(set(problem.together.each(len(problem.probe)))) > 1:
        raise RefusedError(
            "the processes have different probe batches; give each the same ones: it takes its "
            "own part of them"
        )


def _number_of_terms(result: Any, batch: Any, reading: Count) -> tuple[int, Count]:
    """Terms of one batch, and how they were counted."""
    if is_sum_and_count(result):
        return int(result[1]), GIVEN_COUNT
    if isinstance(result, Tensor) and (
        result.numel() != 1 or (result.ndim and leading_size(batch) == 1)
    ):
        return result.numel(), GIVEN
    return reading.of(batch) or 0 if reading not in (GIVEN, GIVEN_COUNT) else 1, reading


def _tried(
    problem: Problem,
    index: int,
    batch: Any,
    constants: Mapping[str, Tensor],
    leaf: Tensor,
    weights: Mapping[str, Tensor],
) -> tuple[Any, int, float]:
    """What the loss returns at w*; bytes and coarsest roundoff of what its graph keeps."""
    seen: dict[int, int] = {}
    coarsest = torch.finfo(torch.float64).eps

    def keep(tensor: Tensor) -> Tensor:
        nonlocal coarsest
        if tensor.is_floating_point():
            coarsest = max(coarsest, torch.finfo(tensor.dtype).eps)
        if tensor.layout is torch.strided:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                seen[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # itself, it would keep the graph that keeps it alive for ever

    # With a graph, as the chains will need it: some losses differentiate inside.
    held = (leaf, *weights.values(), *tensors_in(batch), *constants.values())
    known = {t.untyped_storage().data_ptr() for t in held if t.layout is torch.strided}
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, _as_is):
            result = problem.call({**constants, **weights}, batch, None, False, None, True)
    except RefusedError:  # it says why by itself
        raise
    except Exception as error:
        raise RefusedError(
            f"the loss cannot take probe batch {index} ({describe(problem.batches[index])}): "
            f"{told_with_place(error)}. Give loss_fn= or probe= so that loss_fn(model, batch) works"
        ) from error
    # Without its graph, which would be kept beside that of the next batch.
    return tree_map(_without_graph, result), sum(seen.values()), coarsest


def _without_graph(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


def _as_is(tensor: Tensor) -> Tensor:
    return tensor
