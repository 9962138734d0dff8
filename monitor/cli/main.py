"""The command line. What only reads the run history waits for no torch."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phasewatch.monitor.cli import (
    alerts,
    backfill,
    compare,
    detect,
    doctor,
    export,
    follow,
    grafana,
    init,
    observables,
    remove,
    report,
    serve,
    stack,
    targets,
)
from phasewatch.monitor.cli.group import RedactingGroup
from phasewatch.monitor.cli.output import (
    DEFAULT_STORE,
    JsonOption,
    PageOption,
    RunArgument,
    StoreOption,
    add_row,
    check_writable,
    counting,
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
from phasewatch.monitor.core.errors import PhasewatchError
from phasewatch.monitor.core.explanation import explain
from phasewatch.monitor.core.forecast import COLUMNS, ForecastRow, forecast_of
from phasewatch.monitor.core.meaning import Meanings
from phasewatch.monitor.core.version import phasewatch_version

if TYPE_CHECKING:
    from rich.table import Table

    from phasewatch.monitor.core.estimates import Estimate
    from phasewatch.monitor.sampling.selfcheck import Check
    from phasewatch.monitor.sampling.sweep import Sweep
    from phasewatch.monitor.store.store import RunInfo, StreamInfo

app = typer.Typer(
    name="phasewatch",
    cls=RedactingGroup,
    help="Watches a neural network while it trains and says when it changes in kind.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Entry point: what goes wrong is one line; exit code 2 if the command is none, else 1."""
    try:
        sys.exit(app(prog_name="phasewatch", standalone_mode=False) or 0)
    except PhasewatchError as error:
        typer.echo(f"phasewatch: {error}", err=True)
        sys.exit(1)
    except typer.Abort:
        typer.echo("phasewatch: aborted", err=True)
        sys.exit(1)
    except USAGE_ERROR as error:
        _say_usage(error)
        sys.exit(2)


USAGE_ERROR: type[Any] = typer.BadParameter.__mro__[1]
"""What click raises for a wrong command line. Which click it is, depends on typer's version."""


def _say_usage(error: Any) -> None:
    """A wrong command line in one line, with the help that would set it right."""
    if type(error).__name__ == "NoArgsIsHelpError":  # nothing is wrong: it shows what there is
        error.show()
        return
    command = error.ctx.command_path if error.ctx is not None else "phasewatch"
    told = error.format_message().rstrip(".")
    typer.echo(f"phasewatch: {told}; see `{command} --help`", err=True)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"phasewatch {phasewatch_version()}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and leave."
        ),
    ] = False,
) -> None:
    pass


