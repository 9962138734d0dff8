"""`phasewatch serve`: the runs of one or many stores, live in a browser."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import Annotated

import typer

from phasewatch.monitor.cli.output import DEFAULT_STORE, open_history, say

TOKEN_VARIABLE = "PHASEWATCH_SERVE_TOKEN"  # noqa: S105 - a name


def serve(
    stores: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[STORE]...",
            help="SQLite files or SQLAlchemy URLs of histories; else PHASEWATCH_STORE, else "
            f"{DEFAULT_STORE}.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            "--host",
            help="Address to listen on. One that other machines reach needs a token, which is made "
            f"and printed unless {TOKEN_VARIABLE} holds one.",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port; 0 takes any that is free.")
    ] = 8420,
    show: Annotated[
        bool, typer.Option("--open/--no-open", help="Open the page in a browser.")
    ] = False,
) -> None:
    """Show runs live in a browser: curves, transitions as they come, seeds side by side."""
    import asyncio
    import webbrowser

    from phasewatch.monitor.serve.access import Access
    from phasewatch.monitor.serve.app import serve as run

    named = stores or [os.environ.get("PHASEWATCH_STORE") or DEFAULT_STORE]
    access = Access.of(host, os.environ.get(TOKEN_VARIABLE, ""))

    def ready(address: str) -> None:
        say(f"phasewatch is at {address} (Ctrl-C ends it)")
        if show:
            webbrowser.open(address)

    with ExitStack() as opened:
        histories = [opened.enter_context(open_history(store)) for store in named]
        asyncio.run(run(histories, host=host, port=port, access=access, ready=ready))
