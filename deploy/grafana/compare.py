"""The dashboard that lays runs and seeds over each other."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from panels import (
    EACH,
    Built,
    against_step,
    assemble,
    choice,
    curves,
    last_seen,
    latest,
    new_dashboard,
    observables,
    passed,
    prop,
    queries,
    rows_of,
    run_values,
    standing,
    total_seen,
    transitions,
    transitions_by_api,
    trusted,
)

from phasewatch.monitor.core import metrics as m

UID = "phasewatch-compare"
RUNS = 'run=~"$run"'
LLC = f'{RUNS}, observable="$llc"'
OTHER = f'{RUNS}, observable="$observable"'


def build() -> dashboard.Dashboard:
    """Chosen runs side by side: against their step, and over time."""
    board = (
        new_dashboard(UID, "phasewatch: Compare", "Runs and seeds laid over each other.")
        .with_variable(
            choice("run", "Runs", "Runs to lay over each other.", run_values(), multi=True)
        )
        .with_variable(
            choice(
                "llc",
                "λ̂ of",
                "The whole model (llc), or a part of it.",
                f"label_values({m.LAMBDA_HAT.name}{{{RUNS}}}, observable)",
            )
        )
        .with_variable(
            choice(
                "observable",
                "Observable",
                "What else to compare.",
                f"label_values({observables(RUNS)}, observable)",
            )
        )
        .annotation(transitions(RUNS).enable(False))
        .annotation(transitions_by_api(["phasewatch"]))
    )
    rows: list[tuple[str, list[Built]]] = [
        ("Against the training step", _against_step()),
        ("Over time", _over_time()),
        ("Last values", [_last()]),
    ]
    return assemble(board, rows)


def _quantities() -> list[tuple[str, str, str, bool]]:
    """Title, description, expression, and whether its scale is logarithmic."""
    return [
        (
            "λ̂",
            "Local learning coefficient, where the estimate passed its checks.",
            trusted(latest(m.LAMBDA_HAT, EACH, LLC), EACH, LLC),
            False,
        ),
        (
            "validation loss",
            "Validation loss, in nats a sample.",
            latest(m.LOSS, EACH, f'{RUNS}, split="val"'),
            True,
        ),
        (
            "training loss",
            "Training loss, in nats a sample.",
            latest(m.LOSS, EACH, f'{RUNS}, split="train"'),
            True,
        ),
        (
            "$observable",
            "The observable chosen above, in its own unit.",
            passed(f"max by ({EACH}) ({observables(OTHER)})", EACH, OTHER),
            False,
        ),
    ]


def _against_step() -> list[Built]:
    return [
        against_step(
            f"{title} against step",
            f"{description} A point is what a scrape saw: a value that is measured now and then "
            "stands until the next one comes.",
            expr,
            title,
            log=log,
        )
        for title, description, expr, log in _quantities()
    ]


def _over_time() -> list[Built]:
    return [
        curves(title, description, queries((expr, "{{run}}")), log=log)
        for title, description, expr, log in _quantities()
    ]


def _last() -> Built:
    return rows_of(
        "Last values of each run",
        "The last that was seen of each run in this time range; λ̂ only if it passed its checks.",
        {
            "step": last_seen(m.RUN_STEP, EACH, RUNS),
            "λ̂": trusted(last_seen(m.LAMBDA_HAT, EACH, LLC), EACH, LLC, seen=True),
            "±": trusted(last_seen(m.LAMBDA_STDERR, EACH, LLC), EACH, LLC, seen=True),
            "train loss": last_seen(m.LOSS, EACH, f'{RUNS}, split="train"'),
            "val loss": last_seen(m.LOSS, EACH, f'{RUNS}, split="val"'),
            "transitions": standing(lambda metric: total_seen(metric, EACH, RUNS)),
            "last onset": last_seen(m.LAST_TRANSITION_ONSET_STEP, EACH, RUNS),
        },
    ).override_by_name("λ̂", [prop("decimals", 2)]).override_by_name(
        "±", [prop("decimals", 2)]
    ).override_by_name("step", [prop("unit", "locale"), prop("decimals", 0)])  # fmt: skip
