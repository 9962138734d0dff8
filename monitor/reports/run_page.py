"""A run on one page: a single HTML file that needs no network, no server and no account."""

from __future__ import annotations

import html
import json
import re
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from phasewatch.monitor.core.explanation import explain
from phasewatch.monitor.core.forecast import COLUMNS, forecast_of
from phasewatch.monitor.core.transitions import Transition, TransitionStatus
from phasewatch.monitor.reports.data import (
    KIND_COLOURS,
    MAX_BINS,
    MAX_WITH_STATUS,
    Record,
    RunRecord,
    is_thinned,
    panels,
    read_run,
)
from phasewatch.monitor.reports.figures import chain_traces, overview
from phasewatch.monitor.reports.html import SCRIPT, chain_box, document
from phasewatch.monitor.store.store import Store


def write_report(store: Store, run_id: str, path: str | Path) -> Path:
    """Write everything that was seen of a run as one self-contained HTML file.

    Long streams are thinned for drawing: of each of 1000 equal runs of points the lowest and the
    highest are kept, so that spikes survive. The file is about 5 MB, of which plotly.js is most.

    Args:
        store: The run history.
        run_id: Id or name of the run.
        path: Where to write; its folder is made if missing.

    Returns:
        The path written.

    Raises:
        StoreError: There is no such run, or the store cannot be read.
        OSError: The file cannot be written.
    """
    path = Path(path)
    page = render(read_run(store, run_id))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def render(record: RunRecord) -> str:
    """The page of a run, as HTML."""
    return page(record.info.name, _summary(record), record, _facts(record))


def page(title: str, summary: str, record: Record, facts: str) -> str:
    """A page of curves with the transitions found in them.

    Args:
        title: Plain text.
        summary: HTML below the title.
        record: What is drawn.
        facts: HTML at the end.
    """
    chains = chain_traces([s for s in record.series.values() if s.is_llc])
    data = {
        "figure": overview(record),
        "marks": [t.detected_step for t in record.transitions],
        "llc_axes": _llc_axes(record),
        "chains": chains,
    }
    body = [
        summary,
        _transitions(record),
        _buttons(record),
        '<div id="overview"></div>',
        _legend_note(record),
        _thinned_note(record),
        _holes(record),
        chain_box(
            chains,
            f"Traces of the sampling chains behind each of {len(chains)} λ̂ estimates",
        ),
        facts,
    ]
    return document(title, body, data, SCRIPT)


def _llc_axes(record: Record) -> list[str]:
    return [
        "yaxis" if index == 0 else f"yaxis{index + 1}"
        for index, panel in enumerate(panels(record.series.values()))
        if any(series.is_llc for series in panel.series)
    ]


def _time(timestamp: float | None) -> str:
    if timestamp is None:
        return "–"
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _summary(record: RunRecord) -> str:
    info = record.info
    reason = f" ({html.escape(info.reason)})" if info.reason else ""
    return (
        f'<p class="sub">{html.escape(info.state)}{reason} · {record.last_step:,} steps · '
        f"started {_time(info.started_at)}</p>"
    )


def _buttons(record: Record) -> str:
    if not record.series:
        return '<p class="note">Nothing has been observed yet.</p>'
    parts = ['<button id="step-scale" type="button">steps: log</button>']
    if _llc_axes(record):
        parts.append('<button id="llc-scale" type="button">λ̂: log</button>')
    return "<p>" + "".join(parts) + "</p>"


def _legend_note(record: Record) -> str:
    if not record.series:
        return ""
    return (
        '<p class="note">Coloured bands reach from the onset of a transition to its end; the '
        "dashed line is where it was detected. A band around λ̂ is ±2 standard errors. Grey marks "
        "are estimates that did not pass their checks: they are shown, and never fed to a "
        "detector. Red ticks at the bottom of a panel are values that were not finite. "
        "Double-click a panel to see everything in it; click a name to show or hide it.</p>"
    )


def _thinned_note(record: Record) -> str:
    """Which curves are drawn with fewer points than there are."""
    thinned = [series for series in record.series.values() if is_thinned(series)]
    if not thinned:
        return ""
    listed = ", ".join(f"{html.escape(s.name)} ({len(s.steps):,})" for s in thinned)
    bare = [s.name for s in thinned if s.is_llc and len(s.steps) > MAX_WITH_STATUS]
    status = f" Of {html.escape(', '.join(bare))} the status is not shown." if bare else ""
    return (
        f'<p class="note" id="thinned">Drawn with fewer points than there are: {listed}. The '
        f"lowest and the highest of each of {MAX_BINS:,} equal runs of points are kept, so every "
        f"spike is there; `phasewatch export` gives them all.{status}</p>"
    )


