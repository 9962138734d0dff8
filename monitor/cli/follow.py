"""`phasewatch follow`: a run in the terminal, as it goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phasewatch.monitor.cli.output import (
    DEFAULT_STORE,
    JsonOption,
    RunArgument,
    StoreOption,
    find_run,
    open_history,
    plain,
    printable,
    say,
)
from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.explanation import explain
from phasewatch.monitor.core.transitions import Transition

if TYPE_CHECKING:
    from phasewatch.monitor.store.store import RunInfo, Store

LOOK_SECONDS = 1.0
"""How often the store is asked for news."""

NUM_STREAMS = 6
"""Streams whose last value is told."""

ENDED_BADLY = (RunState.FAILED, RunState.INTERRUPTED)


def follow(
    run: RunArgument,
    every: Annotated[
        float, typer.Option("--every", min=0.1, help="Seconds between two lines of values.")
    ] = 10.0,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Tell of a run until it ends: its last values, and each transition as it comes.

    The exit code is 1 if the run failed or was interrupted.
    """
    import json

    with open_history(store) as history:
        info = find_run(history, run)
        for event, text in _events(history, info, every):
            if as_json:
                typer.echo(json.dumps(plain(event), allow_nan=False))
            else:
                say(printable(text))
        ended = history.run(info.id)
    if ended.state in ENDED_BADLY:
        raise typer.Exit(1)


def _events(history: Store, info: RunInfo, every: float) -> Iterator[tuple[dict[str, Any], str]]:
    """What happens, for programs and for people, until the run is over."""
    told: dict[str, Transition] = {}
    values_at = 0.0
    while True:
        info = history.run(info.id)
        is_over = info.state is not RunState.RUNNING
        units = history.units(info.id)
        for transition in history.transitions(info.id):
            before = told.get(transition.id)
            if before is None or before.status is not transition.status:
                explained = explain(transition, config=info.config, units=units)
                content = {"transition": plain(transition), "explanation": explained.plain()}
                yield content, str(explained)
            told[transition.id] = transition
        if is_over or time.monotonic() >= values_at:
            values_at = time.monotonic() + every
            yield _values(history, info)
        if is_over:
            reason = f", {info.reason}" if info.reason else ""
            content = {"state": info.state.value, "reason": info.reason}
            yield content, f"run {info.name} is over: {info.state.value}{reason}"
            return
        time.sleep(min(LOOK_SECONDS, every))


def _values(history: Store, info: RunInfo) -> tuple[dict[str, Any], str]:
    """The last value of the streams that tell most, each with its status."""
    found = sorted(history.streams(info.id), key=lambda one: ("/" in one.name, -one.count))
    found = sorted(found[:NUM_STREAMS], key=lambda one: one.name)
    said = []
    for one in found:
        last = one.last
        error = "" if last.stderr is None else f" ± {last.stderr:.2g}"
        status = "" if last.status.value == "ok" else f" ({last.status})"
        said.append(f"{one.name} {last.value:.4g}{error}{status}")
    step = "no step yet" if info.last_step is None else f"step {info.last_step:,}"
    last_values = {
        one.name: {"step": one.last.step, "value": one.last.value, "stderr": one.last.stderr,
                   "status": one.last.status.value}
        for one in found
    }  # fmt: skip
    return {"step": info.last_step, "values": last_values}, "  ".join([step, *said])
