"""Pages of `phasewatch detect` and `phasewatch replay`: the report's own, with other facts."""

from __future__ import annotations

import html
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from phasewatch.monitor.core.columns import Chunk, Column, unit_of
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.meaning import Meanings
from phasewatch.monitor.readers.curves import Curves
from phasewatch.monitor.replay.recorded import Outcome, Pair, Watched
from phasewatch.monitor.reports.data import Record, RunRecord, Series, passed_of
from phasewatch.monitor.reports.html import table
from phasewatch.monitor.reports.run_page import page, streams_table


class Collected:
    """Passes chunks on, and keeps what a page draws of them.

    Args:
        chunks: Read once.
    """

    def __init__(self, chunks: Iterable[Chunk]) -> None:
        self._chunks = chunks
        self._exact: dict[str, tuple[array[int], array[float]]] = {}
        self._measured: dict[str, list[Observation]] = {}

    def __iter__(self) -> Iterator[Chunk]:
        for chunk in self._chunks:
            if isinstance(chunk, Observation):
                self._measured.setdefault(chunk.name, []).append(chunk)
            else:
                self._keep(chunk)
            yield chunk

    def _keep(self, columns: Mapping[str, Column]) -> None:
        for name, column in columns.items():
            steps, values = self._exact.setdefault(name, (array("q"), array("d")))
            steps.extend(column.steps)
            values.extend(column.values)

    @property
    def series(self) -> dict[str, Series]:
        """What passed, by stream."""
        exact = {
            name: Series(
                name,
                unit_of(name),
                np.frombuffer(steps, dtype=np.int64),
                np.frombuffer(values, dtype=np.float64),
                np.full(len(steps), np.nan),
                Meanings().of(name),
            )
            for name, (steps, values) in self._exact.items()
        }
        return exact | {name: _measured(name, taken) for name, taken in self._measured.items()}


def _measured(name: str, taken: Sequence[Observation]) -> Series:
    stderrs = [np.nan if o.stderr is None else o.stderr for o in taken]
    return Series(
        name,
        unit_of(name),
        np.array([o.step for o in taken], dtype=np.int64),
        np.array([o.value for o in taken], dtype=np.float64),
        np.array(stderrs, dtype=np.float64),
        Meanings().of(name),
        tuple(taken),
        passed_of(taken),
    )


def render_detection(
    curves: Curves, series: Mapping[str, Series], outcome: Outcome, change: str
) -> str:
    """The page of a file, as HTML.

    Args:
        curves: The file, read to its end.
        series: What it holds.
        outcome: What was found.
        change: The detectors that were asked for, in words; empty for the defaults.
    """
    record = Record(series=series, transitions=outcome.transitions, step_label=curves.step_name)
    settings = change or "the default detectors"
    left_out = f" · {curves.num_stepless:,} rows without a step" if curves.num_stepless else ""
    summary = (
        f'<p class="sub">{len(series)} streams up to step {record.last_step:,}, steps from column '
        f"{html.escape(curves.step_name)}{left_out} · with {html.escape(settings)}</p>"
    )
    facts = streams_table(record) + _watched(outcome.watched)
    return page(str(curves.path), summary, record, facts)


def render_replay(run: RunRecord, outcome: Outcome, pairs: Sequence[Pair], change: str) -> str:
    """The page of a replayed run, as HTML: the transitions drawn are the replay's.

    Args:
        run: The run as it is stored.
        outcome: What the replay found.
        pairs: Each transition beside the stored one.
        change: The detectors that were asked for, in words; empty for the run's own.
    """
    settings = html.escape(change or "the detectors it had")
    summary = f'<p class="sub">replayed with {settings}</p>{_pairs(pairs)}'
    record = replace(run, transitions=outcome.transitions)
    facts = streams_table(record) + _watched(outcome.watched)
    return page(f"{run.info.name}, replayed", summary, record, facts)


def _pairs(pairs: Sequence[Pair]) -> str:
    if not pairs:
        return '<p class="note">The live run had no transitions either.</p>'
    rows = [[html.escape(cell) for cell in pair.cells.values()] for pair in pairs]
    beside = table("Beside what the run said", [*pairs[0].cells], rows, named="beside")
    return f"{beside}<h2>What the replay found</h2>"


def _watched(watched: Sequence[Watched]) -> str:
    rows = [
        (
            html.escape(one.name),
            html.escape(str(one)),
            f"{one.skipped:,}",
            html.escape(_said(one)),
        )
        for one in watched
    ]
    return table(
        "Detectors", ("stream", "detector", "#skipped", "parameters"), rows, named="detectors"
    )


def _said(one: Watched) -> str:
    return ", ".join(f"{key} = {value}" for key, value in one.parameters.items())
