"""What the dashboards have in common: queries, panels, colours, variables, links."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    prometheus,
    stat,
    table,
    timeseries,
    xychart,
)
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from grafana_foundation_sdk.models.xychart import SeriesMapping, XYShowMode

from phasewatch.monitor.core import metrics as m
from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.estimates import EstimateStatus

TAG = "phasewatch"
SOURCE = common_models.DataSourceRef(type_val="prometheus", uid="${datasource}")
EACH = "run, run_id"
"""What tells runs apart: two may have the same name."""
NARROWEST = 80
"""Least width of a column, in pixels; Grafana's own is 150, and a laptop has room for nine."""
REFERENCES = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

# Okabe and Ito's colours, told apart with any common colour vision.
BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, GREY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#E69F00",
    "#CC79A7",
    "#56B4E9",
    "#999999",
)
OKABE_ITO = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, GREY, "#F0E442")
SPLIT_COLORS = {"train": BLUE, "val": VERMILLION, "test": GREEN}
STATUS_COLORS = {
    EstimateStatus.OK: BLUE,
    EstimateStatus.UNCONVERGED: ORANGE,
    EstimateStatus.DIVERGED: VERMILLION,
    EstimateStatus.NEGATIVE: PURPLE,
}
STATE_COLORS = {
    RunState.RUNNING: BLUE,
    RunState.FINISHED: GREEN,
    RunState.STOPPED: GREEN,
    RunState.FAILED: VERMILLION,
    RunState.INTERRUPTED: ORANGE,
}

STATE_BACKGROUNDS = {
    RunState.RUNNING: "#0072B2",
    RunState.FINISHED: "#00734F",
    RunState.STOPPED: "#00734F",
    RunState.FAILED: "#B04A00",
    RunState.INTERRUPTED: "#8F6200",
}
"""The same, dark enough for white letters on them: small ones in those colours are too faint."""

Built = stat.Panel | table.Panel | timeseries.Panel | xychart.Panel
PanelT = TypeVar("PanelT", stat.Panel, table.Panel, timeseries.Panel, xychart.Panel)


def latest(metric: m.Metric, by: str, where: str) -> str:
    """The newest value by some labels. A resumed run may be at two addresses: neither is a label.

    Args:
        metric: The metric.
        by: Labels that stay, separated by commas.
        where: Label matchers.
    """
    return f"max by ({by}) ({metric.name}{{{where}}})"


def last_seen(metric: m.Metric, by: str, where: str) -> str:
    """The last value within the dashboard's time range, of runs that have ended too."""
    return f"max by ({by}) (last_over_time({metric.name}{{{where}}}[$__range]))"


def trusted(expr: str, by: str, where: str, *, seen: bool = False) -> str:
    """Estimates of λ, or their errors, where the status of the estimate is OK.

    Args:
        expr: Their values.
        by: Labels they have.
        where: Label matchers of the estimates.
        seen: Whether the values are the last within the time range.
    """
    of = last_seen if seen else latest
    status = of(m.LLC_STATUS, by, f'{where}, status="{EstimateStatus.OK}"')
    return f"{expr} and on ({by}) ({status} == 1)"


def passed(expr: str, by: str, where: str) -> str:
    """Values of observables without those that did not pass their checks."""
    return f"{expr} unless on ({by}) ({latest(m.OBSERVABLE_OK, by, where)} == 0)"


def total_seen(metric: m.Metric, by: str, where: str) -> str:
    """A counter's last value within the dashboard's time range, summed over its other labels."""
    return f"sum by ({by}) (last_over_time({metric.name}{{{where}}}[$__range]))"


def rising(metric: m.Metric, by: str, where: str) -> str:
    """By how much a counter rises from one point of a curve to the next."""
    return f"sum by ({by}) (increase({metric.name}{{{where}}}[$__rate_interval]))"


def standing(total: Callable[[m.Metric], str]) -> str:
    """Transitions, each under the kind it has now; `total` says how a counter is summed."""
    told = total(m.TRANSITIONS)
    return f"({told} - {total(m.CORRECTED)} or {told})"  # of old data there is the first alone


def observables(where: str) -> str:
    """Series of every observable that has no place of its own: no loss, no estimate."""
    own = (
        m.OBSERVABLE_STDERR,
        m.OBSERVABLE_OK,
        m.LAMBDA_HAT,
        m.LAMBDA_STDERR,
        m.LLC_STATUS,
        m.LLC_RHAT,
        m.LLC_ESS,
    )
    names = [
        metric.name
        for metric in m.METRICS
        if metric.type is m.MetricType.GAUGE
        and "observable" in metric.labels
        and metric not in (*own, m.DETECTOR_SCORE)
    ]
    return f'{{__name__=~"{"|".join(names)}", {where}}}'


