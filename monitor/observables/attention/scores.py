"""Scores of attention heads, as functions of patterns and weights alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from phasewatch.monitor.observables.attention.layers import Heads


def prefix_matching_scores(pattern: Tensor, tokens: Tensor) -> Tensor:
    """How much each head attends to what followed earlier occurrences of the current token.

    Mean over the queries i of the second block of Σ_{j≤i, token_{j−1}=token_i} A[i, j].

    Args:
        pattern: A, shape (batch, heads, length, length).
        tokens: [BOS] and a block twice, shape (batch, length).

    Returns:
        Shape (batch, heads).
    """
    length = tokens.shape[1]
    second = torch.arange((length + 1) // 2, length, device=tokens.device)
    followed = tokens[:, second, None] == tokens[:, None, :-1]
    position = torch.arange(length, device=tokens.device)
    followed = nn.functional.pad(followed, (1, 0)) & (position <= second[:, None])
    return (pattern[:, :, second] * followed[:, None]).sum(dim=-1).mean(dim=-1)


def previous_token_scores(pattern: Tensor) -> Tensor:
    """How much each head attends to the token before: mean over i ≥ 1 of A[i, i−1].

    Args:
        pattern: A, shape (batch, heads, length, length).

    Returns:
        Shape (batch, heads).
    """
    return pattern.diagonal(offset=-1, dim1=-2, dim2=-1).mean(dim=-1)


def copying_scores(heads: Heads, embedding: Tensor, unembedding: Tensor) -> Tensor:
    """Σλ / Σ|λ| of each head, λ the eigenvalues of W_U W_O W_V W_E.

    All but d_head of them are zero; those are the eigenvalues of W_V W_E W_U W_O, a matrix of
    d_head rows, so that none of vocabulary size is made. +1: whatever token the head attends to, it
    makes more likely; −1: less likely. NaN where all λ are zero.

    Args:
        heads: The heads of a layer.
        embedding: W_E, shape (d_model, vocabulary).
        unembedding: W_U, shape (vocabulary, d_model).

    Returns:
        Shape (heads,).
    """
    wide = torch.promote_types(embedding.dtype, torch.float32)
    between = (embedding.to(wide) @ unembedding.to(wide)).double()
    values = torch.linalg.eigvals(heads.w_v.double() @ between @ heads.w_o.double())
    scores: Tensor = values.sum(dim=-1).real / values.abs().sum(dim=-1)
    return scores


def compositions(earlier: Heads, later: Heads) -> dict[str, Tensor]:
    """How much heads of a later layer read what heads of an earlier one write.

    With W_QK = W_Qᵀ W_K and W_OV = W_O W_V, and norms of Frobenius:
    Q: ‖W_QK²ᵀ W_OV¹‖ / (‖W_QK²‖ ‖W_OV¹‖); K: W_QK² in place of W_QK²ᵀ; V: W_OV² in place of it.
    No matrix of d_model rows and columns is made. Layer norms and rotations by position are left
    out.

    Args:
        earlier: Heads of the layer that writes.
        later: Heads of the layer that reads.

    Returns:
        By "q", "k" and "v": shape (later heads, earlier heads). Unrelated heads have about
        1/√d_model; it is not subtracted here.
    """
    w_o, w_v = earlier.w_o.double(), earlier.w_v.double()
    read = w_v @ w_v.mT
    written = _norm(w_o.mT @ w_o, read)
    w_q, w_k = later.w_q.double(), later.w_k.double()
    onward = later.w_o.double()
    found = {}
    for kind, outer, inner in (
        ("q", w_k, w_q),
        ("k", w_q, w_k),
        ("v", onward.mT, later.w_v.double()),
    ):
        # ‖Oᵀ I W_O W_V‖² = tr(Mᵀ (O Oᵀ) M (W_V W_Vᵀ)) with M = I W_O, all of them d_head wide.
        gram = outer @ outer.mT
        product = inner[:, None] @ w_o[None]
        squared = (product * (gram[:, None] @ product @ read[None])).sum(dim=(-2, -1))
        sizes = _norm(gram, inner @ inner.mT)[:, None] * written[None]
        found[kind] = squared.clamp_min(0).sqrt() / sizes
    return found


def _norm(outer: Tensor, inner: Tensor) -> Tensor:
    """‖Oᵀ I‖ of factors with Gram matrices O Oᵀ and I Iᵀ: tr(O Oᵀ I Iᵀ)^½."""
    return (outer * inner).sum(dim=(-2, -1)).clamp_min(0).sqrt()
