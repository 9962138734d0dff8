"""Attention layers known by their structure: how their heads are cut, and what they attend to.

No library of models is imported: a layer is known by the names and shapes of what it holds.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_SOFTMAX = (functional.softmax, torch.softmax, Tensor.softmax)
_VALUE_NAMES = ("value", "value_input", "hidden_states", "x")
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of an attention layer, batch first.

    Attributes:
        value: What its values are made from, shape (batch, length, d_model).
        pattern: Attention, shape (batch, heads, queries, keys); None where it was not seen.
        output: What the layer writes, shape (batch, length, d_model).
    """

    value: Tensor
    pattern: Tensor | None
    output: Tensor


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


@contextmanager
def watched(model: nn.Module, layers: Mapping[str, int]) -> Iterator[dict[str, list[Call]]]:
    """What the layers are given, attend to and write, while a forward pass runs.

    The pattern is that of the model's own computation: what a `hook_pattern` sees, the weights that
    torch's attention returns when asked, or the result of a softmax. A fused kernel
    (`F.scaled_dot_product_attention`) shows none: there it is computed from the queries, keys and
    mask that the kernel was given, rotated and scaled as the model does it.

    Args:
        model: The model.
        layers: Number of heads, by name of the layer.
    """
    calls: dict[str, list[Call]] = {name: [] for name in layers}
    patterns = _Patterns()
    with ExitStack() as stack:
        for name, num_heads in layers.items():
            module = model.get_submodule(name)
            for handle in _hooks(module, num_heads, patterns, calls[name].append):
                stack.callback(handle.remove)
        stack.enter_context(patterns)
        yield calls


def _hooks(
    module: nn.Module, num_heads: int, patterns: _Patterns, seen: Callable[[Call], None]
) -> Iterator[Any]:
    def before(_: Any, __: Any) -> None:
        patterns.running.append(num_heads)
        patterns.found.append(None)

    def after(_: Any, args: Any, kwargs: Any, output: Any) -> None:
        patterns.running.pop()
        value = _value(module, args, kwargs)
        written = output[0] if isinstance(output, (tuple, list)) else output
        if isinstance(module, nn.MultiheadAttention) and not module.batch_first:
            value, written = value.transpose(0, 1), written.transpose(0, 1)
        seen(Call(value=value, pattern=patterns.found.pop(), output=written))

    yield module.register_forward_pre_hook(before)
    yield module.register_forward_hook(after, with_kwargs=True)
    hook = getattr(module, "hook_pattern", None)
    if isinstance(hook, nn.Module):
        yield hook.register_forward_hook(lambda _, __, pattern: patterns.offer(pattern))


def _value(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What the values are made from: the argument of that name, else the first."""
    given = dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments)
    for name in _VALUE_NAMES:
        if isinstance(given.get(name), Tensor):
            return given[name]
    return next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))


class _Patterns(TorchFunctionMode):
    """Sees the attention that is computed between the start and the end of a layer's call.

    Attributes:
        running: Heads of the layers whose calls have begun and not ended, the innermost last.
        found: The pattern of each of them, so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.running: list[int] = []
        self.found: list[Tensor | None] = []

    def offer(self, pattern: Any) -> None:
        """Take a pattern if it can be that of the running layer."""
        if (
            self.running
            and isinstance(pattern, Tensor)
            and pattern.ndim == 4
            and pattern.shape[1] == self.running[-1]
            and pattern.shape[2] == pattern.shape[3]
        ):
            self.found[-1] = pattern

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not self.running:
            return func(*args, **kwargs)
        if func is functional.multi_head_attention_forward:
            return self._torch_attention(func, args, kwargs)
        if func is functional.scaled_dot_product_attention:
            self.offer(_pattern(*args, **kwargs))
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        if func in _SOFTMAX:
            self.offer(result)
        return result

    def _torch_attention(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Ask for the weights of each head, and give the caller what it had asked for."""
        bound = inspect.signature(func).bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        wanted, averaged = given["need_weights"], given["average_attn_weights"]
        given.update(need_weights=True, average_attn_weights=False)
        output, pattern = func(*bound.args, **bound.kwargs)
        self.offer(pattern)
        if not wanted:
            return output, None
        return output, pattern.mean(dim=1) if averaged else pattern


def _pattern(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The attention that `F.scaled_dot_product_attention` uses and does not show."""
    del value, dropout_p
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        allowed = torch.ones_like(scores, dtype=torch.bool).tril()
        scores = scores.masked_fill(~allowed, -torch.inf)
    if attn_mask is not None:
        if attn_mask.dtype is torch.bool:
            scores = scores.masked_fill(~attn_mask, -torch.inf)
        else:
            scores = scores + attn_mask
    return scores.softmax(dim=-1)
