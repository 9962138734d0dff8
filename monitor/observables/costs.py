"""What a measurement of each observable was seen to take, at three sizes of model.

`costs.json` holds it; `make bench-observables` makes it anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

TABLE = "costs.json"

DURATIONS = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))
SIZES = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredCost:
    """What a measurement took, by size of the model it was tried on.

    Attributes:
        parameters: Parameters of the models.
        cpu_seconds: Processor time, median over measurements.
        seconds: Wall time, likewise.
        passes: Processor time over that of a forward and backward pass of a training batch.
        bytes: Most memory taken at a time, beside the copy of the model and the probe.
    """

    parameters: tuple[int, ...]
    cpu_seconds: tuple[float, ...]
    seconds: tuple[float, ...]
    passes: tuple[float, ...]
    bytes: tuple[int, ...]

    @property
    def duration(self) -> str:
        """Processor time in words: "0.3 / 1.1 / 9 ms"."""
        return in_words(self.cpu_seconds, DURATIONS)

    @property
    def memory(self) -> str:
        """Memory in words."""
        return in_words(self.bytes, SIZES)


def measured_costs() -> Mapping[str, MeasuredCost]:
    """Costs by observable."""
    return {
        name: MeasuredCost(**{key: tuple(values) for key, values in entry.items()})
        for name, entry in _table()["observables"].items()
    }


def conditions() -> str:
    """Under what conditions they were taken."""
    found = _table()
    return f"{found['threads']} thread, torch {found['torch']}, {found['date']}"


@lru_cache(maxsize=1)
def _table() -> dict[str, Any]:
    text = files(__package__ or "").joinpath(TABLE).read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def in_words(values: Sequence[float], units: Sequence[tuple[str, float]]) -> str:
    """Numbers of two figures, each in its unit, which is said once where it is the same.

    Args:
        values: The numbers.
        units: Units with their sizes, the largest first.

    Example:
        >>> in_words([0.0003, 0.00112, 0.009], DURATIONS), in_words([2e3, 4.2e6], SIZES)
        ('300 µs / 1.1 ms / 9 ms', '2 kB / 4.2 MB')
    """
    chosen = [next((u for u in units if value >= u[1]), units[-1]) for value in values]
    numbers = [_short(value / size) for value, (_, size) in zip(values, chosen, strict=True)]
    names = [name for name, _ in chosen]
    if len(set(names)) == 1:
        return f"{' / '.join(numbers)} {names[0]}"
    return " / ".join(f"{number} {name}" for number, name in zip(numbers, names, strict=True))


def _short(number: float) -> str:
    return f"{number:.2g}" if number < 9.95 else f"{number:.0f}"
