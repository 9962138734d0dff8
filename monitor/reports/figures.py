"""The plotly figure of a report, and the chain traces behind it, as plain data."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from phasewatch.monitor.core.estimates import Estimate, EstimateStatus, Observation
from phasewatch.monitor.core.transitions import TransitionStatus
from phasewatch.monitor.reports.data import (
    KIND_COLOURS,
    LINE_COLOURS,
    Panel,
    Record,
    Series,
    is_constant,
    lines,
    panels,
    span,
    value_range,
)
from phasewatch.monitor.reports.html import finite

PANEL_PIXELS = 230
GAP_PIXELS = 34
TOP_PIXELS = 90
BOTTOM_PIXELS = 55

MAX_TRACED = 300
"""Measurements whose chains are kept in a report; of more, evenly spaced ones."""

MAX_TRACE_POINTS = 128
"""Points of one chain's trace that a report keeps."""

MAX_RUG = 300
"""Ticks drawn for values that are not finite."""

STATUS_SYMBOLS = {
    EstimateStatus.UNCONVERGED: "x",
    EstimateStatus.NEGATIVE: "triangle-down-open",
    EstimateStatus.DIVERGED: "diamond-open",
}


def overview(record: Record) -> dict[str, Any]:
    """Every stream against the step, one panel a group, transitions as bands over all of them.

    Returns:
        The figure as plotly.js reads it: `data` and `layout`, with names escaped.
    """
    found = panels(record.series.values())
    figure = go.Figure()
    heights = len(found) * PANEL_PIXELS + max(0, len(found) - 1) * GAP_PIXELS
    for index, panel in enumerate(found):
        top = 1 - index * (PANEL_PIXELS + GAP_PIXELS) / heights
        bottom = max(0.0, top - PANEL_PIXELS / heights)
        _add_panel(figure, panel, index + 1, (bottom, top))
    figure.update_layout(
        height=heights + TOP_PIXELS + BOTTOM_PIXELS,
        margin={"t": TOP_PIXELS, "b": BOTTOM_PIXELS, "l": 75, "r": 215},
        hovermode="closest",
        showlegend=True,
        font={"family": "system-ui, sans-serif", "size": 13},
        xaxis={
            "title": {"text": html.escape(record.step_label)},
            "anchor": f"y{len(found)}" if len(found) > 1 else "y",
            "range": [0, max(record.last_step, 1)],
            "showspikes": True,
            "spikemode": "across",
            "spikethickness": 1,
        },
    )
    _add_transitions(figure, record)
    spec: dict[str, Any] = figure.to_plotly_json()
    # A template of several kilobytes is all defaults; what we use of it is said above.
    spec["layout"].pop("template", None)
    return spec


def _add_panel(figure: go.Figure, panel: Panel, number: int, domain: tuple[float, float]) -> None:
    suffix = "" if number == 1 else str(number)
    axis: dict[str, Any] = {
        "domain": domain,
        "anchor": "x",
        "title": {"text": html.escape(panel.title), "font": {"size": 13}},
        "type": panel.scale,
        "gridcolor": "#E5E5E5",
        "zeroline": False,
        "exponentformat": "power" if panel.scale == "log" else "none",
    }
    if panel.scale == "linear" and is_constant(panel.series):
        axis["rangemode"] = "tozero"  # else the axis reaches one unit up and down, whatever it is
    limits = value_range(panel.series) if panel.series[0].is_measured else None
    if limits is not None:
        axis["range"] = limits
    figure.update_layout(
        {
            f"yaxis{suffix}": axis,
            f"legend{suffix}": {
                "y": domain[1],
                "yanchor": "top",
                "x": 1.01,
                "xanchor": "left",
                "font": {"size": 12},
            },
        }
    )
    place = {"xaxis": "x", "yaxis": f"y{suffix}", "legend": f"legend{suffix}"}
    for index, series in enumerate(panel.series):
        colour = LINE_COLOURS[index % len(LINE_COLOURS)]
        if series.is_measured:
            _add_measured(figure, series, colour, place)
        else:
            _add_exact(figure, series, colour, place, hidden=_is_part(series, panel))
        _add_rug(figure, series, suffix)


def _is_part(series: Series, panel: Panel) -> bool:
    """Parts would bury their total: they wait behind a click in the legend."""
    total, _, part = series.name.partition("/")
    return bool(part) and any(other.name == total for other in panel.series)


