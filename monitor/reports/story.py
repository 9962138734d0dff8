"""What happened in a run, as plain text: said alike on the page, in Markdown and in a notebook."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

from phasewatch.monitor.core.transitions import Transition, TransitionStatus
from phasewatch.monitor.reports.data import Record, RunRecord, Series

STREAM_COLUMNS = ("stream", "#points", "#last value", "status")
"""Headings of `stream_rows`; those that begin with "#" are of numbers."""


def labels_of(records: Sequence[RunRecord]) -> list[str]:
    """What each of several runs is called: its name, with its id where another has the same."""
    counts = Counter(record.info.name for record in records)
    return [
        record.info.name if counts[record.info.name] == 1
        else f"{record.info.name} ({record.info.id[:8]})"
        for record in records
    ]  # fmt: skip


def standing(record: Record) -> list[Transition]:
    """The transitions that were not withdrawn."""
    return [t for t in record.transitions if t.status is not TransitionStatus.WITHDRAWN]


def headline(record: Record) -> str:
    """What happened, in a sentence of plain text."""
    if not record.transitions:
        return "No transition was found."
    found = standing(record)
    if not found:
        return "No transition stands: what was suspected was withdrawn."
    said = ", ".join(f"{t.kind} at step {t.onset_step:,}" for t in found)
    return f"{len(found)} transition{'s' if len(found) != 1 else ''}: {said}"


def summary(record: RunRecord) -> str:
    """State, steps and start of a run, as plain text."""
    info = record.info
    reason = f" ({info.reason})" if info.reason else ""
    started = time_in_words(info.started_at)
    return f"{info.state}{reason} · {record.last_step:,} steps · started {started}"


def time_in_words(timestamp: float | None) -> str:
    """A moment, in UTC."""
    if timestamp is None:
        return "–"
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def stream_rows(record: Record) -> list[tuple[str, str, str, str]]:
    """Of each stream its name, points, last value and statuses, as plain text."""
    return [_stream_row(record.series[name]) for name in sorted(record.series)]


def _stream_row(series: Series) -> tuple[str, str, str, str]:
    counts = Counter(str(o.status) for o in series.observations)
    if not series.observations:
        lost = int((~series.finite).sum())
        counts = Counter({"not finite": lost}) if lost else Counter()
    status = ", ".join(f"{count} {key}" for key, count in counts.most_common())
    last = f"{series.values[-1]:.5g}" if len(series.values) else "–"
    error = series.stderrs[-1] if len(series.values) else math.nan
    if not math.isnan(error):
        last += f" ± {error:.2g}"
    return series.name, f"{len(series.values):,}", last, status
