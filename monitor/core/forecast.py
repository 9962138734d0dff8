"""What a run is expected to see of an observable: told when it starts, kept with the run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

COLUMNS = ("observable", "each", "first", "in this run", "")
"""Headings of the table of what a run will see."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastRow:
    """What is expected of one observable.

    Attributes:
        name: Its name.
        seconds: What one measurement should take; None where that is not known.
        first: When the first comes, in words.
        count: How many this run will see; None where its end is not known.
        note: Why it is skipped or waits, and how to get it; empty otherwise.
    """

    name: str
    seconds: float | None
    first: str
    count: int | None
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> ForecastRow:
        """From what `as_dict` gave."""
        return cls(**values)

    @property
    def cells(self) -> tuple[str, ...]:
        """In words, one for each of `COLUMNS`."""
        return (
            self.name,
            duration_in_words(self.seconds),
            self.first,
            count_in_words(self.count),
            self.note,
        )


def forecast_of(config: Mapping[str, Any] | None) -> list[ForecastRow]:
    """What was kept with a run; empty where nothing was."""
    return [ForecastRow.of(row) for row in (config or {}).get("forecast", ())]


def count_in_words(count: int | None) -> str:
    """How many, in words."""
    if count is None:
        return "as the budget allows"
    return str(count)


def duration_in_words(seconds: float | None) -> str:
    """Seconds in two figures and a unit.

    Example:
        >>> duration_in_words(0.0123), duration_in_words(75.0), duration_in_words(None)
        ('12 ms', '75 s', '?')
    """
    if seconds is None or math.isnan(seconds):
        return "?"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            number = seconds / size
            return f"{number:.2g} {unit}" if number < 9.95 else f"{number:.0f} {unit}"
    return f"{seconds * 1e6:.0f} µs" if seconds > 0.0 else "0 s"
