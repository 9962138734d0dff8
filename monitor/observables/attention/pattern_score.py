"""Scores of attention heads by what they attend to in repeated random tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.errors import ConfigError, RefusedError
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.work import Cost, Work
from phasewatch.monitor.observables.attention.by_head import by_head
from phasewatch.monitor.observables.attention.looking import (
    attention_of,
    forward,
    token_batches,
    try_forward,
)
from phasewatch.monitor.observables.attention.model import Attention
from phasewatch.monitor.observables.evaluation import device_of
from phasewatch.monitor.observables.sharing import random_of

OLSSON = "Olsson et al. 2022, arXiv 2209.11895"


SHOWN = 1.7
"""What a forward pass that shows its attention takes, over one that does not."""


BLOCK = 25
"""Tokens of a random block, where the probe's sequences leave room for two of them."""


class Words(NamedTuple):
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


class PatternScore:
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
        self._found: tuple[Sequence[Any], Words] | None = None
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

    def _words(self, context: MeasureContext) -> Words:
        """What there is to draw from; looked for once in the same probe.

        Raises:
            RefusedError: There are no tokens, or too few.
        """
        if self._found is None or self._found[0] is not context.batches:
            self._found = (context.batches, self._look(context))
        return self._found[1]

    def _look(self, context: MeasureContext) -> Words:
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
        return Words(vocabulary, length, bos, sum(tokens.numel() for tokens in seen))
