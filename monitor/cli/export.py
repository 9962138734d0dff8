"""`phasewatch export`: a stored run, for other programs."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from phasewatch.monitor.store.store import RunInfo, Store

OPENMETRICS = "openmetrics"
BY_SUFFIX = {".csv": "csv", ".jsonl": "jsonl", ".parquet": "parquet", ".om": OPENMETRICS}


def export(
    run: RunArgument,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            "-f",
            help="csv, jsonl or parquet: a row an observation, with its error and status; or "
            "openmetrics. Without it, what the name of --out ends with says it.",
        ),
    ] = "",
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
            help="For OpenMetrics: of the values of a series within so many seconds only the last "
            "is written; 0 writes all that lie a millisecond apart.",
        ),
    ] = 1.0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write; else standard output.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Write the history of a run in a format that other programs read."""
    wanted = OPENMETRICS if openmetrics else form or BY_SUFFIX.get(out.suffix if out else "", "")
    formats = sorted({*BY_SUFFIX.values()})
    if wanted not in formats:
        given = f"format is {wanted!r}" if wanted else "no format is given"
        raise PhasewatchError(f"{given}; it must be one of {', '.join(formats)}: --format csv")
    with open_history(store) as stored:
        info = find_run(stored, run)
        if wanted == OPENMETRICS:
            said = _openmetrics(stored, info, out, interval)
        else:
            said = _table(stored, info, out, wanted)
    typer.echo(said + ("" if out is None else f" written to {out}"), err=True)


def _table(stored: Store, info: RunInfo, out: Path | None, form: str) -> str:
    from phasewatch.monitor.reports.tables import write_table

    if out is not None:
        with writing(out, "--out", "export"):
            count = write_table(stored, info.id, out, form)
        return f"{count:,} observations"
    if form == "parquet" and sys.stdout.isatty():
        raise PhasewatchError("parquet is not for a terminal; give --out FILE")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        count = write_table(stored, info.id, path, form)
        with path.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.flush()
    return f"{count:,} observations"


def _openmetrics(stored: Store, info: RunInfo, out: Path | None, interval: float) -> str:
    from phasewatch.monitor.prometheus.backfill import History

    history = History(stored, info, interval_seconds=interval)
    if out is None:
        written = history.write(sys.stdout)
    else:
        with writing(out, "--out", "export"), out.open("w", encoding="utf-8", newline="\n") as file:
            written = history.write(file)
    left_out = written.num_left_out
    return f"{written.num_samples} samples of {written.num_series} series" + (
        f"; {left_out} values have no usable time" if left_out else ""
    )
