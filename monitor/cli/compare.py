"""`phasewatch compare`: runs beside one another in the terminal."""

from __future__ import annotations

from typing import Annotated

import typer

from phasewatch.monitor.cli.output import (
    DEFAULT_STORE,
    JsonOption,
    RunsArgument,
    StoreOption,
    add_row,
    find_run,
    new_table,
    open_history,
    plain,
    print_json,
    say,
)
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.meaning import Meanings, Panel
from phasewatch.monitor.core.transitions import TransitionStatus

SHOWN = (Panel.LOSSES, Panel.LLC, Panel.FRACTIONS)


def compare(
    runs: RunsArgument,
    streams: Annotated[
        list[str] | None,
        typer.Option("--stream", help="A stream to compare; may be repeated. Else losses, λ̂ and "
                     "metrics between 0 and 1."),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Show the last values of runs side by side, and where their transitions are."""
    rows = []
    with open_history(store) as history:
        for run in runs:
            info = find_run(history, run)
            meanings = Meanings.stored(info.config)
            values = {
                one.name: one.last
                for one in history.streams(info.id)
                if (one.name in streams if streams else _is_shown(one.name, meanings))
            }
            standing = [
                t
                for t in history.transitions(info.id)
                if t.status is not TransitionStatus.WITHDRAWN
            ]
            rows.append((info, values, standing))
    if as_json:
        print_json(
            [
                {
                    "id": info.id,
                    "name": info.name,
                    "state": info.state.value,
                    "last_step": info.last_step,
                    "values": {
                        name: {key: plain(getattr(last, key)) for key in ("step", "value", "stderr",
                                                                          "status", "unit")}
                        for name, last in values.items()
                    },
                    "transitions": [plain(t) for t in standing],
                }
                for info, values, standing in rows
            ]
        )  # fmt: skip
        return
    names = [*dict.fromkeys(name for _, values, _ in rows for name in values)]
    table = new_table("", "run", "id", "state", "step", *names, "transitions")
    for info, values, standing in rows:
        found = ", ".join(f"{t.kind} {t.onset_step:,} ({t.severity:.3g})" for t in standing)
        step = "–" if info.last_step is None else f"{info.last_step:,}"
        cells = [_shown(values.get(name)) for name in names]
        add_row(table, info.name, info.id[:8], info.state.value, step, *cells, found or "none")
    say(table)


def _is_shown(name: str, meanings: Meanings) -> bool:
    return "/" not in name and meanings.of(name).panel in SHOWN


def _shown(last: Observation | None) -> str:
    if last is None:
        return "–"
    error = "" if last.stderr is None else f" ± {last.stderr:.2g}"
    return f"{last.value:.4g}{error}" + ("" if last.status.value == "ok" else f" ({last.status})")
