"""What the commands share: options, and the printing of JSON, tables and progress."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phasewatch.monitor.core.errors import PhasewatchError
from phasewatch.monitor.core.redaction import redact
from phasewatch.monitor.transitions.classification import seen_by

if TYPE_CHECKING:
    from rich.table import Table

    from phasewatch.monitor.core.transitions import Transition
    from phasewatch.monitor.store.store import RunInfo, Store

StoreOption = Annotated[
    str,
    typer.Option(
        "--store", envvar="PHASEWATCH_STORE", help="SQLite file or SQLAlchemy URL of the history."
    ),
]


def _names_of_runs(context: typer.Context, incomplete: str) -> list[str]:
    """What a shell offers for a run: the names in the store that is meant."""
    try:
        with open_history(context.params.get("store") or DEFAULT_STORE) as history:
            return [run.name for run in history.runs() if run.name.startswith(incomplete)]
    except PhasewatchError:
        return []


RunArgument = Annotated[
    str,
    typer.Argument(
        help="Name or id, or the first letters of either.", autocompletion=_names_of_runs
    ),
]
RunsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN...",
        help="Names or ids, or the first letters of either.",
        autocompletion=_names_of_runs,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]

PageOption = Annotated[
    Path | None, typer.Option("--report", help="HTML file to write; it opens offline.")
]
PIPED_WIDTH = 160
"""Width of tables that no terminal shows: a file or a pipe has none, and must not cut them."""

DEFAULT_STORE = "phasewatch.db"


def find_run(history: Store, wanted: str) -> RunInfo:
    """The run of a name or id; where several have the name it is the latest, and that is told."""
    found = history.run(wanted)
    others = [run for run in history.runs_named(wanted) if run.id != found.id]
    if others and found.name == wanted:
        listed = ", ".join(
            f"{run.id[:8]} ({run.state.value}, {_when(run.started_at)})" for run in others[:10]
        )
        more = f" and {len(others) - 10} more" if len(others) > 10 else ""
        typer.echo(
            printable(
                f"{len(others) + 1} runs are named {wanted!r}; this is the latest, {found.id[:8]} "
                f"({found.state.value}, {_when(found.started_at)}). The others, by id: "
                f"{listed}{more}"
            ),
            err=True,
        )
    return found


def _when(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def open_history(store: str) -> Store:
    """Open a store to read."""
    from phasewatch.monitor.store.store import Store

    return Store(store, create=False)


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """A line on standard error that counts and says the time left, gone when the work is done."""
    from rich.console import Console
    from rich.progress import Progress

    # What is printed meanwhile stands above the line, on a terminal; a pipe is to have it.
    shown = sys.stdout.isatty()
    with Progress(console=Console(stderr=True), transient=True, redirect_stdout=shown) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def check_writable(path: Path, option: str) -> None:
    """Tell before minutes of work that their page could not be written."""
    with writing(path, option):
        path.open("a").close()


@contextmanager
def writing(path: Path, option: str, what: str = "report") -> Iterator[None]:
    """A file that cannot be written is one line that names the option.

    Args:
        path: The file.
        option: What names it on the command line.
        what: What is written.
    """
    try:
        yield
    except OSError as error:
        raise PhasewatchError(
            f"{what} {str(path)!r} cannot be written: {error.strerror}; give {option} a path that "
            "can be"
        ) from error


def plain(record: Any) -> Any:
    """A record as JSON knows it; NaN and infinity as the strings "nan", "inf" and "-inf"."""
    if isinstance(record, dict):
        return {str(key): plain(value) for key, value in record.items()}
    if isinstance(record, (list, tuple)):
        return [plain(value) for value in record]
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return {
            field.name: plain(getattr(record, field.name)) for field in dataclasses.fields(record)
        }
    if isinstance(record, float) and not math.isfinite(record):
        return repr(record)
    return record


def print_json(content: Any) -> None:
    """Print plain content as strict JSON."""
    import json

    typer.echo(json.dumps(content, indent=2, allow_nan=False))


def say(content: Any) -> None:
    """Print a text or a table."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPED_WIDTH
    console.print(content, soft_wrap=isinstance(content, str))


def new_table(title: str, *columns: str) -> Table:
    """An empty table; columns of names may be folded, others are as wide as they must be."""
    from rich import box
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", box=box.SIMPLE)
    for column in columns:
        is_free = column in ("run", "name", "evidence", "needs", "source", "time", "memory")
        table.add_column(
            column, overflow="fold", no_wrap=not is_free, min_width=12 if is_free else None
        )
    return table


def add_row(table: Table, *cells: str) -> None:
    """Add a row of plain text: a name may look like markup or hold control characters."""
    from rich.text import Text

    table.add_row(*(Text(printable(cell)) for cell in cells))


def printable(text: str) -> str:
    """The text without control characters and secrets."""
    text = redact(text)
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def transitions_table(transitions: Sequence[Transition]) -> Table:
    """A row for each transition."""
    table = new_table(
        "transitions",
        "kind",
        "status",
        "onset",
        "detected",
        "end",
        "severity",
        "evidence",
        "in hindsight",
    )
    for item in transitions:
        cells = (
            item.kind.value,
            item.status.value,
            str(item.onset_step),
            str(item.detected_step),
            "–" if item.end_step is None else str(item.end_step),
            f"{item.severity:.3g}",
            seen_by(item),
            "–" if item.hindsight is None else str(item.hindsight),
        )
        add_row(table, *cells)
    return table
