"""The commands that detect over numbers that exist already: files of curves, and stored runs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from phasewatch.monitor.cli.output import (
    DEFAULT_STORE,
    JsonOption,
    PageOption,
    RunArgument,
    StoreOption,
    add_row,
    check_writable,
    find_run,
    new_table,
    open_history,
    plain,
    print_json,
    printable,
    say,
    transitions_table,
    writing,
)
from phasewatch.monitor.core.errors import ConfigError

DetectorOption = Annotated[
    str | None,
    typer.Option("--detector", help='Detector of every watched stream; "none" watches none.'),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Parameter of the detector, or of each stream's own detector that has one of that "
        "name; may be given again.",
    ),
]
WATCHED_COLUMNS = ("name", "points", "last step", "taken as", "detector", "skipped")


def detect(
    file: Annotated[
        Path,
        typer.Argument(
            help="CSV or JSONL file, TensorBoard event file, or the folder of one run.",
            show_default=False,
        ),
    ],
    step: Annotated[
        str | None,
        typer.Option(
            "--step",
            help="Column of the steps; else step, global_step, iteration, epoch or episode. "
            '"row" counts rows.',
        ),
    ] = None,
    columns: Annotated[
        str, typer.Option("--columns", help="Columns to watch, separated by commas; else all.")
    ] = "",
    exclude: Annotated[
        str, typer.Option("--exclude", help="Columns to leave out, separated by commas.")
    ] = "",
    detector: DetectorOption = None,
    settings: SetOption = None,
    page: PageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the transitions in curves that exist already, as a live run would have."""
    from phasewatch.monitor.readers.curves import Curves
    from phasewatch.monitor.replay.recorded import DetectorOverride
    from phasewatch.monitor.replay.recorded import detect as detect_in

    change = DetectorOverride(detector, _settings(settings))
    curves = Curves(file, step=step, columns=_names(columns), exclude=_names(exclude))
    chunks = curves.chunks()
    if page is not None:
        from phasewatch.monitor.reports.replay_page import Collected, render_detection

        check_writable(page, "--report")
        collected = Collected(chunks)
        outcome = detect_in(collected, run=str(file), change=change)
        with writing(page, "--report"):
            content = render_detection(curves, collected.series, outcome, str(change))
            page.write_text(content, encoding="utf-8")
    else:
        outcome = detect_in(chunks, run=str(file), change=change)
    if as_json:
        print_json(
            {
                "file": str(curves.path),
                "step": curves.step_name,
                "rows_without_step": curves.num_stepless,
                "streams": [
                    {**plain(watched), "count": curves.streams[watched.name].count}
                    for watched in outcome.watched
                ],
                "transitions": plain(outcome.transitions),
            }
        )
        return
    say(printable(f"{curves.path}, steps from column {curves.step_name}"))
    table = new_table("watched", *WATCHED_COLUMNS)
    for watched in outcome.watched:
        curve = curves.streams[watched.name]
        points = (str(curve.count), str(curve.last_step))
        add_row(
            table, watched.name, *points, str(watched.meaning), str(watched), str(watched.skipped)
        )
    say(table)
    if curves.num_stepless:
        say(f"{curves.num_stepless} rows without a step were left out")
    say(transitions_table(outcome.transitions) if outcome.transitions else "no transitions")
    if page is not None:
        say(f"page written to {page}")


def replay(
    run: RunArgument,
    store: StoreOption = DEFAULT_STORE,
    detector: DetectorOption = None,
    settings: SetOption = None,
    streams: Annotated[
        list[str] | None,
        typer.Option("--stream", help="Change only this stream; may be given again."),
    ] = None,
    page: PageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Detect again over a stored run: what would other settings have said?"""
    from phasewatch.monitor.replay.recorded import DetectorOverride, compare
    from phasewatch.monitor.replay.recorded import replay as replay_run

    change = DetectorOverride(detector, _settings(settings), streams or ())
    if streams and not change:
        raise ConfigError("--stream alone changes nothing; give --detector or --set with it")
    if page is not None:
        check_writable(page, "--report")
    with open_history(store) as history:
        info = find_run(history, run)
        _check_streams(streams or (), history.names(info.id), info.name)
        stored = history.transitions(info.id)
        outcome = replay_run(history, info, change)
        pairs = compare(stored, outcome.transitions)
        if page is not None:
            from phasewatch.monitor.reports.data import read_run
            from phasewatch.monitor.reports.replay_page import render_replay

            content = render_replay(read_run(history, info.id), outcome, pairs, str(change))
            with writing(page, "--report"):
                page.write_text(content, encoding="utf-8")
    if as_json:
        print_json(
            {
                "run": info.id,
                "name": info.name,
                "change": str(change),
                "streams": plain(outcome.watched),
                "transitions": plain(outcome.transitions),
                "beside": [{"verdict": str(pair.verdict), **plain(pair)} for pair in pairs],
            }
        )
        return
    say(f"{printable(info.name)} ({info.id}) again with {change or 'the detectors it had'}")
    if pairs:
        table = new_table("transitions, beside what the run said", *pairs[0].cells)
        for pair in pairs:
            add_row(table, *pair.cells.values())
        say(table)
    else:
        say("no transitions, now as then")
    if page is not None:
        say(f"page written to {page}")


def _check_streams(wanted: Sequence[str], known: Sequence[str], run: str) -> None:
    for name in wanted:
        if name not in known:
            raise ConfigError(
                f"--stream {name!r} is none of run {run!r}; its streams: {', '.join(known)}"
            )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _settings(given: Sequence[str] | None) -> dict[str, Any]:
    """KEY=VALUE as parameters: numbers where they read as such."""
    parameters: dict[str, Any] = {}
    for item in given or ():
        key, equals, text = item.partition("=")
        if not (key and equals):
            raise ConfigError(f"--set is {item!r}; it must be KEY=VALUE, for example gate=0.2")
        value: Any = text
        for convert in (int, float):
            with suppress(ValueError):
                value = convert(text)
                break
        parameters[key.strip()] = value
    return parameters
