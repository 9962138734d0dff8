"""The commands about direct alerts: try the targets, look at what waits, send it."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phasewatch.monitor.cli.output import (
    DEFAULT_STORE,
    JsonOption,
    StoreOption,
    add_row,
    new_table,
    open_history,
    print_json,
    printable,
    say,
)
from phasewatch.monitor.core.errors import ConfigError, PhasewatchError

if TYPE_CHECKING:
    from phasewatch.monitor.config.alerts import AlertsConfig, Target
    from phasewatch.monitor.store.outbox import Message
    from phasewatch.monitor.store.store import Store

VARIABLE = "PHASEWATCH_ALERTS"

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help=f"YAML file of the monitor, with its alerts; else the URLs in {VARIABLE}, one a line.",
    ),
]


def try_targets(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Send a sample to every alert target, and say what happened; exit code 1 if one failed."""
    from phasewatch.monitor.alerts.courier import check, deliver
    from phasewatch.monitor.alerts.delivery import DeliveryError

    settings, targets = _targets(config)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="phasewatch-") as folder:
        alert = _sample(settings, Path(folder))
        for target in targets:
            started = time.monotonic()
            problem = check(target)
            if not problem:
                try:
                    deliver(target, alert)
                except DeliveryError as error:
                    problem = str(error)
            seconds = round(time.monotonic() - started, 2)
            found.append(
                {"target": target.name, "ok": not problem, "error": problem, "seconds": seconds}
            )
            if not as_json:
                verdict = f"FAILED: {problem}" if problem else f"delivered in {seconds:.1f} s"
                typer.echo(printable(f"{target.name}: {verdict}"))
    if as_json:
        print_json(found)
    if not all(item["ok"] for item in found):
        raise typer.Exit(1)


def outbox(
    store: StoreOption = DEFAULT_STORE,
    flush: Annotated[
        bool,
        typer.Option("--flush", help="Send what waits, now: no quiet hours, no limit of the rate."),
    ] = False,
    adopt: Annotated[
        list[str] | None,
        typer.Option(
            "--adopt",
            help="With --flush: a run whose messages wait for a target with another secret; they "
            "are sent to the target of the same position and service.",
        ),
    ] = None,
    drop: Annotated[
        list[int] | None, typer.Option("--drop", help="Id of a message to give up.")
    ] = None,
    config: ConfigOption = None,
    show_all: Annotated[
        bool, typer.Option("--all", help="List also what was sent or dropped.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the alerts that wait to be sent; with --flush, send them. Exit code 1 if any is left."""
    with open_history(store) as history:
        for number in drop or ():
            if not history.outbox.drop(number):
                raise PhasewatchError(f"--drop {number}: no message with this id waits")
        if flush:
            settings, targets = _targets(config)
            adopted = [history.run(name).id for name in adopt or ()]
            _flush(history, settings, targets, adopted)
        messages = history.outbox.messages()
        names = {run.id: run.name for run in history.runs()}
    waiting = [message for message in messages if message.delivery == "waiting"]
    shown = messages if show_all else waiting
    if as_json:
        print_json([_content(message, names) for message in shown])
    elif shown:
        table = new_table("", *_content(shown[0], names))
        for message in shown:
            add_row(table, *(_cell(value) for value in _content(message, names).values()))
        say(table)
    else:
        say(f"no alerts wait in {history.where}")
    if flush and waiting:
        raise typer.Exit(1)


def _targets(config: Path | None) -> tuple[AlertsConfig, tuple[Target, ...]]:
    from phasewatch.monitor.config.alerts import AlertsConfig, resolve_targets
    from phasewatch.monitor.config.monitor import MonitorConfig

    if config is not None:
        settings = MonitorConfig.load(config).alerts
    elif os.environ.get(VARIABLE, "").strip():
        settings = AlertsConfig.model_validate({"targets": [f"env:{VARIABLE}"]})
    else:
        settings = AlertsConfig()
    targets = resolve_targets(settings)
    if not targets:
        raise ConfigError(
            "no alert targets: give --config a YAML file with `alerts`, or put URLs into "
            f"the environment variable {VARIABLE}"
        )
    return settings, targets


def _flush(
    history: Store, settings: AlertsConfig, targets: Sequence[Target], adopted: Sequence[str]
) -> None:
    """Send what waits for these targets, and what waits for their forerunners in adopted runs."""
    from phasewatch.monitor.alerts.courier import couriers

    with tempfile.TemporaryDirectory(prefix="phasewatch-") as folder:
        for run_id in (None, *adopted):
            for courier in couriers(history, targets, settings, Path(folder), run_id=run_id):
                while courier.step(is_urgent=True):
                    pass


def _content(message: Message, names: dict[str, str]) -> dict[str, Any]:
    return {
        "id": message.id,
        "run": names.get(message.transition.run, message.transition.run),
        "kind": message.transition.kind.value,
        "state": message.state.value,
        "step": message.transition.onset_step,
        "target": message.target,
        "delivery": message.delivery.value,
        "since": message.created_at,
        "tries": message.tries,
        "not_before": message.not_before,
        "error": message.last_error,
    }


def _cell(value: object) -> str:
    if isinstance(value, float):
        return datetime.fromtimestamp(value).astimezone().strftime("%Y-%m-%d %H:%M")
    return "–" if value is None or value == "" else str(value)


def _sample(settings: AlertsConfig, folder: Path) -> Any:
    """An alert such as a run would send, of a made-up run."""
    from phasewatch.detectors.types import Alarm, AlarmKind, Direction
    from phasewatch.monitor.alerts.courier import AlertWriter
    from phasewatch.monitor.core.ending import RunState
    from phasewatch.monitor.core.estimates import Observation
    from phasewatch.monitor.core.transitions import Transition, TransitionKind, TransitionStatus
    from phasewatch.monitor.store.outbox import Delivery, Message
    from phasewatch.monitor.store.store import Store

    with Store(":memory:") as store:
        run, attempt = store.begin_run(name="a test of phasewatch, not a run")
        for step in range(0, 2000, 10):
            value = 2.3 if step < 1000 else 0.02 + 2.28 * math.exp(-(step - 1000) / 100)
            sample = Observation(name="val_loss", step=step, value=value, unit="nats")
            store.add_observation(run, attempt, sample)
        transition = Transition(
            id=run,
            run=run,
            attempt=attempt,
            kind=TransitionKind.GENERALISATION,
            status=TransitionStatus.CONFIRMED,
            onset_step=1000,
            detected_step=1040,
            epoch=10,
            detected_at=time.time(),
            severity=2.1,
            evidence={
                "val_loss": Alarm(
                    detected_step=1040,
                    onset_step=1000,
                    direction=Direction.DOWN,
                    kind=AlarmKind.SHIFT,
                    score=3.0,
                    run_length=100,
                    value_before=2.3,
                    value_after=0.02,
                )
            },
            before={"val_loss": 2.3},
            after={"val_loss": 0.02},
        )
        store.add_transition(transition)
        store.end_run(run, attempt, RunState.FINISHED)
        message = Message(
            id=0,
            key=run,
            target="",
            state=TransitionStatus.CONFIRMED,
            delivery=Delivery.WAITING,
            created_at=time.time(),
            sent_at=None,
            tries=0,
            not_before=None,
            last_error="",
            transition=transition,
            told_as=(),
        )
        return AlertWriter(store, settings, folder).write(message, drawn=True)
