"""What an adapter has to tell of its framework, so that its model can be measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import nn

from phasewatch.monitor.core.context import LossFn, MeasureContext


class SubjectLoss(Protocol):
    """Where the loss of a trainer's model comes from.

    Attributes:
        source: In a word.
    """

    source: str

    def substitutes(self) -> Mapping[int, object]:
        """Stand-ins for the live objects a copy must not get hold of."""

    def attach(self, copied: nn.Module) -> LossFn:
        """The loss of a fresh copy, made with the latest `substitutes()`."""

    def survey(self, context: MeasureContext) -> tuple[int, str]:
        """Look at the loss once on the whole probe, and adapt to what is found.

        Returns:
            Number of terms the loss averages over, and what one is.

        Raises:
            RefusedError: There is no loss to measure, for the reason given.
        """


class Framework:
    """Where a trainer has its loss, its data and its optimizers; each adapter answers."""

    def _make_loss(self) -> SubjectLoss:
        """Where the loss comes from.

        Raises:
            RefusedError: There is none.
        """
        raise NotImplementedError

    def _loader(self) -> Any:
        """The loader of training."""
        raise NotImplementedError

    def _optimizers(self) -> Sequence[Any]:
        """The live optimizers."""
        raise NotImplementedError

    def _as_training_sees(self, batch: Any) -> Any:
        """What a loader's batch becomes on its way to the model."""
        raise NotImplementedError

    def _to_device(self, batch: Any) -> Any:
        """A batch that training has seen before, on the device of training."""
        raise NotImplementedError

    def _world_size(self) -> int:
        """Processes that train together."""
        raise NotImplementedError

    def _live_objects(self) -> Sequence[Any]:
        """What is alive beside the module."""
        return ()

    def _live_substitutes(self) -> Mapping[int, object]:
        """Stand-ins for live objects on a copy that only weights are read of."""
        return {}
