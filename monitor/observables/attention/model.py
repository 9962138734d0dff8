"""What the observables of attention heads ask of a model: the protocol `Attention`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from phasewatch.monitor.observables.attention.layers import Heads

WAY_OUT = (
    "give attention= an object with the methods of "
    "phasewatch.monitor.observables.attention.model.Attention, or the model a method "
    "attention_heads() that returns one"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """What a forward pass on tokens shows.

    Attributes:
        logits: Shape (batch, length, vocabulary).
        patterns: Attention of each layer, in the order of `Attention.heads`, shape (batch, heads,
            queries, keys); rows sum to one.
    """

    logits: Tensor
    patterns: Sequence[Tensor]


@runtime_checkable
class Attention(Protocol):
    """What is asked of a model's attention. Each method is given the model, holding its weights."""

    def heads(self, model: nn.Module) -> Sequence[Heads]:
        """Layers of heads, the first layer first."""
        ...

    def forward(self, model: nn.Module, tokens: Tensor) -> Pass:
        """Run `tokens`, of shape (batch, length), and show the attention."""
        ...

    def embedding(self, model: nn.Module) -> Tensor:
        """W_E without positions, shape (d_model, vocabulary)."""
        ...

    def unembedding(self, model: nn.Module) -> Tensor:
        """W_U without bias and final norm, shape (vocabulary, d_model)."""
        ...
