"""Runs and seeds laid over one another, at their first steps or at a transition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from phasewatch.monitor.core.history import History
from phasewatch.monitor.core.transitions import Transition, TransitionStatus
from phasewatch.monitor.serve.content import Library
from phasewatch.monitor.serve.curves import drawn, numbers
from phasewatch.monitor.store.overview import transition_marks

GRID = 300
"""Points of the mean of several runs."""


def compare(
    library: Library, keys: Sequence[str], names: Sequence[str], align: str = ""
) -> dict[str, Any]:
    """Streams of several runs, the mean of each over the runs, and their transitions.

    Args:
        library: The stores.
        keys: The runs.
        names: The streams; those that a run lacks are left out.
        align: Kind of the transition whose onset becomes step 0; empty aligns nothing. A run that
            has none is left out of the curves, and named.

    Raises:
        StoreError: A run is not there.
    """
    found = library.find(*keys)
    streams = [set(shelf.store.names(info.id)) for shelf, info in found]
    common = set.intersection(*streams) if streams else set()
    runs, shifts = [], {}
    for key, (shelf, info) in zip(keys, found, strict=True):
        marks = transition_marks(shelf.store.database)
        standing = [
            t
            for t in shelf.transitions(info, marks.get(info.id, 0))
            if t.status is not TransitionStatus.WITHDRAWN
        ]
        onset = _onset(standing, align)
        if onset is not None:
            shifts[key] = onset
        runs.append(
            {
                "key": key,
                "name": info.name,
                "id": info.id,
                "state": info.state.value,
                "step": info.last_step,
                "onset": onset,
                "transitions": [
                    {"kind": t.kind.value, "onset": t.onset_step, "severity": f"{t.severity:.3g}"}
                    for t in standing
                ],
            }
        )
    panels = []
    for name in (name for name in names if name in common):
        histories = {
            key: shelf.curves.history(info, name)
            for key, (shelf, info) in zip(keys, found, strict=True)
            if key in shifts
        }
        panels.append(
            {
                "name": name,
                "curves": {k: drawn(h, shift=shifts[k]) for k, h in histories.items()},
                "mean": mean([(h, shifts[k]) for k, h in histories.items()]),
            }
        )
    return {"runs": runs, "names": sorted(common), "panels": panels}


def _onset(transitions: Sequence[Transition], align: str) -> int | None:
    if not align:
        return 0
    return next((t.onset_step for t in transitions if t.kind.value == align), None)


def mean(shifted: Sequence[tuple[History, int]]) -> dict[str, Any] | None:
    """Mean over runs with two standard errors of it, where all runs have trusted values.

    Between two trusted points of a run its value is on the straight line; across one that is not
    OK, or beyond its ends, it has none.

    Args:
        shifted: The history of each run, and its step that becomes 0.

    Returns:
        Steps x, mean y, and the interval low to high; None of fewer than two runs.
    """
    curves = [(h.steps - shift, h.values, h.ok & np.isfinite(h.values)) for h, shift in shifted]
    if len(curves) < 2 or not all(ok.any() for _, _, ok in curves):
        return None
    first = max(int(steps[ok][0]) for steps, _, ok in curves)
    last = min(int(steps[ok][-1]) for steps, _, ok in curves)
    if last <= first:
        return None
    grid = np.unique(np.linspace(first, last, GRID).round().astype(np.int64))
    rows = [_on_grid(grid, *curve) for curve in curves]
    table = np.array(rows)
    centre = table.mean(axis=0)
    error = 2.0 * table.std(axis=0, ddof=1) / len(rows) ** 0.5
    return {
        "x": grid.tolist(),
        "y": numbers(centre),
        "low": numbers(centre - error),
        "high": numbers(centre + error),
    }


def _on_grid(grid: Any, steps: Any, values: Any, ok: Any) -> Any:
    """A run's values at the steps of the grid, NaN between two points that no line joins."""
    trusted = np.flatnonzero(ok)
    row = np.interp(grid, steps[trusted], values[trusted])
    doubts = np.cumsum(~ok)[trusted]
    left = np.searchsorted(steps[trusted], grid, side="right") - 1
    right = np.searchsorted(steps[trusted], grid, side="left")
    return np.where(doubts[left] == doubts[right], row, np.nan)
