"""`phasewatch export`: a stored run, for other programs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from phasewatch.monitor.cli.output import (
    DEFAULT_STORE,
    RunArgument,
    StoreOption,
    find_run,
    open_history,
    writing,
)
from phasewatch.monitor.core.errors import PhasewatchError


def export(
    run: RunArgument,
    openmetrics: Annotated[
        bool,
        typer.Option(
            "--openmetrics",
            help="As OpenMetrics with times: promtool tsdb create-blocks-from openmetrics FILE "
            "makes blocks of it for a Prometheus that has not scraped the run.",
        ),
    ] = False,
    interval: Annotated[
        float,
        typer.Option(
            "--interval",
            min=0.0,
            help="Of the values of a series within so many seconds only the last is written; 0 "
            "writes all that lie a millisecond apart.",
        ),
    ] = 1.0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write; else standard output.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Write the history of a run in a format that other programs read."""
    from phasewatch.monitor.prometheus.backfill import History

    if not openmetrics:
        raise PhasewatchError("no format is given; the one there is: --openmetrics")
    with open_history(store) as stored:
        history = History(stored, find_run(stored, run), interval_seconds=interval)
    if out is None:
        written = history.write(sys.stdout)
    else:
        with writing(out, "--out"), out.open("w", encoding="utf-8", newline="\n") as file:
            written = history.write(file)
    typer.echo(
        f"{written.num_samples} samples of {written.num_series} series"
        + (f"; {written.num_left_out} values have no usable time" if written.num_left_out else "")
        + ("" if out is None else f" written to {out}"),
        err=True,
    )
