"""A copy of a module whose parameters have a shape and no values.

Values are given at each call (`torch.func.functional_call`). A parameter that was not given fails
loudly, which a copy with values would not. Against a full copy it saves the time and the memory
of the parameters, and it copies modules that `copy.deepcopy` alone refuses.
"""

from __future__ import annotations

import copy
import logging
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from phasewatch.monitor.core.errors import RefusedError
from phasewatch.monitor.isolation.embeddings import prepare_embedding
from phasewatch.monitor.isolation.fully_sharded import attributes_of, bare_copies, is_sharded
from phasewatch.monitor.isolation.functions import rebind_functions
from phasewatch.monitor.isolation.guard import is_trainable
from phasewatch.monitor.isolation.shards import Shards

log = logging.getLogger("phasewatch")

_INTERNAL = frozenset({"_parameters", "_buffers", "_modules"})
_PLAIN = (int, float, complex, str, bytes, bool, type(None), type)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetaCopy:
    """A copy to measure on.

    Attributes:
        module: The copy; its parameters live on the meta device, in the dtype of training.
        params: w*: detached clones of the trainable parameters, by deduplicated name: in fp32, in
            fp64 or complex where training is.
        buffers: Clones of the buffers and of the frozen parameters, by name, in their own dtype.
        frozen: Names of the frozen parameters.
        shared: Attributes that could not be copied, and are the live ones.
    """

    module: nn.Module
    params: Mapping[str, torch.Tensor]
    buffers: Mapping[str, torch.Tensor]
    frozen: frozenset[str] = frozenset()
    shared: tuple[str, ...] = ()


def make_meta_copy(
    module: nn.Module,
    *,
    substitutes: Mapping[int, object] | None = None,
    mode: Literal["eval", "train"] = "eval",
    shards: Shards | None = None,
) -> MetaCopy:
    """Copy `module` without its parameters' values, tied weights staying tied.

    Compiled modules become their originals. Functions that close over the module are rebuilt to
    hold the copy.

    Args:
        module: The live module; it is only read.
        substitutes: What to put in place of live objects the module refers to (a trainer, its
            optimizers), by the identity of the live object.
        mode: "eval" puts the whole copy in eval mode; "train" keeps each submodule's own flag, so
            that a frozen BatchNorm stays frozen.
        shards: Where the parts of sharded parameters lie; the copy then holds what lies here of
            each parameter, flat, and gathers the whole where it is run.

    Raises:
        RefusedError: The module cannot be copied, or its parameters are sharded, not initialised
            yet, or without values.
    """
    module = original_of(module)
    trainable, frozen = split_parameters(module, shards)
    seeds = _Seeds(module, substitutes or {}, shards)
    shared: list[str] = []
    try:
        copied = _deep_copy(module, memo := seeds.memo())
    except Exception:
        shared = seeds.share_what_refuses(module)
        log.debug("the copy shares what cannot be copied: %s", ", ".join(shared) or "nothing")
        try:
            copied = _deep_copy(module, memo := seeds.memo())
        except Exception as error:
            raise RefusedError(
                f"{type(module).__name__} cannot be copied ({type(error).__name__}: {error}); "
                "let it support copy.deepcopy, or keep what refuses outside of the module"
            ) from error
    rebind_functions(copied, memo)
    for live in list(module.modules()):
        _prepare(memo[id(live)], live, mode)
    buffers = {name: memo[id(buffer)] for name, buffer in module.named_buffers()}
    if shards is not None:
        shards.fit_out(module, memo)
        trainable, frozen = (
            {name: shards.part_of(name, parameter) for name, parameter in some.items()}
            for some in (trainable, frozen)
        )
    return MetaCopy(
        module=copied,
        params={name: _wide(parameter) for name, parameter in trainable.items()},
        buffers=buffers | {name: value.detach().clone() for name, value in frozen.items()},
        frozen=frozenset(frozen),
        shared=tuple(shared),
    )


