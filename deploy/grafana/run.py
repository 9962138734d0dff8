"""The dashboard of one run."""

from __future__ import annotations

import re

from grafana_foundation_sdk.builders import common, dashboard
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models.dashboard import Threshold, ThresholdsMode
from panels import (
    BLUE,
    GREY,
    OKABE_ITO,
    SKY,
    SPLIT_COLORS,
    STATE_COLORS,
    STATUS_COLORS,
    VERMILLION,
    Built,
    assemble,
    choice,
    curves,
    fixed,
    last_seen,
    latest,
    list_of_transitions,
    new_dashboard,
    number,
    observables,
    passed,
    prop,
    queries,
    rising,
    run_values,
    standing,
    total_seen,
    transitions,
    transitions_by_api,
)

from phasewatch.monitor.core import metrics as m
from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.estimates import EstimateStatus

UID = "phasewatch-run"
RUN = 'run="$run", run_id=~"$run_id"'
BAND = 2  # standard errors on either side


def build() -> dashboard.Dashboard:
    """One run in full."""
    board = (
        new_dashboard(UID, "phasewatch: Run", "One watched training run.")
        .with_variable(choice("run", "Run", "The run that is shown.", run_values()))
        .with_variable(
            choice(
                "run_id",
                "Identity",
                "Which of the runs of that name; all of them are laid over each other.",
                f'label_values({m.RUN_STATE.name}{{run="$run"}}, run_id)',
                multi=True,
            )
        )
        .with_variable(
            choice(
                "llc",
                "λ̂ of",
                "The whole model (llc) and its parts, as far as they are measured.",
                f"label_values({m.LAMBDA_HAT.name}{{{RUN}}}, observable)",
                multi=True,
            )
        )
        .with_variable(
            choice(
                "family",
                "Observables",
                "Families of observables: what stands before the first slash of a name.",
                f"label_values({observables(RUN)}, observable)",
                regex="/^([^/]+)/",
                multi=True,
            )
        )
        .annotation(transitions(RUN))
        .annotation(transitions_by_api(["phasewatch", "run:$run"]))
    )
    rows: list[tuple[str, list[Built]]] = [
        ("", _figures()),
        ("Losses and learning coefficient", [_losses(), _lambda()]),
        ("Observables by family", [_family()]),
        ("Detectors and transitions", [_scores(), _found()]),
        ("Health of the estimates", _estimates()),
        ("Health of the monitor", _monitor()),
    ]
    return assemble(board, rows)


def _figures() -> list[Built]:
    state = number(
        "State",
        "What the run said of itself last. A run that was killed says nothing any more: see "
        "Overview.",
        f"{last_seen(m.RUN_STATE, 'state', RUN)} == 1",
        legend="{{state}}",
        names=True,
    )
    for name, color in STATE_COLORS.items():
        state = state.override_by_name(name.value, [fixed(color)])
    running = latest(m.RUN_STATE, "run", f'{RUN}, state="{RunState.RUNNING}"')
    return [
        state,
        number(
            "Step",
            "Optimizer steps completed.",
            last_seen(m.RUN_STEP, "run", RUN),
            unit="locale",
            decimals=0,
        ),
        number(
            "Steps a second",
            "Over the last drain of the observed values.",
            last_seen(m.STEPS_PER_SECOND, "run", RUN),
            decimals=1,
        ),
        number(
            "Since the last step",
            "Time since the monitor last heard of a step, while the run trains.",
            f"time() - {latest(m.LAST_STEP_TIMESTAMP, 'run', RUN)} and on (run) ({running} == 1)",
            unit="s",
            decimals=0,
            thresholds=((None, BLUE), (600, VERMILLION)),
            nothing="ended",
        ),
        number(
            "Transitions",
            "Confirmed transitions of this run.",
            standing(lambda metric: total_seen(metric, "run", RUN)),
            decimals=0,
        ),
        number(
            "Last onset",
            "Step at which the latest transition began. Empty before the first.",
            last_seen(m.LAST_TRANSITION_ONSET_STEP, "run", RUN),
            unit="locale",
            decimals=0,
        ),
    ]


def _losses() -> Built:
    return curves(
        "Losses",
        "Latest losses, in nats a sample, on a logarithmic scale.",
        queries((latest(m.LOSS, "split", RUN), "{{split}}")),
        width=24,
        label="nats",
        log=True,
        colors=SPLIT_COLORS,
    )


