"""What the page shows, as plain data: the list of runs, one run, its curves."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np

from phasewatch.monitor.core.errors import StoreError
from phasewatch.monitor.core.explanation import explain
from phasewatch.monitor.core.meaning import Meanings, Panel
from phasewatch.monitor.core.transitions import Transition
from phasewatch.monitor.reports.data import KIND_COLOURS, span
from phasewatch.monitor.reports.tables import FORMATS
from phasewatch.monitor.serve.curves import Curves, drawn
from phasewatch.monitor.store.overview import clock, deliveries, transition_marks
from phasewatch.monitor.store.store import RunInfo, Store

SPARK_BINS = 30
"""Runs of points of a sparkline."""

SPARKS = {"loss": Panel.LOSSES, "llc": Panel.LLC}

PATIENCE = 0.3
"""Seconds that a page waits for long streams before it shows a rough picture of them."""

PANEL_TITLES = {
    Panel.LOSSES: "Losses",
    Panel.LLC: "λ̂",
    Panel.NORMS: "Norms",
    Panel.FRACTIONS: "Metrics between 0 and 1",
}


@dataclass(slots=True)
class Shelf:
    """One store and what is kept of it.

    Attributes:
        key: What stands for it in addresses.
        store: The run history.
        curves: Its histories.
        found: Transitions by run, with the mark they were read at.
        lock: Held while `found` is filled.
    """

    key: str
    store: Store
    curves: Curves
    found: dict[str, tuple[tuple[int, int], list[Transition]]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def transitions(self, info: RunInfo, mark: int) -> list[Transition]:
        """The transitions of a run, read again when there is news of one."""
        with self.lock:
            known = self.found.get(info.id)
            if known is None or known[0] != (info.attempt, mark):
                known = (info.attempt, mark), self.store.transitions(info.id)
                self.found[info.id] = known
            return known[1]


class Library:
    """The stores that a page is about.

    Args:
        stores: The run histories, in the order they are shown.
    """

    def __init__(self, stores: Sequence[Store]) -> None:
        self.shelves = {
            str(number): Shelf(str(number), store, Curves(store))
            for number, store in enumerate(stores)
        }

    def find(self, *keys: str) -> list[tuple[Shelf, RunInfo]]:
        """The runs that addresses name: the store's number, a dot, and the id.

        Raises:
            StoreError: One is not there.
        """
        known: dict[str, dict[str, RunInfo]] = {}
        found = []
        for key in keys:
            number, _, run_id = key.partition(".")
            shelf = self.shelves.get(number)
            if shelf is None:
                there = len(self.shelves)
                raise StoreError(f"no store {number!r} is served here; there are {there}")
            if number not in known:
                known[number] = {run.id: run for run in shelf.store.runs()}
            if run_id not in known[number]:
                raise StoreError(f"no run {run_id!r} in store {shelf.store.where}")
            found.append((shelf, known[number][run_id]))
        return found

    def runs(self) -> dict[str, Any]:
        """Every run of every store, the latest first."""
        rows = [row for shelf in self.shelves.values() for row in _rows(shelf)]
        rows.sort(key=lambda row: row["started"], reverse=True)
        stores = [{"key": s.key, "where": s.store.where} for s in self.shelves.values()]
        return {"runs": rows, "stores": stores, "colours": KIND_COLOURS}

    def run(self, key: str) -> dict[str, Any]:
        """One run: its state, what was observed, and its transitions as cards."""
        ((shelf, info),) = self.find(key)
        units = shelf.store.units(info.id)
        mark = transition_marks(shelf.store.database).get(info.id, 0)
        return {
            **_facts(shelf, info),
            "ended": info.ended_at,
            "branch_of": info.branch_of,
            "branch_step": info.branch_step,
            "alerts": deliveries(shelf.store.database).get(info.id, {}),
            "streams": _streams(info, units),
            "transitions": [
                card(transition, info, units) for transition in shelf.transitions(info, mark)
            ],
            "colours": KIND_COLOURS,
            "formats": [f for f in FORMATS if f != "parquet" or find_spec("pyarrow")],
        }

    def series(
        self, key: str, names: Sequence[str], view: tuple[float, float], *, timed: bool
    ) -> dict[str, Any]:
        """Streams of a run as they are drawn.

        Args:
            key: The run.
            names: The streams.
            view: First and last step of the view.
            timed: Whether the wall time of each point is wanted.
        """
        ((shelf, info),) = self.find(key)
        read = shelf.curves.histories(info, names, PATIENCE)
        found = [drawn(history, view, rough=rough) for history, rough in read]
        if timed:
            steps, times = clock(shelf.store.database, info.id, info.last_step)
            for one in found:
                for points in (one, one["doubtful"]):
                    points["time"] = _at(points["x"], steps, times)
        return {"series": found, "last_step": info.last_step or 0}

    def sparks(self, keys: Sequence[str]) -> dict[str, Any]:
        """For each run small curves of a loss and of λ̂."""
        found = {}
        for key, (shelf, info) in zip(keys, self.find(*keys), strict=True):
            names = shelf.store.names(info.id)
            meanings = Meanings.stored(info.config)
            chosen = {what: pick(names, meanings, panel) for what, panel in SPARKS.items()}
            known = {what: name for what, name in chosen.items() if name is not None}
            read = shelf.curves.histories(info, [*known.values()], PATIENCE / len(keys))
            found[key] = {
                what: drawn(history, bins=SPARK_BINS, rough=rough)
                for what, (history, rough) in zip(known, read, strict=True)
            }
        return found

    def close(self) -> None:
        """Begin no further read."""
        for shelf in self.shelves.values():
            shelf.curves.close()


def card(transition: Transition, info: RunInfo, units: dict[str, str]) -> dict[str, Any]:
    """A transition as the page shows it.

    Args:
        transition: As it stands.
        info: Its run.
        units: Unit by stream.
    """
    first, last = span(transition, info.last_step or 0)
    return {
        "id": transition.id,
        "kind": transition.kind.value,
        "status": transition.status.value,
        "onset": transition.onset_step,
        "detected": transition.detected_step,
        "severity": f"{transition.severity:.3g}",
        "band": [first, last],
        "streams": [*transition.evidence],
        **explain(transition, config=info.config, units=units).plain(),
    }


def pick(names: Sequence[str], meanings: Meanings, panel: Panel) -> str | None:
    """The stream that stands for a panel: the whole net's before a part's, train before val.

    Args:
        names: The streams there are.
        meanings: What they mean.
        panel: The panel.
    """
    there = [name for name in names if meanings.of(name).panel is panel]
    return min(
        there,
        key=lambda name: ("/" in name, name != "llc", meanings.of(name).held_out, len(name)),
        default=None,
    )


def _rows(shelf: Shelf) -> list[dict[str, Any]]:
    marks, told = transition_marks(shelf.store.database), deliveries(shelf.store.database)
    return [
        {
            **_facts(shelf, info),
            "transitions": [
                {"kind": t.kind.value, "status": t.status.value, "onset": t.onset_step}
                for t in (shelf.transitions(info, marks[info.id]) if info.id in marks else ())
            ],
            "alerts": told.get(info.id, {}),
        }
        for info in shelf.store.runs()
    ]


def _facts(shelf: Shelf, info: RunInfo) -> dict[str, Any]:
    return {
        "key": f"{shelf.key}.{info.id}",
        "store": shelf.key,
        "id": info.id,
        "name": info.name,
        "state": info.state.value,
        "reason": info.reason,
        "attempt": info.attempt,
        "step": info.last_step,
        "started": info.started_at,
        "seen": info.last_seen,
    }


def _streams(info: RunInfo, units: dict[str, str]) -> list[dict[str, Any]]:
    meanings = Meanings.stored(info.config)
    found = []
    for name, unit in sorted(units.items()):
        panel = meanings.of(name).panel
        family = name.partition("/")[0]
        # What λ̂'s chains tell in other units would flatten it: it has a panel of its own.
        shares = panel is not Panel.LLC or unit == "1"
        title = PANEL_TITLES.get(panel) if shares else None
        found.append({"name": name, "unit": unit, "family": title or family})
    return found


def _at(steps: list[int | None], known: Any, times: Any) -> list[float | None]:
    if not len(known):
        return [None] * len(steps)
    at = np.interp([0 if step is None else step for step in steps], known, times).tolist()
    return [None if step is None else round(one, 2) for step, one in zip(steps, at, strict=True)]
