"""Comparable pictures of tensors, generators, modules and plain objects, by their exact bits."""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

# What torch and Lightning keep on a module for themselves. Hooks are recorded by their number.
_INTERNAL = {
    "_buffers",
    "_device_mesh",
    "_fabric",
    "_fabric_optimizers",
    "_jit_is_scripting",
    "_metric_attributes",
    "_modules",
    "_parameters",
    "_torchdynamo_wrapper_id",
    "_trainer",
}
_MAX_DEPTH = 6


def digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()[:16]


def freeze(value: Any, depth: int = 0) -> Any:
    """A comparable picture of `value`: tensors and generators by their exact bits."""
    if value is None or isinstance(value, (bool, int, str, bytes)):
        return value
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, torch.Tensor):
        return _freeze_tensor(value)
    if isinstance(value, np.ndarray):
        return ("array", str(value.dtype), value.shape, digest(np.ascontiguousarray(value)))
    generator = _freeze_generator(value)
    if generator is not None:
        return generator
    if depth >= _MAX_DEPTH:
        return type(value).__qualname__
    if isinstance(value, Mapping):
        return {str(freeze(key, depth + 1)): freeze(v, depth + 1) for key, v in value.items()}
    if isinstance(value, (list, tuple, deque)):
        return [type(value).__name__, *(freeze(item, depth + 1) for item in value)]
    if isinstance(value, (set, frozenset)):
        return sorted(repr(freeze(item, depth + 1)) for item in value)
    return _freeze_object(value, depth)


def _freeze_tensor(tensor: torch.Tensor) -> Any:
    if hasattr(tensor, "to_local"):  # one rank's part
        tensor = tensor.to_local()
    if tensor.is_meta:
        return ("tensor", "meta", tuple(tensor.shape))
    if tensor.layout != torch.strided:
        whole = tensor.detach().coalesce()
        return ("sparse", _freeze_tensor(whole.indices()), _freeze_tensor(whole.values()))
    # A clone: a view by numpy would pin the storage of a live tensor.
    raw = tensor.detach().clone().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return ("tensor", str(tensor.dtype), tuple(tensor.shape), digest(raw.tobytes()))


def _freeze_generator(value: Any) -> Any:
    if isinstance(value, torch.Generator):
        return ("torch.Generator", digest(value.get_state().numpy().tobytes()))
    if isinstance(value, np.random.Generator):
        return ("numpy.Generator", repr(value.bit_generator.state))
    if isinstance(value, np.random.RandomState):
        return ("numpy.RandomState", _legacy_state(value.get_state()))
    if isinstance(value, random.Random):
        return ("random.Random", _python_state(value.getstate()))
    return None


def _legacy_state(state: tuple[Any, ...]) -> str:
    name, keys, *rest = state
    return digest(keys.tobytes() + repr((name, *rest)).encode())


def _python_state(state: tuple[Any, ...]) -> str:
    version, words, gauss = state
    return digest(np.array(words, dtype=np.uint64).tobytes() + repr((version, gauss)).encode())


def _freeze_object(value: Any, depth: int) -> Any:
    name = type(value).__qualname__
    skipped = (nn.Module, type, ModuleType, torch.utils.data.DataLoader)
    if isinstance(value, skipped) or callable(value) or "Trainer" in name:
        return name
    content = getattr(value, "__dict__", None)
    return [name, freeze(content, depth + 1)] if content and depth < 3 else name


def generators() -> dict[str, str]:
    """The exact states of the three global generators."""
    return {
        "torch": digest(torch.get_rng_state().numpy().tobytes()),
        "numpy": _legacy_state(np.random.get_state()),  # noqa: NPY002
        "random": _python_state(random.getstate()),
    }


def modes() -> dict[str, Any]:
    """Every global switch of torch that changes what training computes."""
    return {
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "dtype": str(torch.get_default_dtype()),
        "device": str(torch.get_default_device()),
        "matmul": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "benchmark": torch.backends.cudnn.benchmark,
        "autocast": torch.is_autocast_enabled("cpu"),
        "autocast_cache": torch.is_autocast_cache_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "threads": torch.get_num_threads(),
    }


def weights(module: nn.Module) -> dict[str, Any]:
    """Parameters and buffers, the non-persistent ones too, and the gradients."""
    frozen: dict[str, Any] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        frozen[name] = freeze(parameter)
        frozen[f"{name}.grad"] = freeze(parameter.grad)
        frozen[f"{name}.requires_grad"] = parameter.requires_grad
    for name, buffer in module.named_buffers(remove_duplicate=False):
        frozen[name] = freeze(buffer)
    return frozen


def attributes(module: nn.Module) -> dict[str, Any]:
    """Plain attributes of every submodule, of its classes, and how many hooks it has."""
    frozen: dict[str, Any] = {}
    for path, child in module.named_modules():
        for key, value in vars(child).items():
            if key.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")):
                frozen[f"{path}:{key}"] = len(value)
            elif key not in _INTERNAL:
                frozen[f"{path}:{key}"] = freeze(value)
        frozen[f"{path}:class"] = type(child).__qualname__
        for cls in type(child).__mro__:
            if cls.__module__.startswith("support."):
                for key, value in vars(cls).items():
                    if not key.startswith("__") and not callable(value):
                        frozen[f"{path}:{cls.__name__}.{key}"] = freeze(value)
    return frozen


def optimizers(trainer: Any) -> list[Any]:
    return [freeze(optimizer.state_dict()) for optimizer in trainer.optimizers]
