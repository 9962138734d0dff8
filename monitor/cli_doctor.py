"""`phasewatch doctor`: is everything from the run to whoever is told in order?"""

from __future__ import annotations

import urllib.parse
from pathlib import Path
from typing import Annotated

import typer

from phasewatch.monitor.cli_common import JsonOption, plain, print_json, printable
from phasewatch.monitor.errors import PhasewatchError


def doctor(
    metrics: Annotated[
        list[str] | None,
        typer.Option("--metrics", help="host:port or URL of a run; may be given several times."),
    ] = None,
    targets: Annotated[
        Path | None, typer.Option("--targets", help="Folder of target files, exporter.targets_dir.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="YAML file of a run's MonitorConfig.")
    ] = None,
    prometheus: Annotated[
        str, typer.Option("--prometheus", help="Address of Prometheus.")
    ] = "http://127.0.0.1:9090",
    alertmanager: Annotated[
        str | None,
        typer.Option("--alertmanager", help="Its address; else the one Prometheus sends to."),
    ] = None,
    end_to_end: Annotated[
        bool,
        typer.Option(
            "--end-to-end",
            help="Send a marked test alert through Alertmanager and wait until somebody is told.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check the chain from run to alert and say which link is broken; exit code 1 if one is."""
    from phasewatch.monitor.config import MonitorConfig
    from phasewatch.monitor.doctor import examine
    from phasewatch.monitor.doctor_links import LinkState
    from phasewatch.monitor.doctor_runs import Runs
    from phasewatch.monitor.sinks.file_sd import address

    exporter = MonitorConfig.load(config).exporter
    folder = targets or exporter.targets_dir
    addresses = [_address(text) for text in metrics or ()]
    runs = Runs(
        addresses=tuple(addresses) or (f"http://{address(exporter.host, exporter.port)}",),
        # An address that is given is asked, whatever the files say.
        targets=None if addresses or folder is None else folder.resolve(),
    )
    prometheus = _base(prometheus, "--prometheus")
    if alertmanager is not None:
        alertmanager = _base(alertmanager, "--alertmanager")
    links = []
    for link in examine(runs, prometheus, alertmanager, end_to_end=end_to_end):
        links.append(link)
        if not as_json:
            typer.echo(printable(f"{link.state:11s}  {link.name:26s}  {link.found}"))
            if link.remedy:
                typer.echo(printable(f"{'':13s}what to do: {link.remedy}"))
    broken = [link.name for link in links if link.state is LinkState.BROKEN]
    if as_json:
        print_json({"ok": not broken, "links": [plain(link) for link in links]})
    elif broken:
        typer.echo(f"broken: {', '.join(broken)}")
    else:
        proof = "" if end_to_end else "; --end-to-end sends a test through them"
        typer.echo(
            f"every link checked is in order{proof}; `phasewatch test-alert` tries direct alerts"
        )
    if broken:
        raise typer.Exit(1)


def _address(text: str) -> str:
    parts = urllib.parse.urlsplit(text if "://" in text else f"http://{text}")
    if not parts.hostname or not parts.port:
        raise PhasewatchError(f"--metrics is {text!r}; it must be host:port, as 127.0.0.1:9877")
    return f"{parts.scheme}://{parts.netloc}"


def _base(text: str, option: str) -> str:
    if urllib.parse.urlsplit(text).scheme not in ("http", "https"):
        raise PhasewatchError(f"{option} is {text!r}; it must be a URL, as http://127.0.0.1:9090")
    return text.rstrip("/")
