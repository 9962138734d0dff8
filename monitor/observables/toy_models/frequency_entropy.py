"""How many frequencies each hidden unit of a network over Z/pZ answers to."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.errors import ConfigError, RefusedError
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.meaning import StreamMeaning
from phasewatch.monitor.core.work import Cost, Work
from phasewatch.monitor.observables.evaluation import finite, named_weight
from phasewatch.monitor.observables.toy_models.magnitude_masks import (
    MINEGISHI,
    check_share,
    magnitude_mask,
)
from phasewatch.monitor.observables.weights.norms import observed, widened
from phasewatch.monitor.observables.work import MULTIPLIED, SELECTED, reads

MAX_ENTRIES = 2**26
"""Entries of an effective matrix at most: 0.3 GB, and as much again for its spectrum."""


SPECTRUM = 50.0
"""Reads for each entry of a matrix whose rows' spectra are taken."""


class FrequencyEntropy:
    """Fourier entropy of the effective in- and out-matrices of embed, hidden layer, unembed.

    With p tokens, embeddings of length d, h hidden units, in the shapes of `nn.Embedding` and
    `nn.Linear`,

        in-matrix   W_hidden W_embedᵀ            (h, p); (m h, p) where m embeddings are joined
        out-matrix  (W_unembed W_out)ᵀ           (h, p); without W_out, W_unembedᵀ

    and of each row the amplitudes a_f = |DFT_f| over the tokens at f = 1 … ⌊(p − 1)/2⌋, normalised
    to q_f = a_f / Σ a: its entropy is −Σ q_f ln q_f in nats, 0 for one frequency and ln ⌊(p − 1)/2⌋
    where all are equal. "/in" and "/out" are the means over the rows of each matrix,
    "frequency_entropy" their mean. Rows that are zero (pruned away) have no spectrum and are left
    out. With `keep`, the matrices are pruned by magnitude first, ranked together.

    This is the entropy as the paper defines it. The code released with it takes a cross-entropy
    that softmaxes q once more, so that one frequency does not give 0 there; its numbers differ.

    Args:
        embed: Name of the embedding, shape (p or more, d).
        hidden: Name of the hidden layer's weight, shape (h, m d).
        unembed: Name of the weight that gives the logits, shape (p or more, h), or (p or more, d')
            with `out`.
        out: Name of a matrix between hidden layer and logits, shape (d', h).
        tokens: p, where embedding or logits have rows for more than the numbers, such as "=".
        keep: Share of these weights that is kept; None prunes nothing.

    Raises:
        ConfigError: `keep` is no share.

    Example:
        >>> names = {part: f"{part}.weight" for part in ("embed", "hidden", "unembed")}
        >>> FrequencyEntropy(**names).name
        'frequency_entropy'
    """

    name = "frequency_entropy"
    unit = "nats"
    cost = Cost.WEIGHTS
    reads_live = True
    needs = "an embedding, a hidden layer and an unembedding over the numbers modulo p, by name"
    source = MINEGISHI
    streams: ClassVar = {"frequency_entropy": StreamMeaning()}

    def __init__(
        self,
        embed: str,
        hidden: str,
        unembed: str,
        out: str | None = None,
        tokens: int | None = None,
        keep: float | None = None,
    ) -> None:
        if tokens is not None and tokens < 3:
            raise ConfigError(f"tokens is {tokens!r}; a spectrum needs three or more")
        self._names = {"embed": embed, "hidden": hidden, "unembed": unembed}
        if out is not None:
            self._names["out"] = out
        self._tokens = tokens
        self._keep = None if keep is None else check_share(keep)

    def check(self, context: MeasureContext) -> None:
        """Refuse a model whose matrices are not there, or do not fit together.

        Raises:
            RefusedError: Says which, with their shapes.
        """
        self._fitting(self._weights(context))

    def work(self, context: MeasureContext) -> Work:
        """Two effective matrices and their spectra; the ranking where they are pruned."""
        weights = self._weights(context)
        tokens = self._fitting(weights)
        units, joined = weights["hidden"].shape
        rows = units * (joined // weights["embed"].shape[1])
        products = MULTIPLIED * tokens * weights["hidden"].numel()
        if "out" in weights:
            products += MULTIPLIED * tokens * weights["out"].numel()
        spectra = SPECTRUM * tokens * (rows + units)
        ranked = 0 if self._keep is None else sum(w.numel() for w in weights.values())
        return reads(context, products + spectra + SELECTED * ranked)

    def measure(self, context: MeasureContext) -> list[Observation]:
        """Entropies at w*.

        Raises:
            MeasurementError: A weight is not finite.
        """
        weights = self._weights(context)
        tokens = self._fitting(weights)
        if self._keep is not None:
            sizes = torch.cat([finite(w, "a weight").abs().flatten() for w in weights.values()])
            masks = magnitude_mask(sizes, self._keep).split([w.numel() for w in weights.values()])
            weights = {
                name: w * mask.view_as(w)
                for (name, w), mask in zip(weights.items(), masks, strict=True)
            }
        inward = spectral_entropy(_inward(weights, tokens))
        outward = spectral_entropy(_outward(weights, tokens))
        return [
            observed(context, self.name, self.unit, (inward + outward) / 2),
            observed(context, f"{self.name}/in", self.unit, inward),
            observed(context, f"{self.name}/out", self.unit, outward),
        ]

    def _weights(self, context: MeasureContext) -> dict[str, Tensor]:
        return {
            role: widened(named_weight(context, name, f"{self.name}, {role}="))
            for role, name in self._names.items()
        }

    def _fitting(self, weights: dict[str, Tensor]) -> int:
        """p, if the matrices fit together."""
        shapes = {role: tuple(w.shape) for role, w in weights.items()}
        said = ", ".join(f"{role} {self._names[role]} {shape}" for role, shape in shapes.items())
        if any(len(shape) != 2 for shape in shapes.values()) or any(
            w.is_complex() for w in weights.values()
        ):
            raise RefusedError(f"{self.name} needs real matrices; found {said}")
        (rows, width), (units, joined) = shapes["embed"], shapes["hidden"]
        logits, features = shapes["unembed"]
        last, first = shapes.get("out", (features, features))
        if joined % width or last != features or first != units:
            raise RefusedError(
                f"{self.name}: the matrices do not fit together: {said}. It needs embed (p, d), "
                "hidden (h, m d), unembed (p, h), or out (d', h) and unembed (p, d')"
            )
        tokens = self._tokens or min(rows, logits)
        if not 3 <= tokens <= min(rows, logits):
            raise RefusedError(
                f"{self.name} needs 3 or more tokens with a row in embed and unembed each; it was "
                f"told, or took, {tokens}, and found {said}"
            )
        if units * (joined // width) * tokens > MAX_ENTRIES:
            raise RefusedError(
                f"{self.name}: an effective matrix would have more than {MAX_ENTRIES:,} entries: "
                f"{said}. It is meant for small networks on the numbers modulo p"
            )
        return tokens


def spectral_entropy(rows: Tensor) -> float:
    """Mean over the rows of the entropy of their normalised DFT amplitudes, in nats.

    Args:
        rows: Real, shape (units, p). The constant and, for even p, the highest frequency are left
            out. NaN if all rows are zero.
    """
    amplitudes = torch.fft.rfft(rows).abs()[:, 1 : (rows.shape[1] + 1) // 2]
    amplitudes = amplitudes[amplitudes.sum(dim=1) > 0]
    shares = amplitudes / amplitudes.sum(dim=1, keepdim=True)
    return float(torch.special.entr(shares).sum(dim=1).mean()) if len(shares) else math.nan


def _inward(weights: dict[str, Tensor], tokens: int) -> Tensor:
    embed, hidden = weights["embed"][:tokens], weights["hidden"]
    return hidden.reshape(-1, embed.shape[1]) @ embed.to(hidden.dtype).T


def _outward(weights: dict[str, Tensor], tokens: int) -> Tensor:
    unembed = weights["unembed"][:tokens]
    out = weights.get("out")
    return (unembed if out is None else unembed @ out.to(unembed.dtype)).T