@app.command()
def runs(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """List the runs of a store, the latest first."""
    with open_history(store) as history:
        found = history.runs()
    if as_json:
        print_json([plain(run) for run in found])
    else:
        say(_runs_table(found) if found else f"no runs in {history.where}")


@app.command()
def show(run: RunArgument, store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Show one run: its state, what was observed, its transitions."""
    with open_history(store) as history:
        info = find_run(history, run)
        streams, transitions = history.streams(info.id), history.transitions(info.id)
        units = history.units(info.id)
        holes = history.holes(info.id)
    meanings = Meanings.stored(info.config)
    explained = [explain(t, config=info.config, units=units) for t in transitions]
    if as_json:
        content = plain(info)
        content["holes"] = [plain(hole) for hole in holes]
        content["streams"] = [
            {**plain(stream), "meaning": plain(meanings.of(stream.name))} for stream in streams
        ]
        content["transitions"] = [
            {**plain(t), "explanation": told.plain()}
            for t, told in zip(transitions, explained, strict=True)
        ]
        print_json(content)
        return
    say(_headline(info))
    say(_streams_table(streams, meanings) if streams else "nothing observed yet")
    if expected := forecast_of(info.config):
        say(_forecast_table(expected))
    if around := (info.config or {}).get("measured_around"):
        say(printable(around))
    say(transitions_table(transitions) if transitions else "no transitions")
    for told in explained:
        say(printable(f"{told}\n"))
    for hole in holes:
        where = f"after step {hole.first_step} up to {hole.last_step}"
        say(printable(f"hole: {hole.num_rows} of {hole.stream} are missing {where}: {hole.reason}"))


app.command()(report.report)
app.command()(follow.follow)
app.command()(compare.compare)
app.command("rm")(remove.remove)
app.command()(init.init)
app.command()(backfill.backfill)
app.command()(detect.detect)
app.command()(detect.replay)
app.command("test-alert")(alerts.try_targets)
app.command()(alerts.outbox)
app.command()(doctor.doctor)
app.command()(export.export)
app.command()(observables.observables)
app.command()(serve.serve)
app.command()(targets.targets)
app.add_typer(grafana.app, name="grafana")
app.add_typer(stack.app, name="stack")


@app.command()
def selfcheck(
    device: Annotated[
        str, typer.Option("--device", help="cpu, cuda, mps, or auto: an accelerator if any.")
    ] = "auto",
    page: PageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Estimate λ where it is known in closed form; exit code 1 if any case fails."""
    from phasewatch.monitor.sampling import selfcheck as suite

    where = suite.choose_device(device)
    if page is not None:
        check_writable(page, "--report")
    checks = []
    if not as_json:
        typer.echo(f"{'model':30s} {'λ':>6s} {'expected':>8s} {'estimate':>16s} {'error':>6s}")
    for check in suite.run_selfcheck(where):
        checks.append(check)
        if not as_json:
            typer.echo(_check_line(check))
    num_passed = sum(check.passed for check in checks)
    seconds = sum(check.duration_seconds for check in checks)
    summary = f"{num_passed} of {len(checks)} cases passed on {where} in {seconds:.0f} s"
    if page is not None:
        from phasewatch.monitor.reports.selfcheck_page import render_selfcheck

        content = render_selfcheck(
            checks, summary=summary, rule=suite.RULE, max_error=suite.MAX_ERROR
        )
        with writing(page, "--report"):
            page.write_text(content, encoding="utf-8")
    if as_json:
        passed = num_passed == len(checks)
        head = {"device": str(where), "passed": passed, "rule": suite.RULE}
        print_json({**head, "checks": [plain(check) for check in checks]})
    else:
        typer.echo(f"{suite.RULE}\n{summary}")
    if num_passed < len(checks):
        raise typer.Exit(1)


@app.command()
def calibrate(
    factory: Annotated[
        str,
        typer.Argument(
            help="module:function that returns (model, batches, loss_fn, n_samples), the arguments "
            "of estimate_llc."
        ),
    ],
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint", help="Weights for the model: .safetensors, or a file of torch.save."
        ),
    ] = None,
    prefix: Annotated[
        str, typer.Option("--prefix", help="Take the keys that begin so, and cut it off.")
    ] = "",
    steps: Annotated[
        str, typer.Option("--steps", help="ε, separated by commas; else from the curvature.")
    ] = "",
    localizations: Annotated[
        str, typer.Option("--localizations", help="γ, separated by commas.")
    ] = "",
    n_betas: Annotated[
        str, typer.Option("--n-betas", help="nβ, separated by commas; else from n / log n.")
    ] = "",
    chains: Annotated[int | None, typer.Option("--chains", help="Chains of each point.")] = None,
    draws: Annotated[int | None, typer.Option("--draws", help="Draws of each chain.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the chains.")] = 0,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="HTML file to write; it opens offline.")
    ] = Path("calibration.html"),
    as_json: JsonOption = False,
) -> None:
    """Sweep ε × γ × nβ at a checkpoint, and recommend the settings of the sampler."""
    grid = {
        name: _numbers(text, option)
        for name, text, option in (
            ("steps", steps, "--steps"),
            ("localizations", localizations, "--localizations"),
            ("n_betas", n_betas, "--n-betas"),
        )
        if text
    }
    from phasewatch.monitor.reports.sweep_page import render_sweep
    from phasewatch.monitor.sampling.factory import load_checkpoint, load_subject
    from phasewatch.monitor.sampling.sweep import run_sweep

    subject = load_subject(factory)
    if checkpoint is not None:
        load_checkpoint(subject.model, checkpoint, prefix)
    check_writable(out, "--out")
    with counting("points of the sweep") as progress:
        found = run_sweep(
            subject, num_chains=chains, num_draws=draws, seed=seed, progress=progress, **grid
        )
    weights = "the weights of the factory" if checkpoint is None else f"weights of {checkpoint}"
    page = render_sweep(
        found, f"Calibration of {factory}", f"{weights} · n = {subject.n_samples:,}"
    )
    with writing(out, "--out"):
        out.write_text(page, encoding="utf-8")
    if as_json:
        print_json(_sweep_content(found))
        return
    say("\n".join(found.why))
    if found.recommended is not None:
        best = found.recommended
        say(
            f"recommended: SamplerConfig(step_size={best.step_size:.3g}, "
            f"localization={best.localization:g}, n_beta={best.n_beta:.6g})"
        )
    typer.echo(f"sweep of {len(found.grid)} points written to {out}")


