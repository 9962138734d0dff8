"""Small language models whose attention has the structure of well-known libraries."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F

VOCABULARY, WIDTH, HEADS, LENGTH = 13, 16, 4, 12


class Conv1D(nn.Module):
    """GPT-2's linear layer: x W + b."""

    def __init__(self, out, width):
        super().__init__()
        self.nf = out
        self.weight = nn.Parameter(0.3 * torch.randn(width, out))
        self.bias = nn.Parameter(0.3 * torch.randn(out))

    def forward(self, x):
        return x @ self.weight + self.bias


def split(x, heads):
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attend(query, key, value, *, fused):
    """Causal attention by the fused kernel, or written out."""
    if fused:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True), None
    scores = query @ key.mT / query.shape[-1] ** 0.5
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    pattern = F.softmax(scores.masked_fill(future, -torch.inf), dim=-1)
    return pattern @ value, pattern


class FusedMaps(nn.Module):
    """GPT-2: c_attn and c_proj. With `nn.Linear` in place of Conv1D: nanoGPT."""

    def __init__(self, layer, fused):
        super().__init__()
        self.c_attn, self.c_proj = layer(3 * WIDTH, WIDTH), layer(WIDTH, WIDTH)
        self.n_head, self.fused, self.pattern = HEADS, fused, None

    def forward(self, hidden_states):
        q, k, v = (split(part, HEADS) for part in self.c_attn(hidden_states).chunk(3, dim=-1))
        mixed, self.pattern = attend(q, k, v, fused=self.fused)
        return self.c_proj(mixed.transpose(1, 2).flatten(-2)), None


def conv(out, width):
    return Conv1D(out, width)


def linear(out, width):
    layer = nn.Linear(width, out)
    nn.init.normal_(layer.weight, std=0.3)
    return layer


def rotated(x):
    """Rotary positions."""
    length, size = x.shape[-2:]
    angle = torch.arange(length)[:, None] / 100 ** (torch.arange(size // 2) / (size // 2))
    first, second = x.chunk(2, dim=-1)
    cos, sin = angle.cos().to(x), angle.sin().to(x)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class SplitMaps(nn.Module):
    """Llama: four maps, keys shared by groups of heads, rotary positions."""

    def __init__(self, key_heads=2, fused=True, bias=False):
        super().__init__()
        size = WIDTH // HEADS
        self.config = SimpleNamespace(num_attention_heads=HEADS)
        self.fused, self.groups, self.pattern = fused, HEADS // key_heads, None
        self.q_proj = nn.Linear(WIDTH, WIDTH, bias=bias)
        self.k_proj = nn.Linear(WIDTH, size * key_heads, bias=bias)
        self.v_proj = nn.Linear(WIDTH, size * key_heads, bias=bias)
        self.o_proj = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, hidden_states):
        q = rotated(split(self.q_proj(hidden_states), HEADS))
        k = rotated(split(self.k_proj(hidden_states), HEADS // self.groups))
        v = split(self.v_proj(hidden_states), HEADS // self.groups)
        k, v = (one.repeat_interleave(self.groups, dim=1) for one in (k, v))
        mixed, self.pattern = attend(q, k, v, fused=self.fused)
        return self.o_proj(mixed.transpose(1, 2).flatten(-2)), self.pattern


class Lens(nn.Module):
    """TransformerLens: maps of three axes, hook points."""

    def __init__(self):
        super().__init__()
        size = WIDTH // HEADS
        for letter in "QKV":
            shape = (HEADS, WIDTH, size)
            setattr(self, f"W_{letter}", nn.Parameter(0.3 * torch.randn(shape)))
            setattr(self, f"b_{letter}", nn.Parameter(0.3 * torch.randn(HEADS, size)))
        self.W_O = nn.Parameter(0.3 * torch.randn(HEADS, size, WIDTH))
        self.b_O = nn.Parameter(0.3 * torch.randn(WIDTH))
        self.hook_pattern = nn.Identity()
        self.pattern = None

    def forward(self, query_input, key_input, value_input):
        q, k, v = (
            torch.einsum("bld,hde->bhle", x, w) + b[:, None]
            for x, w, b in (
                (query_input, self.W_Q, self.b_Q),
                (key_input, self.W_K, self.b_K),
                (value_input, self.W_V, self.b_V),
            )
        )
        _, pattern = attend(q, k, v, fused=False)
        self.pattern = self.hook_pattern(pattern)
        return torch.einsum("bhqk,bhke,heo->bqo", self.pattern, v, self.W_O) + self.b_O


class LanguageModel(nn.Module):
    """Embeds, adds what each attention layer writes, and unembeds."""

    def __init__(self, layers, call=None):
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(LENGTH, WIDTH)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in layers)
        self.layers = nn.ModuleList(layers)
        self.unembed = nn.Linear(WIDTH, VOCABULARY)
        self.call = call or (lambda layer, x: layer(x))

    def forward(self, tokens):
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        for norm, layer in zip(self.norms, self.layers, strict=True):
            written = self.call(layer, norm(x))
            x = x + (written[0] if isinstance(written, tuple) else written)
        return self.unembed(x)


def torch_attention(layer, x):
    """Calls `nn.MultiheadAttention` as training code does: no weights asked for."""
    mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
    x = x if layer.batch_first else x.transpose(0, 1)
    out, weights = layer(x, x, x, attn_mask=mask, need_weights=False, is_causal=True)
    assert weights is None
    return out if layer.batch_first else out.transpose(0, 1)


def encoder(layer, x):
    """Calls `nn.TransformerEncoderLayer`, which replaces the stream and not only adds to it."""
    mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
    x = x if layer.self_attn.batch_first else x.transpose(0, 1)
    out = layer(x, src_mask=mask, is_causal=True)
    return out if layer.self_attn.batch_first else out.transpose(0, 1)


def multihead(batch_first, **options):
    return nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first, **options)


def encoder_layer(batch_first):
    return nn.TransformerEncoderLayer(WIDTH, HEADS, 8, 0.2, batch_first=batch_first)


MODELS = {
    "torch": lambda: LanguageModel([multihead(True) for _ in "ab"], torch_attention),
    "torch, length first": lambda: LanguageModel(
        [multihead(False, kdim=WIDTH, vdim=WIDTH) for _ in "ab"], torch_attention
    ),
    "encoder": lambda: LanguageModel([encoder_layer(True) for _ in "ab"], encoder),
    "encoder, length first": lambda: LanguageModel([encoder_layer(False) for _ in "ab"], encoder),
    "TransformerLens": lambda: LanguageModel(
        [Lens() for _ in "ab"], lambda layer, x: layer(query_input=x, key_input=x, value_input=x)
    ),
    "GPT-2": lambda: LanguageModel([FusedMaps(conv, fused=False) for _ in "ab"]),
    "GPT-2, fused": lambda: LanguageModel([FusedMaps(conv, fused=True) for _ in "ab"]),
    "nanoGPT": lambda: LanguageModel([FusedMaps(linear, fused=True) for _ in "ab"]),
    "Llama": lambda: LanguageModel([SplitMaps(fused=True) for _ in "ab"]),
    "Llama, written out": lambda: LanguageModel([SplitMaps(fused=False, bias=True) for _ in "ab"]),
}
"""Makes a causal model of two layers, by what it is like."""


def make(kind, seed=0):
    """One of `MODELS`, in eval mode."""
    torch.manual_seed(seed)
    return MODELS[kind]().eval()


def some_tokens(rows=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY, (rows, LENGTH), generator=generator)
