"""The chains behind estimates of λ̂, as plain data for `chains.js`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from phasewatch.monitor.core.estimates import Estimate
from phasewatch.monitor.reports.data import Series
from phasewatch.monitor.reports.html import finite

MAX_TRACED = 300
"""Measurements whose chains are kept in a report; of more, evenly spaced ones."""

MAX_TRACE_POINTS = 128
"""Points of one chain's trace that a report keeps."""

MAX_NUMBERS = 80_000
"""Points of all traces together: about half a megabyte."""


def chain_traces(series: Sequence[Series]) -> list[dict[str, Any]]:
    """Chains of every LLC measurement, with what its diagnostics said.

    Of more than `MAX_TRACED` measurements evenly spaced ones are kept. Long traces are thinned to
    evenly spaced draws: `MAX_TRACE_POINTS`, or fewer where there are many chains.
    """
    found = [(s.name, e) for s in series for e in s.estimates if e.chain_loss.size]
    if len(found) > MAX_TRACED:
        chosen = np.linspace(0, len(found) - 1, MAX_TRACED).round().astype(int)
        found = [found[i] for i in chosen]
    room = MAX_NUMBERS // max(1, sum(len(e.chain_loss) for _, e in found))
    points = max(16, min(MAX_TRACE_POINTS, room))
    return [
        {"step": e.step, **chain_trace(f"{name} at step {e.step:,}", e, points)}
        for name, e in found
    ]


def chain_trace(title: str, estimate: Estimate, points: int = MAX_TRACE_POINTS) -> dict[str, Any]:
    """What `chains.js` draws of one estimate.

    Args:
        title: What was estimated, in plain text.
        estimate: The estimate, with its traces.
        points: Draws that are kept of each chain.
    """
    draws = estimate.chain_loss.shape[1]
    kept = np.unique(np.linspace(0, draws - 1, min(draws, points)).round().astype(int))
    return {
        "title": title,
        "draw": kept.tolist(),
        "loss": [_short(chain) for chain in estimate.chain_loss[:, kept]],
        "init": finite(estimate.init_loss),
        "facts": estimate.facts,
    }


def _short(values: Any) -> list[float | None]:
    return [finite(value) for value in np.asarray(values, dtype=np.float64).tolist()]