def _deep_copy(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A copy; modules that `fully_shard` keeps from being copied become what they were before."""
    bare = bare_copies(module)
    memo |= bare
    live = {id(part): part for part in module.modules()}
    for identity, empty in bare.items():
        vars(empty).update(copy.deepcopy(attributes_of(live[identity]), memo))
    return copy.deepcopy(module, memo)


def original_of(module: nn.Module) -> nn.Module:
    """The module that `torch.compile` wrapped, or the module itself."""
    while isinstance(original := getattr(module, "_orig_mod", None), nn.Module):
        module = original
    return module


NO_WHOLE = (
    "no process holds the whole model, and one measures here alone; losses and logged metrics are "
    "still observed. A plain loop measures with estimate_llc on every process, and hands the "
    "estimate to Watch.observe_estimate"
)


def refuse_unmeasurable(module: nn.Module, shards: Shards | None = None) -> None:
    """Check that the parameters have values here, whole and readable.

    Args:
        module: The live module.
        shards: Where the parts of sharded parameters lie; without it they are refused.

    Raises:
        RefusedError: Says which parameter is sharded, lazy or on the meta device, and what to do.
    """
    for name, buffer in module.named_buffers():
        if isinstance(buffer, UninitializedBuffer):
            raise RefusedError(
                f"buffer {name!r} has no shape before the first forward pass; "
                "run one batch through the model before training"
            )
    for name, parameter in module.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise RefusedError(
                f"parameter {name!r} has no shape before the first forward pass; "
                "run one batch through the model before training"
            )
        if shards is None and is_sharded(parameter):
            raise RefusedError(
                f"parameter {name!r} is sharded ({type(parameter).__name__}): {NO_WHOLE}"
            )
        if parameter.is_meta:
            raise RefusedError(f"parameter {name!r} is on the meta device: it has no values")
    for name, child in module.named_modules():
        if shards is None and _shards_itself(
            child
        ):  # between a forward and a backward its parameters look whole
            raise RefusedError(
                f"the parameters of module {name or type(child).__name__!r} are sharded: {NO_WHOLE}"
            )
        if isinstance(child, torch.jit.ScriptModule):
            raise RefusedError(
                f"module {name or type(child).__name__!r} is a ScriptModule, whose weights cannot "
                "be swapped; train the Python module, or give a loss_fn on one"
            )


def _shards_itself(module: nn.Module) -> bool:
    names = {cls.__name__ for cls in type(module).__mro__}
    return bool(names & {"FSDPModule", "FullyShardedDataParallel"})


def split_parameters(
    module: nn.Module, shards: Shards | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The parameters that are trained, and those that are not, by name.

    Raises:
        RefusedError: As `refuse_unmeasurable`.
    """
    refuse_unmeasurable(module, shards)
    trainable: dict[str, torch.Tensor] = {}
    frozen: dict[str, torch.Tensor] = {}
    for name, parameter in module.named_parameters():
        (trainable if is_trainable(parameter) else frozen)[name] = parameter
    return trainable, frozen


def _wide(parameter: torch.Tensor) -> torch.Tensor:
    """A copy in fp32; doubles and complex numbers keep what fp32 would cut off."""
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    return parameter.detach().to(dtype, copy=True)


class _Seeds:
    """What `copy.deepcopy` finds already copied.

    Args:
        module: The live module.
        substitutes: Stand-ins by the identity of the live object.
        shards: Where the parts of sharded parameters lie.
    """

    def __init__(
        self, module: nn.Module, substitutes: Mapping[int, object], shards: Shards | None
    ) -> None:
        self._alive: list[Any] = []  # an identity means nothing once its object is gone
        self._copies: dict[int, Any] = dict(substitutes)
        for name, parameter in module.named_parameters():
            here = parameter.detach() if shards is None else shards.part_of(name, parameter)
            hollow = nn.Parameter(torch.empty_like(here, device="meta"), is_trainable(parameter))
            self._add(parameter, hollow)
        for buffer in module.buffers():
            self._add(buffer, buffer.detach().clone())
        visited: set[int] = set()
        for submodule in module.modules():
            for name, value in _plain_attributes(submodule):
                for tensor in _tensors(value, visited):
                    if id(tensor) not in self._copies:
                        # A stored loss or activation is part of a graph, which cannot be copied.
                        self._add(tensor, _constant(tensor))
                if name == "_metric_attributes":  # keyed by the identities of live metrics
                    self._add(value, None)

    def memo(self) -> dict[int, Any]:
        return dict(self._copies)

    def share_what_refuses(self, module: nn.Module) -> list[str]:
        """Find the plain attributes that cannot be copied and let the copy share them."""
        shared = []
        modules = {id(submodule): submodule for submodule in module.modules()}
        for prefix, submodule in module.named_modules():
            for name, value in _plain_attributes(submodule):
                if id(value) in self._copies:
                    continue
                try:
                    copy.deepcopy(value, self._copies | modules)
                except Exception:
                    self._add(value, value)
                    shared.append(f"{prefix}.{name}" if prefix else name)
        return shared

    def _add(self, live: Any, copied: Any) -> None:
        if live is not None:
            self._alive.append(live)
            self._copies[id(live)] = copied


def _plain_attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, value in vars(module).items():
        if name not in _INTERNAL and not isinstance(value, _PLAIN):
            yield name, value


def _tensors(value: Any, visited: set[int]) -> Iterator[torch.Tensor]:
    """Tensors in an attribute, also inside containers; no parameters of the module itself."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple, set, deque, dict)) and id(value) not in visited:
        visited.add(id(value))
        for item in list(value.values() if isinstance(value, dict) else value):
            if not isinstance(item, _PLAIN):
                yield from _tensors(item, visited)


def _constant(tensor: torch.Tensor) -> torch.Tensor:
    copied = tensor.detach().clone()
    return nn.Parameter(copied, False) if isinstance(tensor, nn.Parameter) else copied


def _prepare(copied: nn.Module, live: nn.Module, mode: str) -> None:
    """Set the mode directly: `train()` may be overridden to do more, merging weights for one."""
    copied.training = live.training if mode == "train" else False
    # Absent in older torch; an instance attribute hides a compiled call in any.
    copied.__dict__["_compiled_call_impl"] = None
    if "_orig_mod" in copied._modules:
        copied.__dict__.pop("forward", None)
        copied.__class__ = _Uncompiled
    if isinstance(copied, (nn.Embedding, nn.EmbeddingBag)):
        prepare_embedding(copied)
    if isinstance(copied, nn.RNNBase) and isinstance(live, nn.RNNBase):
        _prepare_recurrent(copied, live)


def _prepare_recurrent(copied: nn.RNNBase, live: nn.RNNBase) -> None:
    copied._flat_weight_refs = [
        weakref.ref(weight) if weight is not None else None for weight in copied._flat_weights
    ]
    if any(parameter.is_cuda for parameter in live.parameters()) and not copied.training:
        # cudnn computes the gradient of a recurrent layer in train mode only; without dropout
        # the two modes are the same function.
        copied.training = True
        copied.dropout = 0.0


class _Uncompiled(nn.Module):
    """Stands where a compiled module stood: same parameter names, the original's forward."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._modules["_orig_mod"](*args, **kwargs)  # type: ignore[misc]

    def __getattr__(self, name: str) -> Any:
        if name in ("_modules", "_orig_mod"):
            return super().__getattr__(name)
        return getattr(self._modules["_orig_mod"], name)