def query(
    expr: str, legend: str = "", *, ref: str = "A", table: bool = False, instant: bool = False
) -> prometheus.Dataquery:
    """One PromQL query."""
    built = prometheus.Dataquery().expr(expr).ref_id(ref).datasource(SOURCE)
    built = built.instant() if instant else built.range()
    if table:
        built = built.format(PromQueryFormat.TABLE)
    return built.legend_format(legend) if legend else built


def queries(*pairs: tuple[str, str]) -> list[prometheus.Dataquery]:
    """Queries from pairs of expression and legend."""
    return [
        query(expr, legend, ref=ref) for (expr, legend), ref in zip(pairs, REFERENCES, strict=False)
    ]


def _dressed(
    panel: PanelT,
    title: str,
    description: str,
    targets: Sequence[prometheus.Dataquery],
    *,
    width: int,
    height: int,
    unit: str,
) -> PanelT:
    panel = panel.title(title).description(description).datasource(SOURCE)
    panel = panel.targets([*targets]).span(width).height(height)
    return panel.unit(unit) if unit else panel


def curves(
    title: str,
    description: str,
    targets: Sequence[prometheus.Dataquery],
    *,
    width: int = 12,
    height: int = 9,
    unit: str = "",
    label: str = "",
    log: bool = False,
    linear_below: float = 0.0,
    points: bool = False,
    colors: Mapping[str, str] | None = None,
) -> timeseries.Panel:
    """Curves over time. `colors` are those of series known by name.

    A logarithmic axis is linear below `linear_below`, where that is given: for values around zero.
    """
    panel = _dressed(
        timeseries.Panel(), title, description, targets, width=width, height=height, unit=unit
    )
    panel = (
        panel.legend(
            common.VizLegendOptions()
            .display_mode(common_models.LegendDisplayMode.LIST)
            .placement(common_models.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(
            common.VizTooltipOptions()
            .mode(common_models.TooltipDisplayMode.MULTI)
            .sort(common_models.SortOrder.DESCENDING)
        )
        .line_width(2)
        .fill_opacity(0)
        .show_points(
            common_models.VisibilityMode.ALWAYS if points else common_models.VisibilityMode.NEVER
        )
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
    )
    if label:
        panel = panel.axis_label(label)
    if log:
        scale = common.ScaleDistributionConfig().log(10)
        kinds = common_models.ScaleDistribution
        panel = panel.scale_distribution(
            scale.type(kinds.SYMLOG).linear_threshold(linear_below)
            if linear_below
            else scale.type(kinds.LOG)
        )
    for name, color in (colors or {}).items():
        panel = panel.override_by_name(name, [fixed(color)])
    return panel


def number(
    title: str,
    description: str,
    expr: str,
    *,
    unit: str = "",
    width: int = 4,
    legend: str = "",
    decimals: int | None = None,
    thresholds: Sequence[tuple[float | None, str]] = ((None, BLUE),),
    names: bool = False,
    nothing: str = "–",
) -> stat.Panel:
    """One figure; with `names`, the name of the series in place of its value."""
    panel = _dressed(
        stat.Panel(),
        title,
        description,
        [query(expr, legend, instant=True)],
        width=width,
        height=4,
        unit=unit,
    )
    text = common_models.BigValueTextMode.NAME if names else common_models.BigValueTextMode.VALUE
    panel = (
        panel.text_mode(text)
        .graph_mode(common_models.BigValueGraphMode.NONE)
        .color_mode(common_models.BigValueColorMode.VALUE)
        .no_value(nothing)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(
            dashboard.ThresholdsConfig()
            .mode(models.ThresholdsMode.ABSOLUTE)
            .steps([models.Threshold(value=value, color=color) for value, color in thresholds])
        )
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
    )
    return panel if decimals is None else panel.decimals(decimals)


def rows_of(
    title: str,
    description: str,
    columns: Mapping[str, str],
    *,
    width: int = 24,
    height: int = 9,
    hidden: Sequence[str] = (),
) -> table.Panel:
    """A table with a row for each set of labels, joined over columns.

    Args:
        title: Title.
        description: Description.
        columns: Expression by column title; an expression's labels are columns of their own.
        width: Of 24.
        height: In grid units.
        hidden: Columns not to be shown.
    """
    titles = dict(zip(REFERENCES, columns, strict=False))
    targets = [
        query(expr, ref=ref, table=True, instant=True)
        for expr, ref in zip(columns.values(), REFERENCES, strict=False)
    ]
    panel = _dressed(
        table.Panel(), title, description, targets, width=width, height=height, unit=""
    )
    # One query alone is called "Value", several are called "Value #A" and so on.
    names = {f"Value #{ref}": title for ref, title in titles.items()}
    if len(titles) == 1:
        names = {"Value": titles["A"]}
    excluded = dict.fromkeys(("Time", *(n for n in names if names[n] in hidden)), True)
    panel = panel.transformations(
        [
            models.DataTransformerConfig(id_val="merge", options={}),
            models.DataTransformerConfig(
                id_val="organize",
                options={"excludeByName": excluded, "renameByName": names, "indexByName": {}},
            ),
        ]
    )
    return _fitting(panel)


def _fitting(panel: table.Panel) -> table.Panel:
    """Columns narrow enough that a laptop shows all; an identity is there for links alone."""
    return (
        panel.min_width(NARROWEST)
        .override_by_name("run", [prop("custom.minWidth", 2 * NARROWEST)])
        .override_by_name("run_id", [prop("custom.hidden", True)])
    )


def list_of_transitions(title: str, description: str, where: str) -> table.Panel:
    """A table with a row for each transition that was told within the time range.

    A row is where a counter rises between two points of a range query that lie as far apart as
    they look back: each rise is seen once. The exporter tells the figures of the latest transition
    alone, so two within one interval both have those of the later.
    """
    told = f"sum by ({EACH}, kind, observable) ({m.TRANSITIONS.name}{{{where}}})"
    before = told.replace("})", "} offset $__interval)")
    rise = f"clamp((({told} - {before}) > 0) or (({told} unless {before}) > 0), 1, 1)"
    figures = {
        "began at step": m.LAST_TRANSITION_ONSET_STEP,
        "detected at step": m.LAST_TRANSITION_STEP,
        "severity": m.LAST_TRANSITION_SEVERITY,
    }
    targets = [
        query(
            f"{rise} * on ({EACH}) group_left () {latest(metric, EACH, where)}", ref=ref, table=True
        )
        for metric, ref in zip(figures.values(), REFERENCES, strict=False)
    ]
    columns = ["Time", "run", "kind", "observable", *(f"Value #{r}" for r in REFERENCES[:3])]
    titles = ["detected", "run", "kind", "seen first by", *figures]
    panel = _dressed(table.Panel(), title, description, targets, width=24, height=7, unit="")
    panel = panel.interval("5s").max_data_points(5000)
    panel = panel.transformations(
        [
            models.DataTransformerConfig(id_val="merge", options={}),
            models.DataTransformerConfig(
                id_val="organize",
                options={
                    "excludeByName": {},
                    "renameByName": dict(zip(columns, titles, strict=True)),
                    "indexByName": {name: place for place, name in enumerate(columns)},
                },
            ),
        ]
    )
    panel = panel.override_by_name("detected", [prop("custom.minWidth", 2 * NARROWEST)])
    for name in ("began at step", "detected at step"):
        panel = panel.override_by_name(name, [prop("unit", "locale"), prop("decimals", 0)])
    return _fitting(panel.override_by_name("severity", [prop("decimals", 2)]))


def against_step(
    title: str,
    description: str,
    expr: str,
    name: str,
    *,
    log: bool = False,
    width: int = 12,
) -> xychart.Panel:
    """Curves of all chosen runs against their training step.

    Both queries give a table with columns Time, run and value. They are merged into one table and
    cut into one frame a run. The chart takes the first number of a frame for x and draws the others
    against it; it knows no colours but fixed ones and those of the classic palette.
    """
    targets = [
        query(latest(m.RUN_STEP, EACH, 'run=~"$run"'), ref="A", table=True),
        query(expr, ref="B", table=True),
    ]
    panel = _dressed(xychart.Panel(), title, description, targets, width=width, height=10, unit="")
    panel = (
        panel.transformations(
            [
                models.DataTransformerConfig(id_val="merge", options={}),
                models.DataTransformerConfig(
                    id_val="organize",
                    options={
                        "excludeByName": {},
                        "renameByName": {"Value #A": "step", "Value #B": name},
                        "indexByName": {
                            "Time": 0,
                            "run": 1,
                            "run_id": 2,
                            "Value #A": 3,
                            "Value #B": 4,
                        },
                    },
                ),
                models.DataTransformerConfig(
                    id_val="partitionByValues",
                    options={
                        "fields": ["run", "run_id"],
                        "naming": {"asLabels": True},
                        "keepFields": False,
                    },
                ),
            ]
        )
        .mapping(SeriesMapping.AUTO)
        .series([])
        .show(XYShowMode.POINTS_AND_LINES)
        .point_size(xychart.XychartFieldConfigPointSize().fixed(3))
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.PALETTE_CLASSIC))
        .legend(
            common.VizLegendOptions()
            .display_mode(common_models.LegendDisplayMode.LIST)
            .placement(common_models.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.SINGLE))
        .max_data_points(500)
        .override_by_name("step", [prop("custom.axisLabel", "training step")])
    )
    if log:
        panel = panel.override_by_name(
            name, [prop("custom.scaleDistribution", {"type": "log", "log": 10})]
        )
    return panel


