"""`phasewatch backfill`: measure the checkpoints that a training has saved, or saves."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phasewatch.monitor.cli.output import (
    DEFAULT_STORE,
    JsonOption,
    StoreOption,
    counting,
    plain,
    print_json,
    printable,
    say,
    transitions_table,
)
from phasewatch.monitor.core.errors import ConfigError
from phasewatch.monitor.core.explanation import explain

if TYPE_CHECKING:
    from collections.abc import Callable

    from phasewatch.monitor.backfill.backfill import Backfilled
    from phasewatch.monitor.backfill.checkpoints import Checkpoint
    from phasewatch.monitor.core.transitions import Transition
    from phasewatch.monitor.store.store import Store


def backfill(
    factory: Annotated[
        str,
        typer.Argument(
            help="module:function that returns (model, batches, loss_fn, n_samples), as for "
            "calibrate."
        ),
    ],
    checkpoints: Annotated[
        list[str] | None,
        typer.Argument(
            help="Checkpoints, with * and **: of Lightning, folders of Hugging Face's Trainer, "
            "safetensors, torch.save. With --around none need be given: those are taken that were "
            "kept around the transition.",
            show_default=False,
        ),
    ] = None,
    *,
    run: Annotated[
        str, typer.Option("--run", help="Run that the values belong to; made if it is not there.")
    ],
    observables: Annotated[
        str,
        typer.Option("--observables", help="Names, separated by commas; else the configured ones."),
    ] = "",
    config: Annotated[
        Path | None, typer.Option("--config", help="YAML file, as for TransitionMonitor.")
    ] = None,
    prefix: Annotated[
        str, typer.Option("--prefix", help="Take the keys that begin so, and cut it off.")
    ] = "",
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            help="Processes that measure, or workers of the executor; else one.",
            show_default=False,
        ),
    ] = None,
    executor: Annotated[
        str,
        typer.Option(
            "--executor",
            help="What runs blocks as tasks: processes, ray, or module:factory of a "
            "concurrent.futures.Executor.",
        ),
    ] = "",
    block: Annotated[
        int | None,
        typer.Option(
            "--block",
            help="Neighbouring checkpoints through which chains go on.",
            show_default="all of a process; 8 of an executor",
        ),
    ] = None,
    around: Annotated[
        str,
        typer.Option(
            "--around",
            metavar="TRANSITION",
            help="Only the checkpoints around a transition of the run: its id, or its kind if no "
            "other is of that kind.",
        ),
    ] = "",
    follow: Annotated[
        bool,
        typer.Option(
            "--follow", help="Go on with the checkpoints that come, until Ctrl-C or --idle."
        ),
    ] = False,
    every: Annotated[
        float | None,
        typer.Option("--every", help="With --follow: seconds between two looks.", show_default="5"),
    ] = None,
    idle: Annotated[
        float | None,
        typer.Option(
            "--idle", help="With --follow: end after so many seconds without a new checkpoint."
        ),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Measure saved checkpoints into the history of a run, and detect over it.

    What the store has already is left out: a backfill that was stopped goes on where it was.
    """
    from phasewatch.monitor.backfill.backfill import backfill as fill
    from phasewatch.monitor.backfill.checkpoints import find_checkpoints
    from phasewatch.monitor.backfill.executors import executor_of
    from phasewatch.monitor.backfill.measuring import Plan
    from phasewatch.monitor.config.monitor import MonitorConfig
    from phasewatch.monitor.store.store import Store

    _refuse_both(follow, around, every, idle)
    given = checkpoints or []
    if not given and not around:
        raise ConfigError(
            "no checkpoints were given; name files or folders, with * and **, or give --around "
            "with a transition that checkpoints were kept for"
        )
    found = find_checkpoints(given) if given and not follow else []
    settings = MonitorConfig.load(config)
    if observables:
        names = [name.strip() for name in observables.split(",") if name.strip()]
        settings = settings.replace(observables=names)
    kept: dict[str, Any] = settings.model_dump(mode="json", exclude_unset=True)
    plan = Plan(factory=factory, config=kept, prefix=prefix)
    with ExitStack() as stack:
        crew: dict[str, Any] = {"jobs": 1 if jobs is None else jobs, "block": block}
        if executor:
            crew = {"executor": stack.enter_context(executor_of(executor, jobs)), "block": block}
        history = stack.enter_context(Store(store))
        if around:
            found = _around(history, run, around, found)
        progress = stack.enter_context(counting("checkpoints"))
        if follow:
            from phasewatch.monitor.backfill import following

            seconds = following.EVERY_SECONDS if every is None else every
            tell = _teller(history, as_json)
            looks: dict[str, Any] = {"every": seconds, "idle": idle, "tell": tell}
            done = following.follow(history, run, plan, given, progress=progress, **looks, **crew)
        else:
            done = fill(history, run, plan, found, progress=progress, **crew)
    _tell_end(done, run, found, as_json, follow)


def _refuse_both(follow: bool, around: str, every: float | None, idle: float | None) -> None:
    if follow and around:
        raise ConfigError(
            "--follow and --around were given; give one: what is to come lies around no transition"
        )
    for option, value in (("--every", every), ("--idle", idle)):
        if value is not None and not follow:
            raise ConfigError(f"{option} is {value}, and means something with --follow alone")


def _around(
    history: Store, run: str, wanted: str, checkpoints: list[Checkpoint]
) -> list[Checkpoint]:
    from phasewatch.monitor.backfill.around import around, find_transition, kept_for

    info = history.run(run)
    if run not in (info.name, info.id):
        raise ConfigError(
            f"there is no run {run!r} to look for a transition in; give {info.name!r}"
        )
    transition = find_transition(history.transitions(info.id), wanted)
    return around(transition, checkpoints) if checkpoints else kept_for(transition)


def _teller(history: Store, as_json: bool) -> Callable[[Transition], None]:
    """Prints a transition as it comes; for scripts as one line of JSON."""

    def tell(transition: Transition) -> None:
        info = history.run(transition.run)
        explained = explain(transition, config=info.config, units=history.units(info.id))
        if as_json:
            content = {"transition": plain(transition), "explanation": explained.plain()}
            typer.echo(json.dumps(plain(content), allow_nan=False))
        else:
            say(printable(str(explained)))
        sys.stdout.flush()

    return tell


def _tell_end(
    done: Backfilled, run: str, found: list[Checkpoint], as_json: bool, follow: bool
) -> None:
    if as_json:
        if follow:  # a line each, up to the last
            typer.echo(json.dumps(plain(done), allow_nan=False))
        else:
            print_json(plain(done))
        return
    if follow:
        say(f"run {run}: {done.measured} checkpoints measured, {done.known} were known")
    else:
        say(
            f"run {run}: {done.measured} of {len(found)} checkpoints measured, {done.known} were "
            f"known; steps {found[0].step} to {found[-1].step}"
        )
    for reason, number in done.reasons.items():
        say(f"not measured at {number} of them: {reason}")
    for path, why in done.unread.items():
        say(printable(f"never read: {path}: {why}"))
    if done.retries:
        say(f"reading a checkpoint was tried again {done.retries} times")
    say(transitions_table(done.transitions) if done.transitions else "no transitions")