def _lambda() -> Built:
    """λ̂ with its error band; what did not pass its checks is grey and has no band."""
    where = f'{RUN}, observable="$llc"'
    value = latest(m.LAMBDA_HAT, "observable", where)
    error = latest(m.LAMBDA_STDERR, "observable", where)
    is_ok = f'{where}, status="{EstimateStatus.OK}"'
    ok = f"{latest(m.LLC_STATUS, 'observable', is_ok)} == 1"
    upper, lower = f"λ̂ + {BAND} s.e.", f"λ̂ − {BAND} s.e."
    edge = [fixed(SKY), prop("custom.lineWidth", 0), prop("custom.showPoints", "never")]
    quiet = prop("custom.hideFrom", {"legend": True, "tooltip": False, "viz": False})
    return (
        curves(
            "λ̂ of $llc",
            f"Local learning coefficient, with {BAND} standard errors on either side. Grey: the "
            "estimate did not pass its checks, see the health of the estimates below.",
            queries(
                (f"{value} and on (observable) ({ok})", "λ̂"),
                (f"{value} unless on (observable) ({ok})", "λ̂, not OK"),
                (f"({value} + {BAND} * {error}) and on (observable) ({ok})", upper),
                (f"({value} - {BAND} * {error}) and on (observable) ({ok})", lower),
            ),
            width=24,
            points=True,
            colors={"λ̂": BLUE},
        )
        .point_size(4)
        .line_interpolation(common_models.LineInterpolation.STEP_AFTER)
        .override_by_name(
            "λ̂, not OK", [fixed(GREY), prop("custom.lineStyle", {"fill": "dash", "dash": [6, 6]})]
        )
        .override_by_name(
            upper, [*edge, prop("custom.fillBelowTo", lower), prop("custom.fillOpacity", 20)]
        )
        .override_by_name(lower, [*edge, quiet])
        .repeat("llc")
        .repeat_direction("h")
        .max_per_row(2)
    )


def _family() -> Built:
    """One panel a family: the total and its parts share a unit."""
    where = f'{RUN}, observable=~"$family(/.*)?"'
    found = f"max by (observable, unit) ({observables(where)})"
    value = f"({passed(found, 'observable', where)})"
    failed = f"{latest(m.OBSERVABLE_OK, 'observable', where)} == 0"
    error = latest(m.OBSERVABLE_STDERR, "observable, unit", where)
    thin = [
        prop("custom.lineWidth", 1),
        prop("custom.lineStyle", {"fill": "dash", "dash": [2, 6]}),
        prop("custom.hideFrom", {"legend": True, "tooltip": False, "viz": False}),
    ]
    panel = curves(
        "$family",
        "Latest values, in the unit after the name. Thin lines: one standard error on either side, "
        "where a value has one. Grey: it did not pass its checks.",
        queries(
            (_unit_said(value), "{{observable}} {{unit}}"),
            (f"{value} + {error}", "{{observable}} + s.e."),
            (f"{value} - {error}", "{{observable}} − s.e."),
            (
                _unit_said(f"{found} and on (observable) ({failed})"),
                "{{observable}} {{unit}}, not OK",
            ),
        ),
        width=8,
        height=8,
    )
    for ref in ("B", "C"):
        panel = panel.override_by_query(ref, thin)
    doubtful = [fixed(GREY), prop("custom.lineStyle", {"fill": "dash", "dash": [6, 6]})]
    panel = panel.override_by_query("D", doubtful)
    return panel.repeat("family").repeat_direction("h").max_per_row(3)


def _unit_said(expr: str) -> str:
    """A plain number has no unit to be said."""
    return f'label_replace({expr}, "unit", "", "unit", "1")'


def _scores() -> Built:
    return curves(
        "Scores of the detectors",
        "Statistic of each stream's detector over its threshold. Above the line it is an alarm.",
        queries((latest(m.DETECTOR_SCORE, "observable", RUN), "{{observable}}")),
        width=24,
        log=True,
        linear_below=0.1,
    ).thresholds(_line(1)).thresholds_style(_dashed())  # fmt: skip


def _line(at: float) -> dashboard.ThresholdsConfig:
    return (
        dashboard.ThresholdsConfig()
        .mode(ThresholdsMode.ABSOLUTE)
        .steps(
            [
                Threshold(value=None, color="transparent"),
                Threshold(value=at, color=VERMILLION),
            ]
        )
    )


