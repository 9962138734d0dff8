"""Attention heads: what they attend to, what they copy, how they compose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.errors import ConfigError, RefusedError
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.meaning import FORMATION, SUPPORTING, StreamMeaning
from phasewatch.monitor.core.work import Cost, Work
from phasewatch.monitor.observables.attention.model import (
    WAY_OUT,
    Attention,
    attention_of,
    forward,
    heads_at_weights,
    token_batches,
    try_forward,
)
from phasewatch.monitor.observables.attention.scores import (
    compositions,
    copying_scores,
    prefix_matching_scores,
    previous_token_scores,
)
from phasewatch.monitor.observables.evaluation import at_weights, device_of, listed
from phasewatch.monitor.observables.sharing import random_of
from phasewatch.monitor.observables.weights.norms import MAX_GROUPS, observed
from phasewatch.monitor.observables.work import DIAGONALISED, MULTIPLIED, reads

OLSSON = "Olsson et al. 2022, arXiv 2209.11895"
ELHAGE = "Elhage et al. 2021, transformer-circuits.pub/2021/framework"
SHOWN = 1.7
"""What a forward pass that shows its attention takes, over one that does not."""

BLOCK = 25
"""Tokens of a random block, where the probe's sequences leave room for two of them."""


class _Words(NamedTuple):
    """What sequences are drawn from.

    Attributes:
        known: Tokens of the probe, but for the first one.
        length: Tokens of a block.
        bos: The token put first, if there is one.
        num_tokens: Tokens in the probe, counted as often as they come.
    """

    known: Tensor
    length: int
    bos: int | None
    num_tokens: int


