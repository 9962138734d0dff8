"""The commands that put the dashboards into a Grafana."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from phasewatch.monitor.cli.output import JsonOption, plain, print_json, printable
from phasewatch.monitor.core.errors import ConfigError
from phasewatch.monitor.grafana.access import TOKEN_VARIABLE, find_token

app = typer.Typer(help="Dashboards and alert rules in a Grafana.", no_args_is_help=True)


@app.callback()
def _root() -> None:
    """A group of its own, though it has one command yet."""


@app.command()
def push(
    url: Annotated[
        str,
        typer.Option(
            "--url",
            envvar="PHASEWATCH_GRAFANA_URL",
            help="Address of the Grafana, for example http://localhost:3000.",
        ),
    ],
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            envvar=TOKEN_VARIABLE,
            show_default=False,
            help="Token of a service account. On the command line others may see it.",
        ),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="File that holds the token.")
    ] = None,
    prometheus_url: Annotated[
        str | None,
        typer.Option(
            "--prometheus-url",
            help="Where that Grafana finds Prometheus; else http://localhost:9090, or what the "
            "data source has already.",
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--datasource", help="Uid of a Prometheus data source to use; none is created then."
        ),
    ] = None,
    contact_point: Annotated[
        str | None,
        typer.Option(
            "--contact-point",
            help="Contact point the alert rules send to; else the notification policies decide.",
        ),
    ] = None,
    rules: Annotated[
        bool,
        typer.Option(
            "--rules/--no-rules",
            help="Alert rules too. Where Prometheus alerts already, they would page twice.",
        ),
    ] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and change nothing.")
    ] = False,
    delete: Annotated[
        bool, typer.Option("--delete", help="Take away what was pushed, in place of pushing.")
    ] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, help="Seconds that one answer may take.")
    ] = 10.0,
    as_json: JsonOption = False,
) -> None:
    """Put folder, data source, dashboards and alert rules into a Grafana; again changes nothing."""
    if source is not None and prometheus_url is not None:
        raise ConfigError("give --datasource or --prometheus-url, not both")
    if token_file is not None:  # named on the command line, it goes before the environment
        token = None
    secret = find_token(token, token_file)
    from phasewatch.monitor.grafana.push import Grafana

    grafana = Grafana(url, secret, dry_run=dry_run, timeout_seconds=timeout)
    steps = (
        grafana.delete()
        if delete
        else grafana.push(
            prometheus_url=prometheus_url,
            source_uid=source,
            contact_point=contact_point,
            with_rules=rules,
        )
    )
    would = "would be " if dry_run else ""
    done = []
    try:
        for item in steps:
            done.append(item)
            if not as_json:
                changes = item.outcome in ("created", "changed", "deleted")
                outcome = f"{would if changes else ''}{item.outcome}"
                note = f" ({item.note})" if item.note else ""
                typer.echo(printable(f"{item.what} {item.name}: {outcome}{note}"))
    finally:
        if as_json:
            print_json({"url": grafana.url, "dry_run": dry_run, "done": plain(done)})