def _dashed() -> common.GraphThresholdsStyleConfig:
    return common.GraphThresholdsStyleConfig().mode(common_models.GraphThresholdsStyleMode.DASHED)


def _found() -> Built:
    return list_of_transitions(
        "Transitions told",
        "Each transition that was told in this time range, and each that was told again as another "
        "kind. Severity 1 is tenfold. The report of the run and its live page have the evidence "
        "and the place in the model.",
        RUN,
    )


def _estimates() -> list[Built]:
    return [
        curves(
            "Estimates by status",
            "Estimates from point to point: ok passed every check; unconverged did not; diverged "
            "left the neighbourhood; negative means that the weights are not at a local minimum.",
            queries((rising(m.ESTIMATES, "status", RUN), "{{status}}")),
            width=8,
            height=8,
            colors={status.value: color for status, color in STATUS_COLORS.items()},
        ),
        curves(
            "R-hat",
            "Of the chains of the latest estimate: near 1 where they agree.",
            queries((latest(m.LLC_RHAT, "observable", RUN), "{{observable}}")),
            width=8,
            height=8,
        ),
        curves(
            "Effective sample size",
            "Of the latest estimate, over all its chains.",
            queries((latest(m.LLC_ESS, "observable", RUN), "{{observable}}")),
            width=8,
            height=8,
            log=True,
        ),
    ]


def _monitor() -> list[Built]:
    summed = "_sum" if m.MEASUREMENT_SECONDS.type == "histogram" else ""
    seconds = f"rate({m.MEASUREMENT_SECONDS.name}{summed}{{{RUN}}}[$__rate_interval])"
    beside = f"rate({m.BESIDE_SECONDS.name}{{{RUN}}}[$__rate_interval])"
    queues = [metric for metric in m.METRICS if "_queue_" in metric.name]
    troubles = [
        metric
        for metric in m.METRICS
        if metric.type is m.MetricType.COUNTER and _TROUBLE.search(metric.name)
    ]
    around = [m.DENSE_WINDOWS, m.CHECKPOINTS]
    return [
        curves(
            "Overhead",
            "Share of wall time that monitoring takes, and may take; and the share of a processor "
            "that its own threads take beside training.",
            queries(
                (latest(m.OVERHEAD, "run", RUN), "taken"),
                (beside, "beside"),
                (latest(m.OVERHEAD_BUDGET, "run", RUN), "budget"),
            ),
            width=8,
            height=8,
            unit="percentunit",
            colors={"taken": BLUE, "beside": GREY, "budget": VERMILLION},
        ),
        curves(
            "Time in measurements",
            "Seconds of each second of wall time that measurements take, by observable.",
            queries((f"sum by (observable) ({seconds})", "{{observable}}")),
            width=8,
            height=8,
            unit="percentunit",
        ),
        curves(
            "Queues",
            "What waits to be written or sent, just after each drain. It should not grow.",
            queries(*((latest(metric, "run", RUN), _plain(metric)) for metric in queues)),
            width=8,
            height=8,
            colors=dict(zip(map(_plain, queues), OKABE_ITO, strict=False)),
        ),
        curves(
            "Troubles",
            "How many from point to point. All of them should stay at nought.",
            queries(*((rising(metric, "run", RUN), _plain(metric)) for metric in troubles)),
            width=24,
            height=8,
            colors=dict(zip(map(_plain, troubles), OKABE_ITO, strict=False)),
        ),
        curves(
            "Around suspicions",
            "Windows in which measurements came more often, and checkpoints that were written for "
            "what may be suspected, from point to point.",
            queries(*((rising(metric, "run", RUN), _plain(metric)) for metric in around)),
            width=12,
            height=8,
            colors=dict(zip(map(_plain, around), (BLUE, VERMILLION), strict=True)),
        ),
        curves(
            "Checkpoints kept",
            "What the checkpoints around suspected transitions take on disk.",
            queries((latest(m.CHECKPOINT_BYTES, "run", RUN), "kept")),
            width=12,
            height=8,
            unit="decbytes",
            colors={"kept": BLUE},
        ),
    ]


_TROUBLE = re.compile("fail|lost|dropped|thinned|unfinished|refused|nonfinite|skips|repairs")


def _plain(metric: m.Metric) -> str:
    """A metric's name as people say it."""
    return metric.name.removeprefix("phasewatch_").removesuffix("_total").replace("_", " ")
