"""`phasewatch init`: a configuration to begin with, which explains itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from phasewatch.monitor.cli.output import writing
from phasewatch.monitor.core.errors import PhasewatchError


def init(
    out: Annotated[Path, typer.Argument(help="YAML file to write.")] = Path("phasewatch.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
) -> None:
    """Write a YAML file with every setting, its default and what it does, all commented out."""
    from phasewatch.monitor.config.example import commented_yaml

    if out.exists() and not force:
        raise PhasewatchError(f"{str(out)!r} is there already; give another path, or --force")
    with writing(out, "OUT", "configuration"):
        out.write_text(commented_yaml(out.name), encoding="utf-8")
    typer.echo(f'every setting written to {out}; use it: TransitionMonitor("{out}")')