class _PatternScore:
    """A score of each head's pattern on random blocks, and the maximum over the heads.

    Each measurement draws new sequences: [BOS], then `length` tokens at random, then the same ones
    again. Tokens are drawn from those that the probe holds, so that none is strange to the model.

    Args:
        length: Tokens of a block; None takes 25, or as many as fit twice into the probe's
            sequences.
        sequences: Sequences drawn.
        bos: The token put first; None takes the one with which all sequences of the probe begin,
            or another random one.
        attention: Who speaks for the model's attention, where its layers are of no known structure.

    Raises:
        ConfigError: `length` or `sequences` is below two.
    """

    name: str
    unit = "1"
    cost = Cost.FORWARD
    needs = "attention layers, and sequences of tokens in the probe"

    def __init__(
        self,
        *,
        length: int | None = None,
        sequences: int = 16,
        bos: int | None = None,
        attention: Attention | None = None,
    ) -> None:
        for what, number in (("length", length), ("sequences", sequences)):
            if number is not None and number < 2:
                raise ConfigError(f"{self.name}: {what} is {number}; it must be at least 2")
        self._length = length
        self._sequences = sequences
        self._bos = bos
        self._found: tuple[Sequence[Any], _Words] | None = None
        self._attention = attention

    def check(self, context: MeasureContext) -> None:
        """Try a forward pass before the first step.

        Raises:
            RefusedError: There is no attention layer that is known, no token, or the pass fails.
        """
        attention = attention_of(context, self._attention)
        tokens = self._tokens(context)
        context.shared.get(
            ("attention verified", self._drawn_as),
            lambda: try_forward(context, attention, tokens),
            *self._about(context),
        )

    def work(self, context: MeasureContext) -> Work:
        """A forward pass over the drawn sequences, unless this turn has seen it.

        Raises:
            RefusedError: The probe holds no tokens, or too few.
        """
        words = self._words(context)
        if context.shared.has(("patterns", self._drawn_as), *self._about(context)):
            return Work()
        drawn = self._sequences * (2 * words.length + 1)
        return Work(forwards=SHOWN * drawn / words.num_tokens)

    def measure(self, context: MeasureContext) -> list[Observation]:
        """The maximum over the heads, then each head, with the error of the random sequences.

        Raises:
            RefusedError: As `check`.
        """
        tokens = self._tokens(context)
        patterns = context.shared.get(
            ("patterns", self._drawn_as),
            lambda: forward(context, attention_of(context, self._attention), tokens).patterns,
            *self._about(context),
        )
        scores = [self._scores(pattern.double(), tokens) for pattern in patterns]
        return by_head(
            context,
            self.name,
            self.unit,
            [score.mean(dim=0) for score in scores],
            [score.std(dim=0) / len(score) ** 0.5 for score in scores],
        )

    def _scores(self, pattern: Tensor, tokens: Tensor) -> Tensor:
        raise NotImplementedError

    @property
    def _drawn_as(self) -> tuple[int | None, ...]:
        """By what the sequences differ from those of another observable of the same turn."""
        return (self._length, self._sequences, self._bos)

    def _about(self, context: MeasureContext) -> tuple[object, ...]:
        return (self._attention, context.params, context.batches)

    def _tokens(self, context: MeasureContext) -> Tensor:
        """New sequences for each turn, the same for all that read attention patterns."""
        words = self._words(context)
        shape = (self._sequences, words.length + 1)
        random = random_of(context, "attention patterns")
        drawn = torch.randint(len(words.known), shape, generator=random, device=random.device)
        block = words.known[drawn].long()
        if words.bos is not None:
            block[:, 0] = words.bos
        return torch.cat([block, block[:, 1:]], dim=1)

    def _words(self, context: MeasureContext) -> _Words:
        """What there is to draw from; looked for once in the same probe.

        Raises:
            RefusedError: There are no tokens, or too few.
        """
        if self._found is None or self._found[0] is not context.batches:
            self._found = (context.batches, self._look(context))
        return self._found[1]

    def _look(self, context: MeasureContext) -> _Words:
        seen = [tokens.to(device_of(context)) for tokens in token_batches(context)]
        if not seen:
            raise RefusedError(
                f"{self.name}: looked for tokens in the probe, whole numbers of shape (batch, "
                "length), and found none; give a probe= whose batches hold them"
            )
        length = self._length or min(BLOCK, (min(t.shape[1] for t in seen) - 1) // 2)
        vocabulary = torch.cat([tokens.unique() for tokens in seen]).unique()
        first = torch.cat([tokens[:, 0] for tokens in seen]).unique()
        bos = self._bos if self._bos is not None else int(first[0]) if len(first) == 1 else None
        vocabulary = vocabulary[vocabulary != bos] if bos is not None else vocabulary
        if length < 2 or len(vocabulary) < 2:
            raise RefusedError(
                f"{self.name}: the probe's sequences hold {len(vocabulary)} tokens and leave room "
                f"for two blocks of {length}; at least 2 of each are needed"
            )
        return _Words(vocabulary, length, bos, sum(tokens.numel() for tokens in seen))


class PrefixMatching(_PatternScore):
    """Prefix matching: attention to what followed the current token the last time it was there.

    On [BOS] + a random block of length T, repeated: mean over the queries i of the second block of
    Σ_{j≤i, token_{j−1}=token_i} A[i, j], for each head; in total their maximum. One for a perfect
    induction head; even attention has about 2/(3T), where no token comes again in a block. The row
    of BOS is left out. See `_PatternScore` for the arguments.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from phasewatch.monitor.observables.once import measure_once
        >>> _ = torch.manual_seed(0)
        >>> layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
        >>> model = nn.Sequential(nn.Embedding(16, 8), layer, nn.Linear(8, 16))
        >>> tokens = torch.randint(16, (4, 12))
        >>> found = measure_once(PrefixMatching(), model, [tokens])
        >>> [o.name for o in found]
        ['prefix_matching', 'prefix_matching/L0H0', 'prefix_matching/L0H1']
    """

    name = "prefix_matching"
    source = f"{OLSSON}, appendix (head activation evaluators)"
    streams: ClassVar = {"prefix_matching": FORMATION}

    def _scores(self, pattern: Tensor, tokens: Tensor) -> Tensor:
        return prefix_matching_scores(pattern, tokens)


class PreviousToken(_PatternScore):
    """Attention to the token before, for each head; in total their maximum.

    On [BOS] + a random block of length T, repeated: mean over i ≥ 1 of A[i, i−1]. The row of BOS,
    which can attend to nothing else, is left out. See `_PatternScore` for the arguments.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from phasewatch.monitor.observables.once import measure_once
        >>> _ = torch.manual_seed(0)
        >>> layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
        >>> model = nn.Sequential(nn.Embedding(16, 8), layer, nn.Linear(8, 16))
        >>> tokens = torch.randint(16, (4, 12))
        >>> found = measure_once(PreviousToken(), model, [tokens])
        >>> [o.name for o in found]
        ['previous_token', 'previous_token/L0H0', 'previous_token/L0H1']
    """

    name = "previous_token"
    source = f"{OLSSON}, appendix (head activation evaluators)"
    streams: ClassVar = {"previous_token": StreamMeaning()}

    def _scores(self, pattern: Tensor, _: Tensor) -> Tensor:
        return previous_token_scores(pattern)


class CopyingScore:
    """Σλ / Σ|λ| over the eigenvalues of W_U W_OV W_E, for each head; in total their maximum.

    +1: the head makes more likely what it attends to; −1: less likely. It needs no data. Layer
    norms are left out.

    Args:
        attention: Who speaks for the model's attention, where its layers are of no known structure.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from phasewatch.monitor.observables.once import measure_once
        >>> _ = torch.manual_seed(0)
        >>> layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
        >>> model = nn.Sequential(nn.Embedding(16, 8), layer, nn.Linear(8, 16))
        >>> found = measure_once(CopyingScore(), model)
        >>> [o.name for o in found]
        ['copying_score', 'copying_score/L0H0', 'copying_score/L0H1']
    """

    name = "copying_score"
    unit = "1"
    cost = Cost.WEIGHTS
    needs = "attention layers, an embedding and an unembedding of one vocabulary"
    source = f'{ELHAGE}, "Summarizing OV/QK matrices"'
    streams: ClassVar = {"copying_score": SUPPORTING}

    def __init__(self, *, attention: Attention | None = None) -> None:
        self._attention = attention

    def check(self, context: MeasureContext) -> None:
        """Look for the matrices.

        Raises:
            RefusedError: One is not there, or embedding and unembedding differ in vocabulary.
        """
        self._scores(context)

    def work(self, context: MeasureContext) -> Work:
        """For each head, products with both embeddings, and eigenvalues of d_head rows."""
        attention = attention_of(context, self._attention)
        layers = heads_at_weights(context, self._attention)
        with torch.no_grad():
            entries = at_weights(context, lambda model: attention.unembedding(model).numel())
        width = int(layers[0].w_o.shape[1])
        total = len(layers) * MULTIPLIED * entries * width
        for heads in layers:
            num, rows, columns = heads.w_v.shape
            total += num * (MULTIPLIED * rows * columns**2 + DIAGONALISED * rows**3)
        return reads(context, total)

    def measure(self, context: MeasureContext) -> list[Observation]:
        """The maximum over the heads, then each head.

        Raises:
            RefusedError: As `check`.
        """
        return by_head(context, self.name, self.unit, self._scores(context))

    def _scores(self, context: MeasureContext) -> list[Tensor]:
        attention = attention_of(context, self._attention)
        layers = heads_at_weights(context, self._attention)

        def scores(model: nn.Module) -> list[Tensor]:
            w_e, w_u = attention.embedding(model), attention.unembedding(model)
            if w_e.shape != w_u.T.shape:
                raise RefusedError(
                    f"{self.name}: looked for W_E of shape (d_model, vocabulary) and W_U of shape "
                    f"(vocabulary, d_model); found {tuple(w_e.shape)} and {tuple(w_u.shape)}; "
                    f"{WAY_OUT}"
                )
            return [copying_scores(heads, w_e, w_u) for heads in layers]

        with torch.no_grad():
            found: list[Tensor] = at_weights(context, scores)
        return found


class Composition:
    """How much heads read what heads of earlier layers write, beyond the level of random matrices.

    For each pair of heads, the second in a later layer, x → W x, W_QK = W_Qᵀ W_K, W_OV = W_O W_V:
    Q-composition ‖W_QK²ᵀ W_OV¹‖_F / (‖W_QK²‖_F ‖W_OV¹‖_F), K-composition with W_QK² and
    V-composition with W_OV² in its place; less 1/√d_model, which unrelated matrices have. Streams
    "composition/q", "/k" and "/v" are the maxima over the pairs, "composition" the largest of them.
    An induction head K-composes with a previous-token head. Layer norms and rotations by position
    are left out.

    Args:
        attention: Who speaks for the model's attention, where its layers are of no known structure.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from phasewatch.monitor.observables.once import measure_once
        >>> layers = (nn.TransformerEncoderLayer(8, 2, 8, batch_first=True) for _ in range(2))
        >>> model = nn.Sequential(nn.Embedding(16, 8), *layers)
        >>> [o.name for o in measure_once(Composition(), model)]
        ['composition', 'composition/q', 'composition/k', 'composition/v']
    """

    name = "composition"
    unit = "1"
    cost = Cost.WEIGHTS
    needs = "two attention layers of one width"
    source = f'{ELHAGE}, "Two-layer attention-only transformers"'
    streams: ClassVar = {"composition": SUPPORTING}

    def __init__(self, *, attention: Attention | None = None) -> None:
        self._attention = attention

    def check(self, context: MeasureContext) -> None:
        """Look for the layers.

        Raises:
            RefusedError: There are fewer than two, or their widths differ.
        """
        self._compositions(context)

    def work(self, context: MeasureContext) -> Work:
        """For each pair of heads three products of d_head rows with d_model columns."""
        shapes = [heads.w_v.shape for heads in heads_at_weights(context, self._attention)]
        pairs = [(a, b) for index, b in enumerate(shapes) for a in shapes[:index]]
        total = sum(
            6 * MULTIPLIED * first * last * e * (f * d + 2 * e * f)
            for (first, e, d), (last, f, _) in pairs
        )
        return reads(context, total)

    def measure(self, context: MeasureContext) -> list[Observation]:
        """The largest composition, then that of each kind.

        Raises:
            RefusedError: As `check`.
        """
        found = self._compositions(context)
        result = [observed(context, self.name, self.unit, max(found.values()))]
        for kind, value in found.items():
            result.append(observed(context, f"{self.name}/{kind}", self.unit, value))
        return result

    def _compositions(self, context: MeasureContext) -> dict[str, float]:
        layers = heads_at_weights(context, self._attention)
        widths = {int(heads.w_o.shape[1]) for heads in layers}
        if len(layers) < 2 or len(widths) > 1:
            raise RefusedError(
                f"{self.name}: looked for two attention layers of one width; the model has "
                f"{listed(heads.module for heads in layers)}, of width {sorted(widths)}"
            )
        with torch.no_grad():
            pairs = [
                compositions(earlier, later)
                for index, later in enumerate(layers)
                for earlier in layers[:index]
            ]
        random = widths.pop() ** -0.5
        return {
            kind: float(torch.stack([pair[kind].max() for pair in pairs]).max()) - random
            for kind in ("q", "k", "v")
        }


def by_head(
    context: MeasureContext,
    name: str,
    unit: str,
    values: Sequence[Tensor],
    stderrs: Sequence[Tensor] | None = None,
) -> list[Observation]:
    """The maximum over all heads as the total, then each head as "<name>/L0H0".

    With more heads than `MAX_GROUPS` the parts are the maxima of the layers, "<name>/L0". A head
    without a finite value is not the maximum, unless none has one.

    Args:
        context: The measurement's context.
        name: Name of the stream.
        unit: Unit of the values.
        values: One tensor a layer, shape (heads,).
        stderrs: Standard errors of the same shapes; None where values are exact.
    """
    tables = [layer.tolist() for layer in values]
    errors = [layer.tolist() for layer in stderrs] if stderrs else [[None] * len(t) for t in tables]
    rows = [
        (f"L{layer}H{head}", layer, value, errors[layer][head])
        for layer, table in enumerate(tables)
        for head, value in enumerate(table)
    ]

    def best(some: Sequence[tuple[str, int, float, float | None]]) -> tuple[float, float | None]:
        return max(((v, e) for _, _, v, e in some), key=lambda one: (one[0] == one[0], one[0]))

    parts = {label: (value, error) for label, _, value, error in rows}
    if len(rows) > MAX_GROUPS:
        layers = range(min(len(tables), MAX_GROUPS))
        parts = {f"L{layer}": best([row for row in rows if row[1] == layer]) for layer in layers}
    result = [observed(context, name, unit, *best(rows))]
    for label, (value, error) in parts.items():
        result.append(observed(context, f"{name}/{label}", unit, value, error))
    return result
