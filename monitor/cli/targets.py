"""`phasewatch targets`: the target files of a folder, and those whose time has come."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from phasewatch.monitor.cli.output import (
    JsonOption,
    add_row,
    new_table,
    plain,
    print_json,
    printable,
    say,
)
from phasewatch.monitor.core.errors import PhasewatchError


def targets(
    folder: Annotated[
        Path,
        typer.Option(
            "--targets",
            envvar="PHASEWATCH_TARGETS",
            help="Folder of target files, exporter.targets_dir.",
        ),
    ] = Path("targets"),
    reap: Annotated[
        bool,
        typer.Option(
            "--reap",
            help="Remove the files of runs that have been dead for 15 minutes, or for 5 and were "
            "resumed at another address. Call it again every few minutes: the first call only "
            "sees that a run is dead.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the targets of Prometheus, and what is behind each; remove those long dead."""
    from phasewatch.monitor.prometheus import reaper as files

    if not folder.is_dir():
        raise PhasewatchError(
            f"folder {str(folder)!r} does not exist; give --targets the exporter.targets_dir of "
            "your runs"
        )
    try:
        found = files.examine(folder)
        gone = files.reap(found) if reap else []
    except OSError as error:
        raise PhasewatchError(
            f"folder {str(folder)!r} cannot be worked on: {error}; run this as who may write it"
        ) from error
    paths = {target.path for target in gone}
    if as_json:
        print_json(
            [
                {
                    **{key: value for key, value in plain(target).items() if key != "content"},
                    "path": str(target.path),
                    "removed": target.path in paths,
                }
                for target in found
            ]
        )
        return
    if not found:
        typer.echo(f"no target files in {folder}")
        return
    table = new_table("", "run", "address", "host", "state", "why")
    for target in found:
        why = target.reason
        if target.dead_since is not None:
            minutes = (time.time() - target.dead_since) / 60
            why += f"; seen dead for {minutes:.0f} min"
        if target.path in paths:
            why += "; removed"
        name = target.run or target.path.name
        add_row(table, name, target.address, target.host, target.state.value, why)
    say(table)
    for target in gone:
        typer.echo(printable(f"removed {target.path}"))