def _add_exact(
    figure: go.Figure, series: Series, colour: str, place: dict[str, str], *, hidden: bool
) -> None:
    drawn = lines(series.steps, series.values, series.ok)
    figure.add_scatter(
        x=_broken(series.steps[line].tolist() for line in drawn),
        y=_broken(_short(series.values[line]) for line in drawn),
        mode="lines" if any(len(line) > 1 for line in drawn) else "markers",
        name=html.escape(series.name),
        visible="legendonly" if hidden else True,
        line={"color": colour, "width": 1.8},
        **place,
    )


def _settings(observation: Observation) -> tuple[float, ...]:
    """What two values of λ̂ must share to be compared: n, nβ and γ."""
    made = observation.detail
    return () if made is None else (made.n_samples, made.n_beta, made.localization)


def _stretches(series: Series) -> list[list[NDArray[np.int64]]]:
    """Lines of points that passed, together as long as n, nβ and γ are the same.

    A line joins what may be compared, and joins nothing across a point that did not pass.
    """
    found: list[list[NDArray[np.int64]]] = []
    known: tuple[float, ...] | None = None
    for line in lines(series.steps, series.values, series.ok):
        made = [_settings(series.observations[i]) if series.observations else () for i in line]
        ends = [place for place in range(1, len(line)) if made[place] != made[place - 1]]
        for part, settings in zip(np.split(line, ends), [made[p] for p in (0, *ends)], strict=True):
            if settings == known:
                found[-1].append(part)
            else:
                found.append([part])
            known = settings
    return found


def _add_measured(figure: go.Figure, series: Series, colour: str, place: dict[str, str]) -> None:
    name = html.escape(series.name)
    for number, stretch in enumerate(_stretches(series)):
        _add_stretch(figure, series, stretch, colour, place, named=number == 0)
    for status, symbol in STATUS_SYMBOLS.items():
        chosen = [o for o in series.observations if o.status is status and math.isfinite(o.value)]
        if chosen:
            figure.add_scatter(
                x=[o.step for o in chosen],
                y=_short([o.value for o in chosen]),
                mode="markers",
                name=f"{name}: {status}",
                marker={"symbol": symbol, "size": 8, "color": "#595959"},
                text=[html.escape(o.reason) for o in chosen],
                hovertemplate="step %{x}<br>%{y:.4g}<br>%{text}<extra>" + str(status) + "</extra>",
                **place,
            )


def _broken(parts: Iterable[list[Any]]) -> list[Any]:
    """Parts of a line one after the other, with a gap between them."""
    found: list[Any] = []
    for part in parts:
        found += [None, *part] if found else part
    return found


def _add_stretch(
    figure: go.Figure,
    series: Series,
    drawn: list[NDArray[np.int64]],
    colour: str,
    place: dict[str, str],
    *,
    named: bool,
) -> None:
    """Lines through these points, and the bands of their errors."""
    errors = np.nan_to_num(series.stderrs)
    low, high = series.values - 2 * errors, series.values + 2 * errors
    name = html.escape(series.name)
    around = [np.concatenate([line, line[::-1]]) for line in drawn]
    edges = [np.concatenate([high[line], low[line][::-1]]) for line in drawn]
    figure.add_scatter(
        x=_broken(series.steps[line].tolist() for line in around),
        y=_broken(_short(edge) for edge in edges),
        fill="toself",
        fillcolor=_transparent(colour, 0.25),
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        name=f"{name}: ±2 standard errors",
        legendgroup=name,
        **({} if named else {"showlegend": False}),
        **place,
    )
    figure.add_scatter(
        x=_broken(series.steps[line].tolist() for line in drawn),
        y=_broken(_short(series.values[line]) for line in drawn),
        mode="lines+markers",
        name=name,
        legendgroup=name,
        line={"color": colour, "width": 1.8},
        marker={"size": 5},
        customdata=_broken(_short(errors[line]) for line in drawn),
        hovertemplate="step %{x}<br>%{y:.4g} ± %{customdata:.2g}<extra>" + name + "</extra>",
        **({} if named else {"showlegend": False}),
        **place,
    )


def _add_rug(figure: go.Figure, series: Series, suffix: str) -> None:
    """Ticks at the bottom of the panel where a value is not finite: no curve can show it."""
    for step in series.steps[~series.finite][:MAX_RUG].tolist():
        figure.add_shape(
            type="line",
            xref="x",
            yref=f"y{suffix} domain",
            x0=step,
            x1=step,
            y0=0,
            y1=0.06,
            line={"color": KIND_COLOURS["instability"], "width": 2},
        )


