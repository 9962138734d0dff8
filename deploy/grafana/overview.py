"""The dashboard of all runs."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from panels import (
    EACH,
    GREEN,
    SPLIT_COLORS,
    STATE_BACKGROUNDS,
    VERMILLION,
    Built,
    assemble,
    choice,
    curves,
    last_seen,
    latest,
    list_of_transitions,
    new_dashboard,
    number,
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
from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.estimates import EstimateStatus

UID = "phasewatch-overview"
RUNS = 'run=~"$run"'


def build() -> dashboard.Dashboard:
    """All runs at a glance: who trains, how far they are, what has been found."""
    board = new_dashboard(UID, "phasewatch: Overview", "All watched training runs.").with_variable(
        choice("run", "Runs", "Which runs are shown.", run_values(), multi=True)
    )
    board = board.annotation(transitions(RUNS)).annotation(transitions_by_api(["phasewatch"]))
    return assemble(board, [("", [*_figures(), _runs(), *_curves(), _found()])])


def _figures() -> list[Built]:
    running = latest(m.RUN_STATE, EACH, f'{RUNS}, state="{RunState.RUNNING}"')
    failed = last_seen(m.RUN_STATE, EACH, f'{RUNS}, state="{RunState.FAILED}"')
    count = standing(lambda metric: total_seen(metric, EACH, RUNS))
    estimates = last_seen(m.ESTIMATES, f"{EACH}, status", RUNS)
    good = last_seen(m.ESTIMATES, f"{EACH}, status", f'{RUNS}, status="{EstimateStatus.OK}"')
    was_running = (
        f'last_over_time({m.RUN_STATE.name}{{{RUNS}, state="{RunState.RUNNING}"}}[$__range]) == 1'
    )
    alarm = ((None, GREEN), (1, VERMILLION))
    return [
        number("Training", "Runs that train now.", f"sum({running}) or vector(0)", width=5),
        number(
            "Gone",
            "Runs that said they were training and whose endpoint is down now: killed or crashed.",
            f"count(({was_running}) and on (job, instance) up == 0) or vector(0)",
            width=5,
            thresholds=alarm,
        ),
        number(
            "Failed",
            "Runs that ended with an exception in this time range.",
            f"sum({failed}) or vector(0)",
            width=5,
            thresholds=alarm,
        ),
        number("Transitions", "Confirmed transitions of these runs.", f"sum({count}) or vector(0)"),
        number(
            "Estimates OK",
            "Share of the estimates of λ that passed every check.",
            f"sum({good}) / sum({estimates})",
            unit="percentunit",
            decimals=0,
            width=5,
        ),
    ]


def _runs() -> Built:
    llc = f'{RUNS}, observable="llc"'
    panel = rows_of(
        "Runs",
        "The last that was seen of each run in this time range; λ̂ only if it passed its checks. "
        "A click on a name opens the run.",
        {
            "is": f"{last_seen(m.RUN_STATE, f'{EACH}, state', RUNS)} == 1",
            "step": last_seen(m.RUN_STEP, EACH, RUNS),
            "steps/s": last_seen(m.STEPS_PER_SECOND, EACH, RUNS),
            "train loss": last_seen(m.LOSS, EACH, f'{RUNS}, split="train"'),
            "val loss": last_seen(m.LOSS, EACH, f'{RUNS}, split="val"'),
            "λ̂": trusted(last_seen(m.LAMBDA_HAT, EACH, llc), EACH, llc, seen=True),
            "±": trusted(last_seen(m.LAMBDA_STDERR, EACH, llc), EACH, llc, seen=True),
            "transitions": standing(lambda metric: total_seen(metric, EACH, RUNS)),
            "last onset": last_seen(m.LAST_TRANSITION_ONSET_STEP, EACH, RUNS),
            "overhead": last_seen(m.OVERHEAD, EACH, RUNS),
            "last step at": f"{last_seen(m.LAST_STEP_TIMESTAMP, EACH, RUNS)} * 1000",
        },
        hidden=("is",),
    )
    colours = {
        state.value: {"color": color, "text": state.value}
        for state, color in STATE_BACKGROUNDS.items()
    }
    mapping = [{"type": "value", "options": colours}]
    filled = {"type": "color-background", "mode": "basic"}
    link = {
        "title": "Open the run",
        "url": "/d/phasewatch-run?var-run=${__value.raw:percentencode}"
        "&var-run_id=${__data.fields.run_id:percentencode}"
        "&var-datasource=${datasource}&${__url_time_range}",
    }
    return (
        panel.override_by_name("run", [prop("links", [link])])
        .override_by_name("state", [prop("mappings", mapping), prop("custom.cellOptions", filled)])
        .override_by_name("step", [prop("unit", "locale"), prop("decimals", 0)])
        .override_by_name("λ̂", [prop("decimals", 2)])
        .override_by_name("±", [prop("decimals", 2)])
        .override_by_name("overhead", [prop("unit", "percentunit"), prop("decimals", 1)])
        .override_by_name(
            "last step at", [prop("unit", "dateTimeFromNow"), prop("custom.minWidth", 130)]
        )
    )


def _curves() -> list[Built]:
    llc = f'{RUNS}, observable="llc"'
    return [
        curves(
            "λ̂",
            "Latest estimate of the local learning coefficient of each run's whole model, where it "
            "passed its checks. Its error is on the dashboard of the run.",
            queries((trusted(latest(m.LAMBDA_HAT, EACH, llc), EACH, llc), "{{run}}")),
            width=24,
        ),
        *(
            curves(
                f"{name} loss",
                f"Latest {name} loss of each run, in nats a sample.",
                queries((latest(m.LOSS, EACH, f'{RUNS}, split="{split}"'), "{{run}}")),
                label="nats",
                log=True,
            )
            for split, name in zip(SPLIT_COLORS, ("Training", "Validation"), strict=False)
        ),
    ]


def _found() -> Built:
    return list_of_transitions(
        "Transitions told",
        "Each transition that was told in this time range, and each that was told again as another "
        "kind. Severity 1 is tenfold.",
        RUNS,
    )
