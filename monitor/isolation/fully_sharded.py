"""What a model that was given to `fully_shard` (FSDP2) tells, and what is refused of other ways."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from phasewatch.monitor.core.errors import RefusedError


@dataclass(frozen=True, slots=True)
class Policy:
    """What a unit casts: `MixedPrecisionPolicy`, as far as a forward pass sees it."""

    param_dtype: torch.dtype | None
    output_dtype: torch.dtype | None
    cast_forward_inputs: bool


def policy_of(module: nn.Module) -> Policy:
    """What a unit casts before and after its forward pass."""
    unit: Any = module
    state = unit._get_fsdp_state()
    policy = state._mp_policy
    return Policy(policy.param_dtype, policy.output_dtype, policy.cast_forward_inputs)


def is_unit(module: nn.Module) -> bool:
    """Whether a module was given to `fully_shard`."""
    return "FSDPModule" in _ancestors(module)


def sharded_parameters(model: nn.Module) -> dict[int, Tensor]:
    """What the optimizer trains, by the identity of what the modules hold in its place now.

    After a forward pass without a backward one the outermost unit holds its gathered parameters.
    """
    found = {id(p): p.detach() for p in model.parameters() if is_dtensor(p)}
    for module in filter(is_unit, model.modules()):
        unit: Any = module
        state = unit._get_fsdp_state()
        groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]
        for held in (held for group in groups if group for held in group.fsdp_params):
            if hasattr(held, "_unsharded_param"):
                found[id(held._unsharded_param)] = held.sharded_param.detach()
    return found


def managed(
    module: nn.Module, sharded: Mapping[int, Tensor]
) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """What a unit gathers: sharded parameters in it and not in a unit within.

    Args:
        module: The unit.
        sharded: `sharded_parameters` of the model.
    """
    for key, parameter in module._parameters.items():
        if parameter is not None and id(parameter) in sharded:
            yield module, key, parameter
    for child in module.children():
        if not is_unit(child):
            yield from managed(child, sharded)


def is_dtensor(tensor: Tensor) -> bool:
    """Whether a tensor is spread over a mesh of processes."""
    return "DTensor" in _ancestors(tensor)


def _ancestors(thing: object) -> set[str]:
    return {cls.__name__ for cls in type(thing).__mro__}


def cast_floats(nest: Any, dtype: torch.dtype | None) -> Any:
    """A nest with its floating-point tensors in another dtype; None leaves it as it is."""
    if dtype is None:
        return nest

    def cast(leaf: Any) -> Any:
        is_float = isinstance(leaf, Tensor) and leaf.is_floating_point()
        return leaf.to(dtype) if is_float else leaf

    return tree_map(cast, nest)


def is_spread(model: nn.Module) -> bool:
    """Whether a model's parameters are spread over processes, in whatever way."""
    return any(map(is_sharded, model.parameters())) or any(
        is_unit(module) or "FullyShardedDataParallel" in _ancestors(module)
        for module in model.modules()
    )


def is_sharded(parameter: Tensor) -> bool:
    """Whether a parameter is one rank's part of a larger one."""
    return (
        bool(_ancestors(parameter) & {"DTensor", "FlatParameter", "ShardedTensor"})
        or hasattr(parameter, "ds_id")
        or getattr(parameter, "_is_flat_param", False)
    )


WAY_OUT = "losses and logged metrics are still observed"


def local_of(tensor: Any) -> Tensor:
    """What lies here of a DTensor."""
    shard: Tensor = tensor.to_local()
    return shard


def refuse_other_sharding(model: nn.Module) -> None:
    """Refuse weights that are spread in other ways than by `fully_shard`.

    Raises:
        RefusedError: Says which way it is, and why it cannot be measured.
    """
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        raise RefusedError(
            "the parameters are spread by DeepSpeed ZeRO-3, which lends each layer to its own "
            f"forward pass alone and has no public way to write into it; {WAY_OUT}"
        )
    for name, module in model.named_modules():
        if "FullyShardedDataParallel" in _ancestors(module):
            raise RefusedError(
                f"the parameters of module {name or type(module).__name__!r} are one flat vector "
                "(FullyShardedDataParallel), in which parameters have no shape of their own; "
                f"shard with fully_shard (FSDP2), which can be measured; {WAY_OUT}"
            )
    units = [module for module in model.modules() if is_unit(module)]
    sharded = sharded_parameters(model)
    held = {id(parameter) for unit in units for *_, parameter in managed(unit, sharded)}
    for name, parameter in model.named_parameters():
        if is_sharded(parameter) and not (is_dtensor(parameter) and id(parameter) in held):
            raise RefusedError(
                f"parameter {name!r} is sharded ({type(parameter).__name__}) and not by "
                f"fully_shard: nothing tells when it is gathered; {WAY_OUT}"
            )
        if is_dtensor(parameter) and _is_offloaded(parameter):
            raise RefusedError(
                f"parameter {name!r} is offloaded to {local_of(parameter).device}: the chains "
                f"would wait for the transfer of each layer; {WAY_OUT}"
            )


def _is_offloaded(parameter: Any) -> bool:
    return bool(parameter.to_local().device.type != parameter.device_mesh.device_type)


def bare_copies(model: nn.Module) -> dict[int, nn.Module]:
    """Objects of their original classes for the modules that refuse to be copied, by identity.

    They are empty: `fill` gives each the attributes of its copy.
    """
    bare: dict[int, nn.Module] = {}
    for module in model.modules():
        if is_unit(module):
            kind: Any = type(module).__mro__[2]  # the first two are FSDP's
            bare[id(module)] = kind.__new__(kind)
    return bare


def attributes_of(module: nn.Module) -> dict[str, Any]:
    """What a module holds beside what `fully_shard` put there."""
    found = {}
    for name, value in vars(module).items():
        if name.startswith(("__composable_api", "_is_fsdp", "_fsdp")):
            continue
        if name.endswith("_hooks") and value:
            kept = {key: hook for key, hook in value.items() if not _is_theirs(hook)}
            value = type(value)(kept)
        found[name] = value
    return found


def _is_theirs(hook: Any) -> bool:
    owner = type(getattr(hook, "__self__", None))
    modules = (getattr(hook, "__module__", None) or "", owner.__module__)
    return any(".fsdp" in name and name.startswith("torch.") for name in modules)
