"""Runs in Markdown: to paste into an issue, a pull request or a notebook."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from phasewatch.monitor.core.explanation import explain
from phasewatch.monitor.reports.data import RunRecord, read_run
from phasewatch.monitor.reports.story import (
    STREAM_COLUMNS,
    headline,
    labels_of,
    stream_rows,
    summary,
)
from phasewatch.monitor.store.store import Store


def write_markdown(
    store: Store, run_id: str | Sequence[str], path: str | Path, picture: Path | None = None
) -> Path:
    """Write what happened in a run, or in several, as GitHub reads it.

    Args:
        store: The run history.
        run_id: Id or name of the run, or of several.
        path: Where to write; its folder is made if missing.
        picture: A picture to show; it is named as seen from the folder of the file.

    Returns:
        The path written.

    Raises:
        StoreError: There is no such run, or the store cannot be read.
        OSError: The file cannot be written.
    """
    path = Path(path)
    wanted = [run_id] if isinstance(run_id, str) else [*run_id]
    records = [read_run(store, run) for run in wanted]
    shown = None if picture is None else os.path.relpath(picture, path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_markdown(records, shown), encoding="utf-8")
    return path


def render_markdown(records: Sequence[RunRecord], picture: str | None = None) -> str:
    """What happened in runs, as Markdown.

    Args:
        records: The runs.
        picture: Where a picture of them lies, as seen from the text.
    """
    parts = [
        f"# {escaped(label)}\n\n{escaped(summary(record))}\n\n**{escaped(headline(record))}**"
        for label, record in zip(labels_of(records), records, strict=True)
    ]
    shown = "" if picture is None else f"\n\n![Curves](<{picture.replace('>', '%3E')}>)"
    told = [_details(record) for record in records]
    if len(records) == 1:
        return f"{parts[0]}{shown}\n\n{told[0]}\n"
    whole = (f"{part}\n\n{details}" for part, details in zip(parts, told, strict=True))
    return f"{len(records)} runs{shown}\n\n" + "\n\n".join(whole) + "\n"


def escaped(text: str) -> str:
    """A text of one line that Markdown and HTML leave as it is."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_\[\]#!|~$])", r"\\\1", text)
    return text.replace("://", r"\://").replace("www.", r"www\.")


def _details(record: RunRecord) -> str:
    parts = []
    for transition in record.transitions:
        told = explain(transition, config=record.config, units=record.units)
        facts = "\n".join(f"- **{escaped(key)}**: {escaped(text)}" for key, text in told.facts)
        parts.append(f"## {escaped(told.title)}\n\n{facts}")
    return "\n\n".join([*parts, f"## Observed\n\n{_table(stream_rows(record))}"])


def _table(rows: Iterable[Sequence[str]]) -> str:
    lines = [
        [column.removeprefix("#") for column in STREAM_COLUMNS],
        ["---:" if column.startswith("#") else "---" for column in STREAM_COLUMNS],
        *([escaped(cell) for cell in row] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
