"""Histories of runs as a page draws them: held in memory, read on where a run goes on, thinned."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phasewatch.monitor.core.history import STATUSES, History
from phasewatch.monitor.reports.data import lines
from phasewatch.monitor.reports.html import finite
from phasewatch.monitor.store.store import RunInfo, Store

MAX_HELD = 4_000_000
"""Points that are held, 25 bytes each; the streams that were not asked for longest go first."""

BINS = 600
"""Runs of points of which a curve keeps the lowest and the highest, as a screen has columns."""

ROUGH_POINTS = 2000
"""Points of a stream that is shown while it is still being read."""

LONG = 100_000
"""Steps from which on a run is shown roughly before its streams are read."""

MAX_DOUBTFUL = 500
"""Values of a stream that are not OK and are drawn; of more, the last."""


@dataclass(slots=True)
class _Held:
    history: History
    attempt: int
    seen: float


class Curves:
    """Histories of one store, read once and then only what is new.

    They are read by threads of their own: who cannot wait for a long one gets a rough one.

    Args:
        store: The run history.
        max_held: Points that are held at most.
    """

    def __init__(self, store: Store, max_held: int = MAX_HELD) -> None:
        self._store = store
        self._max_held = max_held
        self._held: OrderedDict[tuple[str, str], _Held] = OrderedDict()
        self._reading: dict[tuple[str, str], Future[History]] = {}
        self._rough: dict[tuple[str, str], History] = {}
        self._lock = threading.Lock()
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="phasewatch-curves")

    def close(self) -> None:
        """Begin no further read."""
        self._readers.shutdown(wait=True, cancel_futures=True)

    @property
    def num_held(self) -> int:
        """Points that are held now."""
        return sum(len(one.history.steps) for one in self._held.values())

    def histories(
        self, info: RunInfo, names: Sequence[str], patience: float | None = None
    ) -> list[tuple[History, bool]]:
        """Everything observed of some streams so far, with what is not OK.

        Args:
            info: The run, as it stands now.
            names: The streams.
            patience: Seconds to wait; of what is not read by then comes one in many points, while
                it is read on. None waits for all.

        Returns:
            Each stream, and whether it is rough.
        """
        rough = {}
        if patience is not None and (info.last_step or 0) > LONG:
            # First, for a read of a long stream leaves little to others.
            rough = {n: self._roughly(info, n) for n in names if (info.id, n) not in self._held}
        found = [self._ask(info, name) for name in names]
        wait([one for one in found if isinstance(one, Future)], timeout=patience)
        return [
            (one, False)
            if isinstance(one, History)
            else (one.result(), False)
            if one.done()
            else (rough[name] if name in rough else self._roughly(info, name), True)
            for name, one in zip(names, found, strict=True)
        ]

    def _roughly(self, info: RunInfo, name: str) -> History:
        """The stream in many points; kept until all of it is there."""
        key = info.id, name
        if (known := self._rough.get(key)) is None:
            every = max(1, (info.last_step or 0) // ROUGH_POINTS)
            known = self._store.history(info.id, name, include_unconverged=True, every=every)
            self._rough[key] = known
        return known

    def history(self, info: RunInfo, name: str) -> History:
        """Everything observed of a stream so far, with what is not OK.

        Args:
            info: The run, as it stands now.
            name: Name of the stream.
        """
        return self.histories(info, [name])[0][0]

    def _ask(self, info: RunInfo, name: str) -> History | Future[History]:
        key = info.id, name
        with self._lock:
            held = self._held.get(key)
            if held is not None and held.attempt != info.attempt:
                held = None  # a resume may have superseded some of it
            if held is not None and held.seen == info.last_seen:
                self._held.move_to_end(key)
                return held.history
            if key not in self._reading:
                known = None if held is None else held.history
                self._reading[key] = self._readers.submit(self._read, info, name, known)
            return self._reading[key]

    def _read(self, info: RunInfo, name: str, known: History | None) -> History:
        key = info.id, name
        try:
            found = self._read_on(info, name, known)
        except BaseException:
            with self._lock:
                del self._reading[key]
            raise
        with self._lock:
            del self._reading[key]
            self._rough.pop(key, None)
            self._held[key] = _Held(found, info.attempt, info.last_seen)
            self._held.move_to_end(key)
            while self.num_held > self._max_held and len(self._held) > 1:
                self._held.popitem(last=False)
        return found

    def _read_on(self, info: RunInfo, name: str, known: History | None) -> History:
        if known is None or not known.steps.size:
            return self._store.history(info.id, name, include_unconverged=True)
        after = int(known.steps[-1])
        more = self._store.history(info.id, name, include_unconverged=True, after=after)
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
    rough: bool = False,
) -> dict[str, Any]:
    """A stream as a page draws it: lines of trusted points, gaps where one is not, and those.

    Args:
        history: The stream, with what is not OK.
        span: First and last step of the view; one more point on either side keeps lines whole.
        shift: Step that becomes 0.
        bins: Runs of points of which the lowest and the highest are kept.
        rough: Whether more of it will be there soon.
    """
    first = max(int(np.searchsorted(history.steps, span[0])) - 1, 0)
    last = int(np.searchsorted(history.steps, span[1], side="right")) + 1
    steps, values = history.steps[first:last] - shift, history.values[first:last]
    stderrs = history.stderrs[first:last]
    codes = history.codes[first:last]
    is_finite = np.isfinite(values)
    ok = (codes == 0) & is_finite
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
        "rough": rough,
        "x": x,
        "y": y,
        "error": error if any(one is not None for one in error) else None,
        "doubtful": {
            "x": steps[doubtful].tolist(),
            "y": numbers(values[doubtful]),
            "status": [STATUSES[code].value for code in codes[doubtful]],
        },
        "lost": steps[lost].tolist(),
    }


def numbers(values: NDArray[np.float64]) -> list[float | None]:
    """Numbers with the digits a screen shows, None for NaN and infinity, which JSON lacks."""
    return [finite(value) for value in values.tolist()]