def _numbers(text: str, option: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise PhasewatchError(
            f"{option} is {text!r}; it must be numbers separated by commas, for example 1e-5,1e-4"
        ) from error


def _sweep_content(found: Sweep) -> dict[str, Any]:
    """A sweep for scripts, without the traces."""

    def point(estimate: Estimate) -> dict[str, Any]:
        content: dict[str, Any] = plain(estimate)
        del content["chain_loss"]
        return content

    return {
        "recommended": None if found.recommended is None else point(found.recommended),
        "why": list(found.why),
        "grid": [point(estimate) for estimate in found.grid],
        "automatic": [point(estimate) for estimate in found.automatic],
    }


def _check_line(check: Check) -> str:
    verdict = "pass" if check.passed else "FAIL"
    line = (
        f"{check.name:30s} {check.truth:6.2f} {check.expected:8.2f} "
        f"{check.lambda_hat:8.3f} ± {check.lambda_stderr:5.3f} {check.error:+6.0%} "
        f"{check.status:11s} {verdict} {check.reason}"
    )
    return line.rstrip()


def _runs_table(found: list[RunInfo]) -> Table:
    table = new_table("", "run", "id", "state", "attempt", "step", "started")
    names = {run.id: run.name for run in found}
    for run in found:
        parent = run.branch_of and names.get(run.branch_of, run.branch_of[:8])
        branch = f" (branch of {parent} at step {run.branch_step})" if parent else ""
        cells = (
            f"{run.name}{branch}",
            run.id[:8],
            run.state.value,
            str(run.attempt),
            "–" if run.last_step is None else str(run.last_step),
            _when(run.started_at),
        )
        add_row(table, *cells)
    return table


def _headline(run: RunInfo) -> str:
    lines = [
        f"{run.name} ({run.id}): {run.state.value}" + (f", {run.reason}" if run.reason else "")
    ]
    if run.branch_of is not None:
        lines.append(f"branch of run {run.branch_of[:8]} at step {run.branch_step}")
    step = "no step yet" if run.last_step is None else f"step {run.last_step}"
    lines.append(
        f"attempt {run.attempt}, {step}, started {_when(run.started_at)} on {run.host}, "
        f"process {run.pid}, {_duration((run.ended_at or run.last_seen) - run.started_at)} long"
    )
    return printable("\n".join(lines))


def _forecast_table(rows: list[ForecastRow]) -> Table:
    table = new_table("expected at the start", "observable", *COLUMNS[1:-1], "needs")
    for row in rows:
        add_row(table, *row.cells)
    return table


def _streams_table(streams: list[StreamInfo], meanings: Meanings) -> Table:
    columns = ("name", "taken as", "unit", "count", "last step", "last value", "status")
    table = new_table("observed", *columns)
    for stream in streams:
        last = stream.last
        value = f"{last.value:.6g}" + ("" if last.stderr is None else f" ± {last.stderr:.2g}")
        meaning = str(meanings.of(stream.name))
        numbers = (str(stream.count), str(last.step), value)
        add_row(table, stream.name, meaning, stream.unit, *numbers, last.status)
    return table


def _when(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp).astimezone().strftime("%Y-%m-%d %H:%M")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


if __name__ == "__main__":
    main()
