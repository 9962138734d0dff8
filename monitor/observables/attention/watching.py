"""Seeing what attention layers attend to while a model runs."""

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
