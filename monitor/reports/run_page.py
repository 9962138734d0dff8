"""Runs on one page: a single HTML file that needs no network, no server and no account."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from phasewatch.monitor.core.explanation import explain
from phasewatch.monitor.core.forecast import COLUMNS, forecast_of
from phasewatch.monitor.core.transitions import Transition
from phasewatch.monitor.reports.chains import chain_traces
from phasewatch.monitor.reports.data import (
    KIND_COLOURS,
    MAX_WITH_STATUS,
    Record,
    RunRecord,
    read_run,
    together,
)
from phasewatch.monitor.reports.figures import (
    chart,
    charts,
    is_thinned,
    num_bins,
    onset_marks,
)
from phasewatch.monitor.reports.html import chain_box, document, static, table
from phasewatch.monitor.reports.story import (
    STREAM_COLUMNS,
    headline,
    labels_of,
    standing,
    stream_rows,
    summary,
    time_in_words,
)
from phasewatch.monitor.reports.words import glossary, links
from phasewatch.monitor.store.store import Store


def write_report(store: Store, run_id: str | Sequence[str], path: str | Path) -> Path:
    """Write everything that was seen of a run, or of several, as one self-contained HTML file.

    Long streams are thinned for drawing: of each of 1000 equal runs of points (fewer where there
    are many streams) the lowest and the highest are kept, so that spikes survive. The charts are
    there without JavaScript, too, which adds pointing, zooming and the chains.

    Args:
        store: The run history.
        run_id: Id or name of the run; of several, they are laid over one another first.
        path: Where to write; its folder is made if missing.

    Returns:
        The path written.

    Raises:
        StoreError: There is no such run, or the store cannot be read.
        OSError: The file cannot be written.
    """
    path = Path(path)
    wanted = [run_id] if isinstance(run_id, str) else [*run_id]
    page = render([read_run(store, run) for run in wanted])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def render(records: Sequence[RunRecord]) -> str:
    """The page of a run, or of several, as HTML."""
    if len(records) == 1:
        record = records[0]
        return page(record.info.name, _summary(record), record, _facts(record))
    return _several(records)


def page(title: str, summary: str, record: Record, facts: str) -> str:
    """A page of curves with the transitions found in them.

    Args:
        title: Plain text.
        summary: HTML below the title.
        record: What is drawn.
        facts: HTML at the end.
    """
    chains = chain_traces([s for s in record.series.values() if s.is_llc])
    bins = num_bins(len(record.series))
    body = [
        summary,
        f'<p class="found{_none(record)}">{html.escape(headline(record))}</p>',
        f'<div id="transitions">{_cards(record)}</div>',
        links(),
        _tools(record),
        f'<div id="overview">{charts(record, bins)}</div>',
        _legend_note(record),
        _thinned_note(record, bins),
        _holes(record),
        chain_box(
            chains,
            f"Traces of the sampling chains behind each of {len(chains)} λ̂ estimates",
        ),
        facts,
        glossary(),
    ]
    return document(title, body, {"chains": chains}, static("charts.js"), static("chains.js"))


def _several(records: Sequence[RunRecord]) -> str:
    """The story of each run, their curves over one another, then each run by itself."""
    labels = labels_of(records)
    shared = together(records, labels)
    num_series = sum(len(panel.series) for panel in shared)
    bins = num_bins(num_series + sum(len(record.series) for record in records))
    last = max(record.last_step for record in records)
    onsets = onset_marks([(at, t) for at, record in enumerate(records) for t in standing(record)])
    overlaid = "".join(
        chart(panel, last_step=last, bins=bins, step_label="optimizer step", marks="", bands=onsets)
        for panel in shared
    )
    body = [
        f'<p class="sub">{len(records)} runs</p>',
        *(
            f'<p class="found{_none(record)}">{html.escape(f"{label}: {headline(record)}")}</p>'
            for label, record in zip(labels, records, strict=True)
        ),
        _transitions_table(records, labels),
        links(),
        "<h2>Over one another</h2>",
        _tools(*records),
        f'<div id="overview">{overlaid}</div>',
        '<p class="note">One colour a run. Short lines at the top are the onsets of its '
        "transitions. Streams that only one run has are drawn with it.</p>",
    ]
    for label, record in zip(labels, records, strict=True):
        body += [
            f"<h2>{html.escape(label)}</h2>",
            _summary(record),
            _cards(record),
            f"<details><summary>Curves</summary>{charts(record, bins)}"
            f"{_legend_note(record)}</details>",
            _thinned_note(record, bins),
            _holes(record),
            _facts(record, heading=False),
        ]
    body.append(glossary())
    title = f"{len(records)} runs: {', '.join(labels[:4])}{', …' if len(labels) > 4 else ''}"
    return document(title, body, {"chains": []}, static("charts.js"))


def _none(record: Record) -> str:
    return "" if standing(record) else " none"


def _summary(record: RunRecord) -> str:
    return f'<p class="sub">{html.escape(summary(record))}</p>'


def _tools(*records: Record) -> str:
    if not any(record.series for record in records):
        return '<p class="note">Nothing has been observed yet.</p>'
    # Without a script they would do nothing.
    return (
        '<p class="tools" id="step-tools" hidden><button id="step-scale" type="button">steps: log'
        '</button><button id="step-all" type="button">all steps</button></p>'
    )


def _legend_note(record: Record) -> str:
    if not record.series:
        return ""
    return (
        f'<p class="note">Along each chart: the {html.escape(record.step_label)}. Coloured bands '
        "reach from the onset of a transition to its end; the "
        "dashed line is where it was detected. A band around λ̂ is ±2 standard errors. Grey "
        "squares are estimates that did not pass their checks: they are shown, at the edge of the "
        "chart where they lie beyond it, and never joined by a line or fed to a detector. Red "
        "ticks at the bottom are values that were not finite. With JavaScript: point to read "
        "values, drag to zoom, double-click to see all steps, click a name to hide it, click an "
        "estimate to see its chains.</p>"
    )


def _thinned_note(record: Record, bins: int) -> str:
    """Which curves are drawn with fewer points than there are."""
    thinned = [series for series in record.series.values() if is_thinned(series, bins)]
    if not thinned:
        return ""
    listed = ", ".join(f"{html.escape(s.name)} ({len(s.steps):,})" for s in thinned)
    bare = [s.name for s in thinned if s.is_llc and len(s.steps) > MAX_WITH_STATUS]
    status = f" Of {html.escape(', '.join(bare))} the status is not shown." if bare else ""
    return (
        f'<p class="note thinned">Drawn with fewer points than there are: {listed}. The '
        f"lowest and the highest of each of {bins:,} equal runs of points are kept, so every "
        f"spike is there; `phasewatch export` gives them all.{status}</p>"
    )


def _holes(record: Record) -> str:
    """What was observed and is not in the store."""
    if not isinstance(record, RunRecord) or not record.holes:
        return ""
    rows = [
        (
            html.escape(hole.stream),
            f"{hole.num_rows:,}",
            f"{hole.first_step + 1:,}–{hole.last_step:,}",
            html.escape(hole.reason),
        )
        for hole in record.holes
    ]
    total = sum(hole.num_rows for hole in record.holes)
    caption = f"Holes: {total:,} values were observed and are not in the store."
    return table(caption, ("stream", "#missing", "#steps", "why"), rows)


# ---- transitions


def _cards(record: Record) -> str:
    return "".join(_card(record, transition) for transition in record.transitions)


def _card(record: Record, transition: Transition) -> str:
    told = explain(transition, config=record.config, units=record.units)
    colour = KIND_COLOURS[transition.kind]
    return f'<section class="card" style="border-left-color:{colour}">{told.html}</section>'


def _transitions_table(records: Sequence[RunRecord], labels: Sequence[str]) -> str:
    """Every transition of every run."""
    rows = [
        (
            html.escape(label),
            t.kind.value,
            t.status.value,
            f"{t.onset_step:,}",
            f"{t.detected_step:,}",
            f"{t.severity:.3g}",
        )
        for label, record in zip(labels, records, strict=True)
        for t in record.transitions
    ]
    if not rows:
        return ""
    columns = ("run", "kind", "status", "#onset", "#detected", "#severity")
    return table("Transitions by run", columns, rows)


# ---- facts


def _facts(record: RunRecord, *, heading: bool = True) -> str:
    info = record.info
    facts = {
        "run": info.id,
        "state": info.state + (f": {info.reason}" if info.reason else ""),
        "attempts": str(info.attempt),
        "started": time_in_words(info.started_at),
        "ended": time_in_words(info.ended_at) if info.ended_at else "–",
        "last step": f"{record.last_step:,}",
        "process": f"{info.pid} on {info.host}",
    }
    rows = [(html.escape(key), html.escape(value)) for key, value in facts.items()]
    config = json.dumps(_public(info.config or {}), indent=2, ensure_ascii=False, default=str)
    return (
        f"{'<h2>The run</h2>' if heading else ''}{table('The run', ('fact', 'value'), rows)}"
        f"{streams_table(record)}{_forecast(info.config)}"
        f"<details><summary>Configuration</summary><pre>{html.escape(config)}</pre></details>"
    )


def _forecast(config: Mapping[str, Any] | None) -> str:
    """What was expected of each observable when the run started."""
    rows = [[html.escape(cell) for cell in row.cells] for row in forecast_of(config)]
    if not rows:
        return ""
    known = config or {}
    said = [str(known[key]) for key in ("measured_on", "measured_around") if known.get(key)]
    told = "<br>".join(map(html.escape, said))
    columns = [column or "note" for column in COLUMNS]
    return (
        "<details><summary>Expected when the run started</summary>"
        f"<p>{told}</p>{table('What each observable was expected to cost', columns, rows)}"
        "</details>"
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
    rows = [[html.escape(cell) for cell in row] for row in stream_rows(record)]
    return table("Observed", STREAM_COLUMNS, rows)
