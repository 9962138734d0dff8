"""The local posterior: its loss, evaluated at weights that no live model ever holds.

Target density over the displacement x = w − w*:

    p(x) ∝ exp(−U(x)),   U(x) = nβ L_n(w* + x) + (γ/2) ‖x‖²

Weights travel as one flat vector of d numbers (fp32 or wider), and are cut into the model's
parameters, in their training dtype, inside the evaluation: a step of 10⁻⁴ would be rounded away in
bf16.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from phasewatch.monitor.core.errors import MeasurementError, RefusedError
from phasewatch.monitor.core.types import LossFn, MeasureContext
from phasewatch.monitor.isolation.places import told_with_place
from phasewatch.monitor.sampling.batches import (
    Draw,
    describe,
    in_double,
    leading_size,
    same,
    tensors_in,
)
from phasewatch.monitor.sampling.terms import GIVEN, GIVEN_COUNT, Count, candidates

PREFIX = "model."

MAX_TRIED_BYTES = 2**30
"""Frozen weights larger than this together are not looked at for whether the loss writes into them:
that takes a copy."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How a flat vector of d numbers is cut into named parameters.

    Attributes:
        names: Parameter names, as the model knows them.
        shapes: Their shapes.
        dtypes: Their training dtypes.
        sizes: Their numbers of elements; they sum to d.
        state_dtype: dtype of the flat vector: fp32, or wider where the parameters are.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    dtypes: tuple[torch.dtype, ...]
    sizes: tuple[int, ...]
    state_dtype: torch.dtype

    @classmethod
    def of(cls, model: nn.Module, params: Mapping[str, Tensor]) -> Layout:
        """Layout of `params`, with the dtypes that the parameters have in `model`."""
        declared = dict(model.named_parameters())
        unknown = sorted(set(params) - set(declared))
        if unknown:
            raise RefusedError(f"parameters {unknown} are not in the model; it has {[*declared]}")
        dtypes = tuple(declared[name].dtype for name in params)
        odd = sorted({str(dtype) for dtype in dtypes if not dtype.is_floating_point})
        if odd:
            raise RefusedError(
                f"parameters of dtype {', '.join(odd)} cannot be sampled; leave them out with "
                "parameters="
            )
        widest = torch.float32
        for tensor in params.values():
            widest = torch.promote_types(widest, tensor.dtype)
        return cls(
            names=tuple(params),
            shapes=tuple(tensor.shape for tensor in params.values()),
            dtypes=dtypes,
            sizes=tuple(tensor.numel() for tensor in params.values()),
            state_dtype=widest,
        )

    @property
    def num_parameters(self) -> int:
        """Number of parameters d."""
        return sum(self.sizes)

    def flatten(self, params: Mapping[str, Tensor]) -> Tensor:
        """One new vector of shape (d,)."""
        parts = [params[name].detach().reshape(-1).to(self.state_dtype) for name in self.names]
        return torch.cat(parts)

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        """Parameters by prefixed name, in their training dtypes. `flat` is (d,) or (chains, d).

        They are views or casts, never leaves: autocast caches leaves only, so it can never serve
        the weights of an earlier step.
        """
        cut = zip(self.cut(flat).items(), self.dtypes, strict=True)
        return {PREFIX + name: part.to(dtype) for (name, part), dtype in cut}

    def adopt(self, parts: Mapping[str, Tensor], like: Tensor) -> Tensor:
        """Flat vectors of the parts that are cut from others; zero where there is none that fits.

        Args:
            parts: By name, with or without a leading dimension of chains.
            like: The flat vectors they were cut from, (d',) or (chains, d').
        """
        lead = like.shape[:-1]
        pieces = []
        for name, shape, size in zip(self.names, self.shapes, self.sizes, strict=True):
            part = parts.get(name)
            if part is None or part.shape != lead + shape:
                part = like.new_zeros(lead + shape)
            pieces.append(part.reshape(*lead, size))
        return torch.cat(pieces, dim=-1)

    def cut(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of `flat`, (d,) or (chains, d), by parameter name."""
        lead = flat.shape[:-1]
        parts = zip(self.names, flat.split(self.sizes, dim=-1), self.shapes, strict=True)
        return {name: part.view(lead + shape) for name, part, shape in parts}


class ProbeLoss(nn.Module):
    """Calls `loss_fn(model, batch)` from a module, so that `functional_call` can swap the weights.

    The gradient may be taken inside `forward`, while the swapped weights are in place: activation
    checkpointing runs parts of the model again during backward, and would otherwise do so with the
    module's own weights, silently.
    """

    def __init__(self, model: nn.Module, loss_fn: LossFn) -> None:
        super().__init__()
        self.model = model
        self._loss_fn = (loss_fn,)  # in a tuple: a loss that is a module must not become a child

    def forward(
        self,
        batch: Any,
        leaf: Tensor | None = None,
        backward: bool = False,
        direction: Tensor | None = None,
        raw: bool = False,
    ) -> Any:
        """Losses of `batch`; with the gradient for `leaf`, or the Hessian times `direction`.

        Args:
            batch: One probe batch.
            leaf: The point, flat, shape (parameters,), that the gradient is wanted for.
            backward: Whether a gradient is wanted.
            direction: Shape (parameters,); the Hessian is multiplied with it.
            raw: Give what the loss returned, a sum and a count included.
        """
        losses = self._loss_fn[0](self.model, batch)
        if raw:
            return losses
        losses = averaged(losses)
        if leaf is None:
            return losses
        total = losses.mean()
        if not total.requires_grad:
            return losses.detach(), None
        if direction is not None:
            (gradient,) = torch.autograd.grad(total, leaf, create_graph=True)
            if not gradient.requires_grad:  # the loss is linear in the weights
                return losses.detach(), torch.zeros_like(leaf)
            return losses.detach(), torch.autograd.grad(gradient, leaf, direction)[0]
        if backward:  # reentrant checkpointing knows only this way
            total.backward()
            return losses.detach(), leaf.grad
        return losses.detach(), torch.autograd.grad(total, leaf, allow_unused=True)[0]


def is_sum_and_count(losses: Any) -> bool:
    """Whether a loss returned the sum of its terms, and their number."""
    return (
        isinstance(losses, tuple)
        and len(losses) == 2
        and isinstance(losses[0], Tensor)
        and isinstance(losses[1], (Tensor, int, float))
    )


def averaged(losses: Any) -> Any:
    """The mean of a (sum, count); anything else as it is."""
    if is_sum_and_count(losses):
        return losses[0].sum() / losses[1]
    return losses


@dataclass(frozen=True, slots=True)
class Problem:
    """One model, one probe, one centre: everything a gradient needs.

    Attributes:
        loss: Module that calls the loss.
        layout: How flat vectors become parameters.
        params: w* by name, fp32 or wider.
        fixed: Buffers and frozen parameters by prefixed name.
        batches: Probe batches.
        weights: Share of the probe's terms in each batch; sums to one.
        written: Buffers and frozen weights that the loss writes into (BatchNorm in train mode, a
            moving average of the weights): cloned for each evaluation.
        moved: Sampled weights that the loss writes into, such as those of a target network that it
            sets to the trained one.
        copies_batch: Clone the batch at each evaluation, because the loss writes into it.
        aliases: Further names of tied weights and buffers, each with its first name.
        lent: Memory of live weights, by name; see `MeasureContext`.
        kept_bytes: What one chain's forward pass keeps for its backward pass, at most.
        max_bytes: What chains should take at most beside the training; None: no word of it.
        precision: Unit roundoff of the coarsest floating dtype it keeps (bf16 under autocast).
        count: How the terms of a batch were counted.
        left_out: Batches without a term, which are not among `batches`.
        noise_is_shared: All chains shall get the same draws of a loss that draws.
    """

    loss: ProbeLoss
    layout: Layout
    params: Mapping[str, Tensor]
    fixed: Mapping[str, Tensor]
    batches: Sequence[Any]
    weights: tuple[float, ...]
    written: frozenset[str] = frozenset()
    moved: frozenset[str] = frozenset()
    copies_batch: bool = False
    aliases: tuple[tuple[str, str], ...] = ()
    lent: Mapping[str, Tensor] = field(default_factory=dict)
    kept_bytes: int = 0
    precision: float = 0.0
    max_bytes: int | None = None
    count: Count = GIVEN
    left_out: int = 0
    noise_is_shared: bool = False

    @property
    def gives_terms(self) -> bool:
        """Whether the loss itself tells how many terms it has."""
        return self.count in (GIVEN, GIVEN_COUNT)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(iter(self.params.values())).device

    @property
    def state_bytes(self) -> int:
        """Bytes of one vector of state."""
        return self.layout.num_parameters * self.layout.state_dtype.itemsize

    def center(self) -> Tensor:
        """w* as one new vector of shape (d,)."""
        return self.layout.flatten(self.params)

    def displacements(self, num_chains: int) -> Tensor:
        """Zeros for the displacement x of each chain, shape (chains, d)."""
        shape = (num_chains, self.layout.num_parameters)
        return torch.zeros(shape, dtype=self.layout.state_dtype, device=self.device)

    def weights_of(self, flat: Tensor) -> dict[str, Tensor]:
        """Weights by prefixed name, cut from `flat`, (d,) or (chains, d).

        Where the loss writes into some, each is a tensor of its own, as a module's parameters are:
        what is written into one view would count as a change of all others.
        """
        weights = self.layout.unflatten(flat)
        if not self.moved:
            return weights
        return {name: weight.clone() for name, weight in weights.items()}

    def in_double(self) -> Problem:
        """The same problem in fp64 throughout."""
        dtypes = (torch.float64,) * len(self.layout.names)
        return replace(
            self,
            layout=replace(self.layout, dtypes=dtypes, state_dtype=torch.float64),
            params=in_double(self.params),
            fixed=in_double(self.fixed),
            batches=in_double(self.batches),
        )

    def batch(self, index: int) -> Any:
        """Batch `index`, safe to hand to the loss."""
        chosen = self.batches[index]
        return copy.deepcopy(chosen) if self.copies_batch else chosen

    def call(self, values: Mapping[str, Tensor], *arguments: Any) -> Any:
        """Call the loss module with `values` in place of its parameters and buffers."""
        tied = {alias: values[name] for alias, name in self.aliases if name in values}
        # All names of a tied weight are given, so that nothing has to be searched at each call.
        return torch.func.functional_call(
            self.loss, {**values, **tied}, arguments, tie_weights=False
        )

    def constants(self) -> Mapping[str, Tensor]:
        """Buffers, safe to hand to the model."""
        if not self.written:
            return self.fixed
        return {n: t.clone() if n in self.written else t for n, t in self.fixed.items()}


def checked_terms(losses: Any) -> Tensor:
    """The loss terms as one flat tensor, or a clear refusal."""
    if not isinstance(losses, Tensor):
        raise RefusedError(
            f"the loss returned {type(losses).__name__}; it must return a tensor: per-sample "
            "losses of shape (B,) or their mean"
        )
    if not losses.is_floating_point():
        raise RefusedError(f"the loss has dtype {losses.dtype}; it must be floating point, in nats")
    if losses.numel() == 0:
        raise RefusedError("the loss has no terms: the probe batch is empty; give it samples")
    return losses.reshape(-1)


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
        loss=ProbeLoss(context.model, context.loss_fn),
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
    )
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
    batches = [batch.batch if isinstance(batch, Draw) else batch for batch in problem.batches]
    reading = count or candidates(batches)[0]
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
        if number == 0 and len(problem.batches) > 1:
            continue
        reading = way
        mean = float(checked_terms(averaged(result)).cpu().double().mean())
        if not math.isfinite(mean):
            raise MeasurementError(
                f"the probe loss at the current weights is {mean} on batch {index}; the learning "
                "coefficient needs a finite loss. Check the weights and the probe data"
            )
        used.append(pristine)
        counts.append(max(number, 1))  # a batch alone has all the weight
        kept, precision = max(kept, size), max(precision, coarsest)
        writes_batch = writes_batch or not same(batch, pristine)
        written |= {n for n in problem.written if not same(constants[n], problem.fixed[n])}
        before = problem.layout.unflatten(leaf.detach())
        moved |= {n for n in problem.moved if not same(weights[n].detach(), before[n])}
        del leaf, weights, before
    if not used:
        raise RefusedError(
            "the loss has no terms on any probe batch: all of them are masked; give it samples"
        )
    total = sum(counts)
    return replace(
        problem,
        batches=used,
        weights=tuple(count / total for count in counts),
        kept_bytes=kept,
        precision=precision,
        written=frozenset(written),
        moved=frozenset(moved),
        copies_batch=writes_batch,
        count=reading,
        left_out=len(problem.batches) - len(used),
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
