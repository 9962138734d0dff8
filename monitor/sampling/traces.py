"""Numbers of each chain that are recorded at some of the draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Trace:
    """One number of each chain, or one row, at some draws; read from the device only at the end."""

    def __init__(self) -> None:
        self._records: list[tuple[int, Tensor]] = []

    def __bool__(self) -> bool:
        return bool(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def add(self, draw: int, values: Tensor) -> None:
        """`values` of shape (chains,), or (chains, columns), at `draw`."""
        self._records.append((draw, values))

    def thin(self) -> None:
        """Forget every second record."""
        self._records = self._records[::2]

    def rows(self, burnin: int, alive: Sequence[bool], columns: int) -> NDArray[Any]:
        """As `after`, of records that are rows; in their own dtype.

        Args:
            burnin: The first draw.
            alive: Which chains live.
            columns: Of a row.

        Returns:
            Shape (living chains, records, columns).
        """
        kept = [values[list(alive)].cpu() for draw, values in self._records if draw >= burnin]
        if not kept:
            return np.empty((sum(alive), 0, columns))
        table: NDArray[Any] = torch.stack(kept, dim=1).numpy()
        return table

    def after(self, burnin: int, alive: Sequence[bool]) -> NDArray[np.float64]:
        """What living chains have from draw `burnin` on, shape (chains, records)."""
        kept = [values.cpu().double().numpy() for draw, values in self._records if draw >= burnin]
        if not kept:
            return np.empty((sum(alive), 0))
        table: NDArray[np.float64] = np.asarray(kept, dtype=np.float64).T[np.asarray(alive)]
        return table

    def mean(self, burnin: int, alive: Sequence[bool]) -> float:
        """Mean of `after`; NaN where there is nothing."""
        kept = self.after(burnin, alive)
        return float(kept.mean()) if kept.size else math.nan

    @classmethod
    def beside(cls, traces: Sequence[Trace], length: int, every: int = 1) -> Trace:
        """Traces of single chains as one; NaN where one ended.

        Args:
            traces: One of each chain.
            length: Only of the first so many draws.
            every: Only of draws that are a multiple of it.
        """
        found = [dict(trace._records) for trace in traces]
        joined = cls()
        for draw in sorted(set().union(*found)):
            if draw < length and draw % every == 0:
                known = next(values[draw] for values in found if draw in values)
                missing = torch.full_like(known, math.nan)
                joined.add(draw, torch.cat([values.get(draw, missing) for values in found]))
        return joined