def _holes(record: Record) -> str:
    """What was observed and is not in the store."""
    if not isinstance(record, RunRecord) or not record.holes:
        return ""
    rows = "".join(
        f'<tr><td>{html.escape(hole.stream)}</td><td class="number">{hole.num_rows:,}</td>'
        f'<td class="number">{hole.first_step + 1:,}–{hole.last_step:,}</td>'
        f"<td>{html.escape(hole.reason)}</td></tr>"
        for hole in record.holes
    )
    total = sum(hole.num_rows for hole in record.holes)
    return (
        f'<p class="note">Holes: {total:,} values were observed and are not in the store.</p>'
        '<div class="wide"><table id="holes"><tr><th>stream</th><th class="number">missing</th>'
        f'<th class="number">steps</th><th>why</th></tr>{rows}</table></div>'
    )


# ---- transitions


def _transitions(record: Record) -> str:
    standing = [t for t in record.transitions if t.status is not TransitionStatus.WITHDRAWN]
    if not record.transitions:
        return '<p class="found none">No transition was found.</p>'
    said = ", ".join(f"{t.kind} at step {t.onset_step:,}" for t in standing)
    headline = f"{len(standing)} transition{'s' if len(standing) != 1 else ''}: {said}"
    if not standing:
        headline = "No transition stands: what was suspected was withdrawn."
    cards = "".join(_card(record, transition) for transition in record.transitions)
    return (
        f'<p class="found{"" if standing else " none"}">{html.escape(headline)}</p>'
        f'<div id="transitions">{cards}</div>'
    )


def _card(record: Record, transition: Transition) -> str:
    told = explain(transition, config=record.config, units=record.units)
    colour = KIND_COLOURS[transition.kind]
    return f'<section class="card" style="border-color:{colour}">{told.html}</section>'


# ---- facts


def _facts(record: RunRecord) -> str:
    info = record.info
    ended = _time(info.ended_at) if info.ended_at else "–"
    facts = {
        "run": info.id,
        "state": info.state + (f": {info.reason}" if info.reason else ""),
        "attempts": str(info.attempt),
        "started": _time(info.started_at),
        "ended": ended,
        "last step": f"{record.last_step:,}",
        "process": f"{info.pid} on {info.host}",
    }
    rows = "".join(
        f"<tr><th>{html.escape(key)}</th><td>{html.escape(value)}</td></tr>"
        for key, value in facts.items()
    )
    config = json.dumps(_public(info.config or {}), indent=2, ensure_ascii=False, default=str)
    return (
        f"<h2>The run</h2><table>{rows}</table>{streams_table(record)}{_forecast(info.config)}"
        f"<details><summary>Configuration</summary><pre>{html.escape(config)}</pre></details>"
    )


def _forecast(config: Mapping[str, Any] | None) -> str:
    """What was expected of each observable when the run started."""
    rows = forecast_of(config)
    if not rows:
        return ""
    cells = [COLUMNS, *(row.cells for row in rows)]
    lines = [
        "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in line) + "</tr>"
        for tag, line in zip(("th", *("td" for _ in rows)), cells, strict=True)
    ]
    told = html.escape(str((config or {}).get("measured_on", "")))
    return (
        "<details><summary>Expected when the run started</summary>"
        f"<p>{told}</p><table>{''.join(lines)}</table></details>"
    )


def _public(value: Any, *, secret: bool = False) -> Any:
    """A configuration without the passwords and tokens that URLs carry: reports get passed on."""
    if isinstance(value, Mapping):
        return {key: _public(item, secret=key == "alerts") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_public(item, secret=secret) for item in value]
    if isinstance(value, str) and "://" in value:
        hidden = r"\1://…" if secret else r"\1://…@"
        return re.sub(r"^([\w+.-]+)://" + (".*" if secret else ".*@"), hidden, value)
    return value


def streams_table(record: Record) -> str:
    """What was observed, as HTML."""
    head = (
        "<tr><th>observed</th><th class='number'>points</th><th class='number'>last value</th>"
        "<th>status</th></tr>"
    )
    rows = []
    for name in sorted(record.series):
        series = record.series[name]
        counts = Counter(str(o.status) for o in series.observations)
        if not series.observations:
            lost = int((~series.finite).sum())
            counts = Counter({"not finite": lost}) if lost else Counter()
        status = ", ".join(f"{count} {key}" for key, count in counts.most_common())
        last = f"{series.values[-1]:.5g}" if len(series.values) else "–"
        rows.append(
            f"<tr><td>{html.escape(name)}</td><td class='number'>{len(series.values):,}</td>"
            f"<td class='number'>{last}</td><td>{html.escape(status)}</td></tr>"
        )
    return f"<h2>Observed</h2><table>{head}{''.join(rows)}</table>"
