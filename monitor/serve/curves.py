"""Histories of runs as a page draws them: held in memory, read on where a run goes on, thinned."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phasewatch.monitor.core.history import History
from phasewatch.monitor.reports.data import lines
from phasewatch.monitor.reports.html import finite
from phasewatch.monitor.store.store import RunInfo, Store

MAX_HELD = 4_000_000
"""Points that are held, 25 bytes each; the streams that were not asked for longest go first."""

BINS = 600
"""Runs of points of which a curve keeps the lowest and the highest, as a screen has columns."""

MAX_DOUBTFUL = 500
"""Values of a stream that are not OK and are drawn; of more, the last."""


@dataclass(slots=True)
class _Held:
    history: History
    attempt: int
    seen: float


class Curves:
    """Histories of one store, read once and then only what is new.

    Args:
        store: The run history.
        max_held: Points that are held at most.
    """

    def __init__(self, store: Store, max_held: int = MAX_HELD) -> None:
        self._store = store
        self._max_held = max_held
        self._held: OrderedDict[tuple[str, str], _Held] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def num_held(self) -> int:
        """Points that are held now."""
        return sum(len(one.history.steps) for one in self._held.values())

    def history(self, info: RunInfo, name: str) -> History:
        """Everything observed of a stream so far, with what is not OK.

        Args:
            info: The run, as it stands now.
            name: Name of the stream.
        """
        key = info.id, name
        with self._lock:
            held = self._held.get(key)
            if held is None or held.attempt != info.attempt:
                found = self._store.history(info.id, name, include_unconverged=True)
            elif held.seen == info.last_seen:
                found = held.history
            else:
                found = self._read_on(info, held.history)
            self._held[key] = _Held(found, info.attempt, info.last_seen)
            self._held.move_to_end(key)
            while self.num_held > self._max_held and len(self._held) > 1:
                self._held.popitem(last=False)
            return found

    def _read_on(self, info: RunInfo, known: History) -> History:
        after = int(known.steps[-1]) if known.steps.size else None
        more = self._store.history(info.id, known.name, include_unconverged=True, after=after)
        if not more.steps.size:
            return known
        columns = [np.concatenate(pair) for pair in zip(known, more, strict=True)]
        return History(
            known.name,
            more.unit,
            *columns,
            codes=np.concatenate([known.codes, more.codes]),
            include_unconverged=True,
        )


def drawn(
    history: History,
    span: tuple[float, float] = (-math.inf, math.inf),
    *,
    shift: int = 0,
    bins: int = BINS,
) -> dict[str, Any]:
    """A stream as a page draws it: lines of trusted points, gaps where one is not, and those.

    Args:
        history: The stream, with what is not OK.
        span: First and last step of the view; one more point on either side keeps lines whole.
        shift: Step that becomes 0.
        bins: Runs of points of which the lowest and the highest are kept.
    """
    first = max(int(np.searchsorted(history.steps, span[0])) - 1, 0)
    last = int(np.searchsorted(history.steps, span[1], side="right")) + 1
    steps, values = history.steps[first:last] - shift, history.values[first:last]
    stderrs = history.stderrs[first:last]
    statuses = history.statuses[first:last]
    is_finite = np.isfinite(values)
    ok = history.ok[first:last] & is_finite
    x: list[int | None] = []
    y: list[float | None] = []
    error: list[float | None] = []
    for line in lines(steps, values, ok, bins):
        if x:
            x, y, error = [*x, None], [*y, None], [*error, None]
        x += steps[line].tolist()
        y += numbers(values[line])
        error += numbers(stderrs[line])
    doubtful = np.flatnonzero(~ok & is_finite)[-MAX_DOUBTFUL:]
    lost = np.flatnonzero(~is_finite)[-MAX_DOUBTFUL:]
    return {
        "name": history.name,
        "unit": history.unit,
        "count": len(history.steps),
        "x": x,
        "y": y,
        "error": error if any(one is not None for one in error) else None,
        "doubtful": {
            "x": steps[doubtful].tolist(),
            "y": numbers(values[doubtful]),
            "status": statuses[doubtful].tolist(),
        },
        "lost": steps[lost].tolist(),
    }


def numbers(values: NDArray[np.float64]) -> list[float | None]:
    """Numbers with the digits a screen shows, None for NaN and infinity, which JSON lacks."""
    return [finite(value) for value in values.tolist()]
