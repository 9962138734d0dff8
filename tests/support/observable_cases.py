"""One small training for each observable: what it is tried on, and what its cost is measured on.

The cases of a family lie in `support/cases/<family>.py`, as a tuple `CASES`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
from torch.utils.data import Dataset

from phasewatch.monitor.core.contracts import Observable
from support import cases

SIZES = ("small", "medium", "large")
"""Tests train the small model; the benchmark measures all three."""


@dataclass(frozen=True, kw_only=True)
class ObservableCase:
    """A module that an observable fits, with its data.

    Attributes:
        name: Name of the observable.
        module: Makes the module of a size, 0 to 2: some 10³, 10⁵ and 10⁶ parameters.
        dataset: Makes its training data; a map-style dataset.
        observable: Makes the observable for a size, where its name is not enough.
        streams: Streams that each measurement must leave, all with status OK.
        monitor: Further options of the monitor.
    """

    name: str
    module: Callable[[int], pl.LightningModule]
    dataset: Callable[[int], Dataset[Any]]
    observable: Callable[[int], Observable] | None = None
    streams: tuple[str, ...]
    monitor: Mapping[str, Any] = field(default_factory=dict)

    def measured(self, size: int = 0) -> str | Observable:
        """What the monitor is told to measure."""
        return self.name if self.observable is None else self.observable(size)


def every_case() -> list[ObservableCase]:
    """All cases, by name."""
    modules = (
        importlib.import_module(f"{cases.__name__}.{found.name}")
        for found in pkgutil.iter_modules(cases.__path__)
    )
    return sorted((case for module in modules for case in module.CASES), key=lambda c: c.name)