def _add_transitions(figure: go.Figure, record: Record) -> None:
    for index, transition in enumerate(record.transitions):
        first, last = span(transition, record.last_step)
        colour = KIND_COLOURS[transition.kind]
        withdrawn = transition.status is TransitionStatus.WITHDRAWN
        figure.add_shape(
            type="rect",
            xref="x",
            yref="paper",
            x0=first,
            x1=last,
            y0=0,
            y1=1,
            fillcolor=_transparent(colour, 0.05 if withdrawn else 0.16),
            line={"width": 1 if withdrawn else 0, "color": colour, "dash": "dot"},
            layer="below",
        )
        figure.add_shape(
            type="line",
            xref="x",
            yref="paper",
            x0=transition.detected_step,
            x1=transition.detected_step,
            y0=0,
            y1=1,
            line={"width": 1.5, "color": colour, "dash": "dash"},
        )
        late = transition.detected_step > record.last_step / 2
        figure.add_annotation(
            x=transition.detected_step,
            xref="x",
            y=1,
            yref="paper",
            yshift=6 + 20 * (index % 3),
            yanchor="bottom",
            xanchor="right" if late else "left",
            showarrow=False,
            text=f"{transition.kind} ({transition.status}) at {transition.detected_step:,}",
            bgcolor="white",
            bordercolor=colour,
            borderwidth=1,
            borderpad=2,
            font={"size": 12, "color": "black"},
        )


def chain_traces(series: Sequence[Series]) -> list[dict[str, Any]]:
    """Chains of every LLC measurement, with what its diagnostics said.

    Long traces are thinned to `MAX_TRACE_POINTS` evenly spaced draws, and of more than
    `MAX_TRACED` measurements evenly spaced ones are kept.
    """
    found = [(s.name, e) for s in series for e in s.estimates if e.chain_loss.size]
    if len(found) > MAX_TRACED:
        chosen = np.linspace(0, len(found) - 1, MAX_TRACED).round().astype(int)
        found = [found[i] for i in chosen]
    return [{"step": e.step, **chain_trace(f"{name} at step {e.step:,}", e)} for name, e in found]


def chain_trace(title: str, estimate: Estimate) -> dict[str, Any]:
    """What `CHAIN_SCRIPT` draws of one estimate."""
    draws = estimate.chain_loss.shape[1]
    kept = np.unique(np.linspace(0, draws - 1, min(draws, MAX_TRACE_POINTS)).round().astype(int))
    facts = {
        "λ̂": f"{estimate.lambda_hat:.4g} ± {estimate.lambda_stderr:.2g}",
        "status": f"{estimate.status}" + (f" ({estimate.reason})" if estimate.reason else ""),
        "loss at w*": f"{estimate.init_loss:.4g} nats",
        "from w*": f"{estimate.lambda_within:.4g}",
        "from outside": f"{estimate.lambda_outside:.4g}",
        "noise of the loss": estimate.noise or "none",
        "virial": f"{estimate.virial:.3g}",
        "drift": f"{estimate.drift:.2g}",
        "predicted heat": f"{estimate.step_inflation:.2g} from the step, "
        f"{estimate.batch_inflation:.2g} from minibatches",
        "acceptance": "–" if estimate.acceptance is None else f"{estimate.acceptance:.2f}",
        "ESS": f"{estimate.ess:.3g}",
        "R-hat": f"{estimate.rhat:.3g}",
        "nβ": f"{estimate.n_beta:.4g}",
        "n": f"{estimate.n_samples:,} × {estimate.sample_unit}"
        + (f" ({estimate.counted})" if estimate.counted else ""),
        "γ": f"{estimate.localization:.4g}",
        "step size": f"{estimate.step_size:.3g}",
        "draws": f"{estimate.num_chains} chains × {estimate.num_draws}, "
        f"{estimate.num_burnin} dropped",
        "resets": f"{estimate.num_resets}",
        "sampler": f"{estimate.sampler} ({estimate.engine})",
        "took": f"{estimate.duration_seconds:.2f} s",
    }
    return {
        "title": title,
        "draw": kept.tolist(),
        "loss": [_short(chain) for chain in estimate.chain_loss[:, kept]],
        "init": finite(estimate.init_loss),
        "facts": facts,
    }


def _short(values: Any) -> list[float | None]:
    return [finite(value) for value in np.asarray(values, dtype=np.float64).tolist()]


def _transparent(colour: str, alpha: float) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"
