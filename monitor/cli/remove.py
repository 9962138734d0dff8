"""`phasewatch rm`: a run taken out of its store, for good."""

from __future__ import annotations

from typing import Annotated

import typer

from phasewatch.monitor.cli.output import (
    DEFAULT_STORE,
    StoreOption,
    find_run,
    open_history,
    printable,
)


def remove(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Names, ids, or their first letters.")
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Remove runs from a store, with all that was observed, after asking."""
    from phasewatch.monitor.store.removal import check_removable, remove_run

    with open_history(store) as history:
        found = [find_run(history, run) for run in runs]
        for info in found:
            check_removable(history, info)
        for info in found:
            step = "no step" if info.last_step is None else f"{info.last_step:,} steps"
            what = printable(f"{info.name} ({info.id[:8]}, {info.state.value}, {step})")
            if not yes and not typer.confirm(f"remove run {what} for good?"):
                typer.echo(f"kept {what}")
                continue
            count = remove_run(history, info)
            typer.echo(f"removed {what}: {count:,} observations")
