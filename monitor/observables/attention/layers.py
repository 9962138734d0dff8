"""Attention layers known by their structure: how their heads are cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

_COUNT_NAMES = ("num_heads", "n_heads", "n_head", "num_attention_heads")


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """The heads of one attention layer. All maps act as x → W x on column vectors.

    Query i gives key j the score (W_Q x_i)·(W_K x_j); the head writes Σ_j A_ij W_O W_V x_j.
    Biases and rotations by position are left out.

    Attributes:
        module: Name of the module whose output is what all heads of the layer write together.
        w_q: W_Q of each head, shape (heads, d_head, d_model).
        w_k: W_K, shape (heads, d_head, d_model); heads that share keys repeat them.
        w_v: W_V, shape (heads, d_head, d_model).
        w_o: W_O, shape (heads, d_model, d_head).
        output: Name of the parameter that holds W_O.
        output_axis: Axis of it that the heads share in equal blocks, in order.
    """

    module: str
    w_q: Tensor
    w_k: Tensor
    w_v: Tensor
    w_o: Tensor
    output: str
    output_axis: int


def heads_of(name: str, module: nn.Module) -> Heads | None:
    """The heads of an attention layer of known structure; None for any other module."""
    for family in (_torch_heads, _lens_heads, _fused_heads, _split_heads):
        if (found := family(name, module)) is not None:
            return found
    return None


def _torch_heads(name: str, module: nn.Module) -> Heads | None:
    """`nn.MultiheadAttention`, but for one with learnt extra keys, which belong to no token."""
    if not isinstance(module, nn.MultiheadAttention) or module.add_zero_attn:
        return None
    if module.bias_k is not None:
        return None
    if module.in_proj_weight is not None:
        maps = module.in_proj_weight.chunk(3)
    else:
        maps = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    return _cut(name, maps, module.out_proj.weight, "out_proj.weight", 1, module.num_heads)


def _lens_heads(name: str, module: Any) -> Heads | None:
    """TransformerLens: maps x → x W of three axes, heads first, and a `hook_pattern`."""
    found = [getattr(module, f"W_{letter}", None) for letter in "QKVO"]
    maps = [one.mT for one in found if isinstance(one, Tensor) and one.ndim == 3]
    if len(maps) < 4 or not isinstance(getattr(module, "hook_pattern", None), nn.Module):
        return None
    w_q, w_k, w_v, w_o = maps
    shared = len(w_q) // len(w_k)
    return Heads(
        module=name,
        w_q=w_q,
        w_k=w_k.repeat_interleave(shared, 0),
        w_v=w_v.repeat_interleave(shared, 0),
        w_o=w_o,
        output=_joined(name, "W_O"),
        output_axis=0,
    )


def _fused_heads(name: str, module: Any) -> Heads | None:
    """GPT-2: queries, keys and values by one map c_attn, the output by c_proj."""
    read, write = (_matrix(module, part) for part in ("c_attn", "c_proj"))
    if read is None or write is None or len(read) != 3 * write.shape[1]:
        return None
    count = _num_heads(module, write.shape[1])
    # The library's own layer "Conv1D" keeps its weight the other way round.
    axis = 1 if isinstance(module.c_proj, nn.Linear) else 0
    return _cut(name, read.chunk(3), write, "c_proj.weight", axis, count) if count else None


def _split_heads(name: str, module: Any) -> Heads | None:
    """Llama and its relatives: one linear map each, fewer heads of keys than of queries or not."""
    maps = [_matrix(module, f"{part}_proj") for part in "qkv"]
    for last in ("o_proj", "out_proj"):
        write = _matrix(module, last)
        if write is not None and all(one is not None for one in maps):
            count = _num_heads(module, write.shape[1])
            return _cut(name, maps, write, f"{last}.weight", 1, count) if count else None
    return None


def _cut(
    name: str, maps: Any, write: Tensor, output: str, output_axis: int, num_heads: int
) -> Heads | None:
    """Heads in blocks of rows of what they read with, in blocks of columns of what they write."""
    d_head = write.shape[1] // num_heads
    if write.shape[1] % num_heads or any(len(one) % d_head for one in maps):
        return None
    w_q, w_k, w_v = (one.unflatten(0, (-1, d_head)) for one in maps)
    if len(w_q) != num_heads or num_heads % len(w_k) or num_heads % len(w_v):
        return None
    return Heads(
        module=name,
        w_q=w_q,
        w_k=w_k.repeat_interleave(num_heads // len(w_k), 0),
        w_v=w_v.repeat_interleave(num_heads // len(w_v), 0),
        w_o=write.unflatten(1, (num_heads, d_head)).transpose(0, 1),
        output=_joined(name, output),
        output_axis=output_axis,
    )


def _matrix(module: nn.Module, part: str) -> Tensor | None:
    """Weight of a linear layer below a module, as x → W x; None if there is none."""
    layer = module._modules.get(part)
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        return None
    if isinstance(layer, nn.Linear):
        return weight
    return weight.T if type(layer).__name__ == "Conv1D" else None


def _num_heads(module: Any, width: int) -> int | None:
    """Query heads of `width` channels together, by the layer's own word or its config's."""
    for owner in (module, getattr(module, "config", None)):
        size = getattr(owner, "head_dim", None)
        if isinstance(size, int) and size > 0:
            return width // size
        for name in _COUNT_NAMES:
            count = getattr(owner, name, None)
            if isinstance(count, int) and count > 0:
                return count
    return None


def _joined(module: str, parameter: str) -> str:
    return f"{module}.{parameter}" if module else parameter