def prop(key: str, value: object) -> models.DynamicConfigValue:
    """One property of an override."""
    return models.DynamicConfigValue(id_val=key, value=value)


def fixed(color: str) -> models.DynamicConfigValue:
    """A series' own colour."""
    return prop("color", {"mode": "fixed", "fixedColor": color})


def source_variable() -> dashboard.DatasourceVariable:
    """The Prometheus to ask."""
    return (
        dashboard.DatasourceVariable("datasource")
        .label("Prometheus")
        .description("The Prometheus that scrapes the runs.")
        .type("prometheus")
    )


def choice(
    name: str,
    label: str,
    description: str,
    values: str,
    *,
    regex: str = "",
    multi: bool = False,
    hide: bool = False,
) -> dashboard.QueryVariable:
    """A variable whose values Prometheus knows, within the time range of the dashboard."""
    variable = (
        dashboard.QueryVariable(name)
        .label(label)
        .description(description)
        .datasource(SOURCE)
        .query(values)
        .definition(values)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .regex(regex)
        .multi(multi)
        .include_all(multi)
    )
    if multi:
        variable = variable.current(
            models.VariableOption(selected=True, text=["All"], value=["$__all"])
        )
    return variable.hide(models.VariableHide.HIDE_VARIABLE) if hide else variable


