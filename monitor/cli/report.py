"""`phasewatch report`: runs on a page, in a picture and as Markdown, to be passed on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from phasewatch.monitor.cli.output import (
    DEFAULT_STORE,
    RunsArgument,
    StoreOption,
    find_run,
    open_history,
    printable,
    writing,
)


def report(
    runs: RunsArgument,
    store: StoreOption = DEFAULT_STORE,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="HTML file to write; it opens offline.")
    ] = Path("report.html"),
    png: Annotated[Path | None, typer.Option("--png", help="Write a picture there, too.")] = None,
    markdown: Annotated[
        Path | None,
        typer.Option("--md", help="Write it as Markdown there, too, with the picture if any."),
    ] = None,
) -> None:
    """Write a report with all curves and transitions; of several runs, laid over one another."""
    from phasewatch.monitor.reports.run_page import write_report

    with open_history(store) as history:
        found = {info.id: info.name for info in (find_run(history, run) for run in runs)}
        ids = [*found]
        with writing(out, "--out"):
            write_report(history, ids, out)
        if png is not None:
            from phasewatch.monitor.reports.png import write_picture

            with writing(png, "--png", "picture"):
                write_picture(history, ids, png)
        if markdown is not None:
            from phasewatch.monitor.reports.markdown import write_markdown

            with writing(markdown, "--md", "Markdown"):
                write_markdown(history, ids, markdown, png)
    written = ", ".join(str(path) for path in (out, png, markdown) if path is not None)
    typer.echo(printable(f"report of {', '.join(found.values())} written to {written}"))
