"""The TensorBoard that a `transformers.Trainer` reports to, written to beside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from phasewatch.monitor.core.errors import PhasewatchError


class Board:
    """Takes scalars like a logger of Lightning; neither the Trainer nor its log history sees them.

    Args:
        callback: The Trainer's `TensorBoardCallback`.
    """

    def __init__(self, callback: Any) -> None:
        self._callback = callback
        self._writer = callback.tb_writer

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Write scalars.

        Args:
            metrics: Values by name.
            step: Optimizer step they are of.

        Raises:
            PhasewatchError: The callback has no writer.
        """
        if self._writer is None:
            raise PhasewatchError("the Trainer's TensorBoardCallback has no writer to write with")
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close what the end of a run has opened again: the callback is told of the end first."""
        if self._writer is not None and self._writer is not self._callback.tb_writer:
            self._writer.close()


def boards_of(callbacks: Iterable[Any]) -> list[Board]:
    """Those among the callbacks of a Trainer."""
    return [
        Board(callback)
        for callback in callbacks
        if any(kind.__name__ == "TensorBoardCallback" for kind in type(callback).__mro__)
    ]
