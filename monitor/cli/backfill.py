"""`phasewatch backfill`: measure the checkpoints that a training has saved."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from phasewatch.monitor.cli.output import (
    DEFAULT_STORE,
    JsonOption,
    StoreOption,
    counting,
    plain,
    print_json,
    say,
    transitions_table,
)


def backfill(
    factory: Annotated[
        str,
        typer.Argument(
            help="module:function that returns (model, batches, loss_fn, n_samples), as for "
            "calibrate."
        ),
    ],
    checkpoints: Annotated[
        list[str],
        typer.Argument(
            help="Checkpoints, with * and **: of Lightning, folders of Hugging Face's Trainer, "
            "safetensors, torch.save."
        ),
    ],
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

    found = find_checkpoints(checkpoints)
    settings = MonitorConfig.load(config)
    if observables:
        names = [name.strip() for name in observables.split(",") if name.strip()]
        settings = settings.replace(observables=names)
    kept: dict[str, Any] = settings.model_dump(mode="json", exclude_unset=True)
    with ExitStack() as stack:
        crew: dict[str, Any] = {"jobs": 1 if jobs is None else jobs, "block": block}
        if executor:
            crew = {"executor": stack.enter_context(executor_of(executor, jobs)), "block": block}
        history = stack.enter_context(Store(store))
        progress = stack.enter_context(counting("checkpoints"))
        plan = Plan(factory=factory, config=kept, prefix=prefix)
        done = fill(history, run, plan, found, progress=progress, **crew)
    if as_json:
        print_json(plain(done))
        return
    say(
        f"run {run}: {done.measured} of {len(found)} checkpoints measured, {done.known} were "
        f"known; steps {found[0].step} to {found[-1].step}"
    )
    for reason, number in done.reasons.items():
        say(f"not measured at {number} of them: {reason}")
    say(transitions_table(done.transitions) if done.transitions else "no transitions")
