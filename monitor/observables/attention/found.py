"""The attention of the common layers, which are known by their structure."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from phasewatch.monitor.core.errors import RefusedError
from phasewatch.monitor.observables.attention.layers import Heads, heads_of
from phasewatch.monitor.observables.attention.model import WAY_OUT, Pass
from phasewatch.monitor.observables.attention.watching import Call, watched
from phasewatch.monitor.observables.evaluation import listed

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
"""How far the heads may miss what their layer writes, in shares of it; in low precision 0.05."""


class FoundAttention:
    """The attention of a model of known structure.

    Known are `nn.MultiheadAttention` (also within `nn.TransformerEncoderLayer`); layers with W_Q,
    W_K, W_V, W_O of three axes and a `hook_pattern` (TransformerLens); c_attn and c_proj (GPT-2);
    q_proj, k_proj, v_proj and o_proj or out_proj (Llama), also with fewer heads of keys than of
    queries. They are taken in the order of `named_modules`: that of the layers.
    """

    def heads(self, model: nn.Module) -> list[Heads]:
        """Weights of all layers, cut into heads.

        Raises:
            RefusedError: No layer has one of these structures.
        """
        every = (heads_of(name, module) for name, module in model.named_modules())
        found = [heads for heads in every if heads is not None]
        if not found:
            kinds = dict.fromkeys(type(module).__name__ for module in model.modules())
            raise RefusedError(
                "looked for attention layers: nn.MultiheadAttention, W_Q/W_K/W_V/W_O with "
                "hook_pattern, c_attn/c_proj, q_proj/k_proj/v_proj/o_proj; the model has "
                f"{listed(kinds)}; {WAY_OUT}"
            )
        return found

    def forward(self, model: nn.Module, tokens: Tensor) -> Pass:
        """Run tokens; patterns are those of the model's own computation.

        Raises:
            RefusedError: A layer was called never or several times, its pattern is not seen, or
                the model gives no logits.
        """
        logits, seen = self._run(model, tokens)
        return Pass(logits=logits, patterns=[pattern for _, pattern, _ in seen])

    def verify(self, model: nn.Module, tokens: Tensor) -> None:
        """Hold the heads, as they are understood here, to the real output of their layers.

        Σ_h A_h x W_Vᵀ W_Oᵀ must be the output but for a constant: the biases.

        Raises:
            RefusedError: It is not: the layer does something that its structure does not show.
        """
        _, seen = self._run(model, tokens)
        for heads, pattern, call in seen:
            miss = call.output - written_by(heads, pattern, call.value).sum(dim=1)
            error = float((miss - miss.mean(dim=(0, 1))).abs().max())
            size = float(call.output.abs().max())
            if not error <= TOLERANCE.get(call.output.dtype, 0.05) * size:
                raise RefusedError(
                    f"attention layer {heads.module!r} writes something else than Σ A W_O W_V x of "
                    f"{len(heads.w_o)} heads (off by {error:.2g}, where it writes up to "
                    f"{size:.2g}); {WAY_OUT}"
                )

    def embedding(self, model: nn.Module) -> Tensor:
        """W_E: a parameter of that name, or the first embedding of the model's width.

        Raises:
            RefusedError: There is none.
        """
        width = self._width(model)
        named = _named(model, "W_E")
        found = _pair(model, width)[0].weight if named is None else named
        return found.T if found.shape[1] == width else found

    def unembedding(self, model: nn.Module) -> Tensor:
        """W_U: a parameter of that name, or the last linear layer with an output for each token.

        Raises:
            RefusedError: There is none.
        """
        width = self._width(model)
        named = _named(model, "W_U")
        found = _pair(model, width)[1].weight.T if named is None else named
        return found.T if len(found) == width else found

    def _width(self, model: nn.Module) -> int:
        return int(self.heads(model)[0].w_o.shape[1])

    def _run(
        self, model: nn.Module, tokens: Tensor
    ) -> tuple[Tensor, list[tuple[Heads, Tensor, Call]]]:
        layers = self.heads(model)
        with watched(model, {heads.module: len(heads.w_o) for heads in layers}) as calls:
            logits = logits_of(model(tokens))
        seen = []
        for heads in layers:
            if len(calls[heads.module]) != 1:
                raise RefusedError(
                    f"attention layer {heads.module!r} is called {len(calls[heads.module])} times "
                    f"in a forward pass, and must be called once; {WAY_OUT}"
                )
            (call,) = calls[heads.module]
            if call.pattern is None:
                raise RefusedError(
                    f"attention layer {heads.module!r} computes its attention where it cannot be "
                    "seen, neither by a softmax nor by F.scaled_dot_product_attention. Have the "
                    'model use one of them (attn_implementation="eager" or "sdpa"), or '
                    f"{WAY_OUT}"
                )
            seen.append((heads, call.pattern, call))
        return logits, seen


def written_by(heads: Heads, pattern: Tensor, value: Tensor) -> Tensor:
    """What each head writes, biases left out: shape (batch, heads, length, d_model).

    Args:
        heads: The heads of the layer.
        pattern: Their attention, shape (batch, heads, queries, keys).
        value: What the layer makes its values from, shape (batch, length, d_model).
    """
    values = torch.einsum("hed,bkd->bhke", heads.w_v, value)
    return torch.einsum("hoe,bhqe->bhqo", heads.w_o, pattern.to(values.dtype) @ values)


def logits_of(output: Any) -> Tensor:
    """The logits in what a language model returns: a tensor, `.logits`, or the first of a tuple.

    Raises:
        RefusedError: There is no tensor of shape (batch, length, vocabulary).
    """
    found = getattr(output, "logits", output)
    found = found[0] if isinstance(found, (tuple, list)) and found else found
    if not isinstance(found, Tensor) or found.ndim != 3:
        raise RefusedError(
            "calling the model on tokens of shape (batch, length) gave no logits of shape (batch, "
            f"length, vocabulary), but {type(output).__name__}; {WAY_OUT}"
        )
    return found


def _named(model: nn.Module, name: str) -> Tensor | None:
    for module in model.modules():
        found = module._parameters.get(name)
        if found is not None and found.ndim == 2:
            return found
    return None


def _pair(model: nn.Module, width: int) -> tuple[nn.Embedding, nn.Linear]:
    """The first embedding of the model's width, and the last linear layer that fits it."""
    embeddings = (m for m in model.modules() if isinstance(m, nn.Embedding))
    tokens = next((m for m in embeddings if m.embedding_dim == width), None)
    if tokens is not None:
        shape = (width, tokens.num_embeddings)
        linears = (m for m in model.modules() if isinstance(m, nn.Linear))
        fitting = [m for m in linears if (m.in_features, m.out_features) == shape]
        if fitting:
            return tokens, fitting[-1]
    raise RefusedError(
        "looked for W_E and W_U: parameters of these names, or a model whose first nn.Embedding is "
        f"of width {width} and which has an nn.Linear with as many outputs as that has tokens; "
        f"{WAY_OUT}"
    )