def run_values() -> str:
    """The runs that were there."""
    return f"label_values({m.RUN_STATE.name}, run)"


def new_dashboard(uid: str, title: str, description: str) -> dashboard.Dashboard:
    """An empty dashboard with what all of them share."""
    return (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags([TAG])
        .timezone("browser")
        .editable()
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .time("now-3h", "now")
        .refresh("10s")
        .with_variable(source_variable())
        .link(
            dashboard.DashboardLink("phasewatch")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .tooltip("The other dashboards of phasewatch")
            .as_dropdown(False)
            .include_vars(True)
            .keep_time(True)
        )
    )


def assemble(
    board: dashboard.Dashboard, rows: Sequence[tuple[str, Sequence[Built]]]
) -> dashboard.Dashboard:
    """Put panels on a dashboard, row by row, with ids that follow from their place."""
    ids = itertools.count(1)
    for title, panels in rows:
        if title:
            board = board.with_row(dashboard.Row(title).id(next(ids)))
        for panel in panels:
            board = board.with_panel(panel.id(next(ids)))
    return board


def transitions(matcher: str) -> dashboard.AnnotationQuery:
    """Transitions as marks, each at the time it was detected, named by its kind.

    The value of a sample is the time of the mark. It is there while the counter of a kind has
    risen within the last scrapes, so the mark carries the kind. Of two kinds within that time the
    first is marked at the second's time too: the exporter tells the time of the latest alone.
    """
    series = f"{m.TRANSITIONS.name}{{{matcher}}}"
    count = f"sum by ({EACH}, kind) ({series})"
    before = f"sum by ({EACH}, kind) ({series} offset $__rate_interval)"
    when = latest(m.LAST_TRANSITION_TIMESTAMP, EACH, matcher)
    expr = (
        f"clamp((({count} - {before}) > 0) or (({count} unless {before}) > 0), 1, 1)"
        f" * on ({EACH}) group_left () ({when} * 1000)"
    )
    return (
        dashboard.AnnotationQuery()
        .name("Transitions")
        .datasource(SOURCE)
        .enable(True)
        .icon_color(VERMILLION)
        .expr(expr)
        .title_format("{{kind}}")
        .text_format("{{run}}")
        .tag_keys("kind,run")
        .use_value_for_time(True)
        .step("5s")  # else a minute, and kinds that follow each other closely are mixed up
    )


def transitions_by_api(tags: Sequence[str]) -> dashboard.AnnotationQuery:
    """Regions that phasewatch writes through Grafana's own API, where that is configured."""
    return (
        dashboard.AnnotationQuery()
        .name("Transitions (written by phasewatch)")
        .datasource(common_models.DataSourceRef(type_val="grafana", uid="-- Grafana --"))
        .enable(False)
        .icon_color(PURPLE)
        .target(_Tagged(tags))
    )


class _Tagged(Dataquery, Builder[Dataquery]):
    """The query of an annotation by tags; the SDK has no model of it."""

    def __init__(self, tags: Sequence[str]) -> None:
        self._tags = [*tags]

    def build(self) -> Dataquery:
        return self

    def to_json(self) -> dict[str, object]:
        return {"type": "tags", "tags": self._tags, "limit": 100, "matchAny": False}
