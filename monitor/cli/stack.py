"""`phasewatch stack`: Prometheus and Alertmanager on this machine."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

app = typer.Typer(help="Prometheus and Alertmanager on this machine.", no_args_is_help=True)


@app.callback()
def _stack() -> None:
    pass


@app.command()
def up(
    folder: Annotated[
        Path, typer.Option("--folder", help="Configuration, data and logs of both servers.")
    ] = Path("phasewatch-stack"),
    prometheus_port: Annotated[
        int, typer.Option("--prometheus-port", min=1, max=65535, help="Port of Prometheus.")
    ] = 9090,
    alertmanager_port: Annotated[
        int, typer.Option("--alertmanager-port", min=1, max=65535, help="Port of Alertmanager.")
    ] = 9093,
    interval: Annotated[
        int, typer.Option("--interval", min=1, help="Seconds between two scrapes.")
    ] = 5,
) -> None:
    """Start Prometheus and Alertmanager with our configuration; Ctrl-C stops both.

    Both listen on loopback only. Their programs must be installed.
    """
    from phasewatch.monitor.operations.stack import Stack

    stack = Stack(
        folder=folder.resolve(),
        prometheus_port=prometheus_port,
        alertmanager_port=alertmanager_port,
        interval_seconds=interval,
    )
    for number in (signal.SIGINT, signal.SIGTERM):  # a script's background jobs ignore the first
        signal.signal(number, _interrupt)
    try:
        with stack.running() as servers:
            typer.echo(f"Prometheus    {stack.prometheus_url}")
            typer.echo(f"Alertmanager  {stack.alertmanager_url}")
            typer.echo(f"who is told   {stack.alertmanager_config}")
            typer.echo(f'give your runs exporter: {{targets_dir: "{stack.targets}"}}')
            typer.echo(f"is all well?    phasewatch doctor --targets {stack.targets} "
                       f"--prometheus {stack.prometheus_url}")  # fmt: skip
            typer.echo("Ctrl-C stops both")
            while True:
                for server in servers:
                    server.check()
                time.sleep(1.0)
    except KeyboardInterrupt:
        typer.echo("stopped")


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
