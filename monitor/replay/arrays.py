"""Detection over curves at hand: a file, or arrays by name."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from phasewatch.monitor.config.monitor import MonitorConfig
from phasewatch.monitor.core.columns import Chunk, Column
from phasewatch.monitor.core.errors import CurveError
from phasewatch.monitor.readers.curves import Curves
from phasewatch.monitor.replay.recorded import DetectorOverride, Outcome
from phasewatch.monitor.replay.recorded import detect as detect_in_chunks


def detect(
    curves: str | Path | Mapping[str, Sequence[float]],
    *,
    steps: Sequence[int] | None = None,
    detector: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    config: MonitorConfig | None = None,
) -> Outcome:
    """Find the transitions in curves that exist already, as a live run would have.

    Args:
        curves: A CSV, JSONL or TensorBoard file or folder; or values by name of the stream, all of
            one length. Losses are in nats.
        steps: Optimizer steps of the values, increasing; None counts from 1. A file has its own.
        detector: Name of a detector for every stream; None gives each the one for its kind.
        parameters: Parameters of the detectors.
        config: The configuration that the run would have had.

    Returns:
        The transitions by onset, and how each stream was watched.

    Raises:
        CurveError: The file cannot be read, or the arrays do not fit each other.
        ConfigError: A detector's name or parameters are wrong.

    Example:
        >>> level = [1.0 + 0.01 * (i % 7) for i in range(300)]
        >>> fallen = [0.01 * value for value in level]
        >>> [t.kind.value for t in detect({"val_loss": level + fallen}).transitions]
        ['generalisation']
    """
    change = DetectorOverride(detector, parameters)
    if isinstance(curves, Mapping):
        return detect_in_chunks(_chunks(curves, steps), run="arrays", config=config, change=change)
    if steps is not None:
        raise CurveError(f"steps were given beside the file {curves}, which has steps of its own")
    return detect_in_chunks(Curves(curves).chunks(), run=str(curves), config=config, change=change)


def _chunks(curves: Mapping[str, Sequence[float]], steps: Sequence[int] | None) -> Iterator[Chunk]:
    lengths = {name: len(values) for name, values in curves.items()}
    count = len(steps) if steps is not None else next(iter(lengths.values()), 0)
    for name, length in lengths.items():
        if length != count:
            raise CurveError(f"{name!r} has {length} values, but must have {count}: one a step")
    numbers = range(1, count + 1) if steps is None else [int(step) for step in steps]
    late = next((a for a, b in itertools.pairwise(numbers) if b <= a), None)
    if late is not None:
        raise CurveError(f"steps do not increase after {late}: give each step once, in order")
    yield {
        name: Column(list(numbers), [float(v) for v in values], [None] * count, [0.0] * count)
        for name, values in curves.items()
    }
