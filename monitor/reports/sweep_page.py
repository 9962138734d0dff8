"""A calibration sweep on one page: λ̂ against the step, surfaces, traces, the recommendation."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from plotly.offline import get_plotlyjs

from phasewatch.monitor.core.estimates import Estimate, EstimateStatus
from phasewatch.monitor.reports.chains import chain_trace
from phasewatch.monitor.reports.data import LINE_COLOURS
from phasewatch.monitor.reports.html import chain_box, document, finite, static, table

if TYPE_CHECKING:
    from phasewatch.monitor.sampling.sweep import Sweep

FONT = {"family": "system-ui, sans-serif", "size": 13}
ROW_PIXELS = 42
"""Height of a row of a surface."""

STATUS_LETTERS = {
    EstimateStatus.UNCONVERGED: "u",
    EstimateStatus.NEGATIVE: "n",
    EstimateStatus.DIVERGED: "×",
}


def render_sweep(sweep: Sweep, title: str, subtitle: str) -> str:
    """The page, as HTML.

    Args:
        sweep: What was measured.
        title: What was calibrated, in plain text.
        subtitle: Where its weights come from, in plain text.
    """
    points = (*sweep.grid, *sweep.automatic)
    chains = [
        chain_trace(
            _settings(point) + (" (automatic step)" if at >= len(sweep.grid) else ""), point
        )
        for at, point in enumerate(points)
    ]
    shown = 0 if sweep.recommended is None else sweep.grid.index(sweep.recommended)
    body = [
        f'<p class="sub">{html.escape(subtitle)}</p>',
        _recommendation(sweep),
        "<h2>λ̂ against the step size</h2>",
        '<div id="curves"></div>',
        '<p class="note">At the nβ of the recommendation. Bars are ±2 standard errors; open marks '
        "did not pass their checks; stars are the automatic step. Click a point or a cell to see "
        "its chains.</p>",
        "<h2>Surfaces</h2>",
        '<div id="surfaces"></div>',
        f'<p class="note">{_surface_note(sweep)}</p>',
        chain_box(chains, f"Traces of the chains of all {len(chains)} points", shown=shown),
        _table(points, len(sweep.grid)),
    ]
    figures = {"curves": _curves(sweep), "surfaces": _surfaces(sweep)}
    scripts = (get_plotlyjs(), static("chains.js"), static("sweep.js"))
    return document(title, body, {"figures": figures, "chains": chains}, *scripts)


def _settings(point: Estimate) -> str:
    return f"ε = {point.step_size:.3g}, γ = {point.localization:g}, nβ = {point.n_beta:.4g}"


def _recommendation(sweep: Sweep) -> str:
    why = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sweep.why)
    best = sweep.recommended
    if best is None:
        return f'<p class="found none">No point of the grid can be recommended.</p><ul>{why}</ul>'
    found = f"{_settings(best)} gives λ̂ = {best.lambda_hat:.4g} ± {best.lambda_stderr:.2g}"
    return f'<p class="found">Recommended: {html.escape(found)}</p><ul>{why}</ul>'


def _surface_note(sweep: Sweep) -> str:
    second = (
        "Acceptance is the share of steps that a Metropolis test would let pass."
        if _has_acceptance(sweep)
        else "The virial V is 1 in equilibrium: below, the chains are too short or the steps too "
        "small; above, the steps are too large."
    )
    return (
        f"{second} u: unconverged, n: negative, ×: diverged. The frame marks the recommended point."
    )


# ---- figures


def _curves(sweep: Sweep) -> dict[str, Any]:
    """λ̂ against ε, a line for each γ, at the nβ of the recommendation."""
    n_betas = sorted({point.n_beta for point in sweep.grid})
    best = sweep.recommended
    n_beta = n_betas[len(n_betas) // 2] if best is None else best.n_beta
    data = []
    for index, gamma in enumerate(sorted({point.localization for point in sweep.grid})):
        look = {"color": LINE_COLOURS[index % len(LINE_COLOURS)], "legendgroup": f"{gamma:g}"}
        is_here = [(p.n_beta, p.localization) == (n_beta, gamma) for p in sweep.grid]
        chosen = [at for at, here in enumerate(is_here) if here]
        data.append(_curve([sweep.grid[at] for at in chosen], chosen, f"γ = {gamma:g}", **look))
        for at, point in enumerate(sweep.automatic):
            if (point.n_beta, point.localization) == (n_beta, gamma):
                star = _curve([point], [len(sweep.grid) + at], "", **look)
                star["marker"] |= {"symbol": "star", "size": 14}
                data.append({**star, "showlegend": False})
    if best is not None:
        ring = {"symbol": "circle-open", "size": 20, "color": "#000000", "line": {"width": 2}}
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "recommended",
                "x": [best.step_size],
                "y": [finite(best.lambda_hat)],
                "customdata": [sweep.grid.index(best)],
                "marker": ring,
            }
        )
    layout: dict[str, Any] = {
        "height": 420,
        "margin": {"t": 20, "b": 55, "l": 75, "r": 20},
        "font": FONT,
        "hovermode": "closest",
        "xaxis": {"type": "log", "title": {"text": "step size ε"}, "exponentformat": "power"},
        "yaxis": {"title": {"text": f"λ̂ at nβ = {n_beta:.4g}"}},
    }
    limits = _limits([point for point in sweep.grid if point.n_beta == n_beta])
    if limits is not None:
        layout["yaxis"]["range"] = limits
    return {"data": data, "layout": layout}


def _curve(
    points: Sequence[Estimate], indices: Sequence[int], name: str, *, color: str, legendgroup: str
) -> dict[str, Any]:
    is_ok = [point.status is EstimateStatus.OK for point in points]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "legendgroup": legendgroup,
        "x": [point.step_size for point in points],
        "y": [finite(point.lambda_hat) for point in points],
        "error_y": {"array": [finite(2 * point.lambda_stderr) for point in points]},
        "customdata": list(indices),
        "text": [html.escape(f"{point.status} {point.reason}") for point in points],
        "hovertemplate": "ε = %{x:.3g}<br>λ̂ = %{y:.4g}<br>%{text}<extra>" + name + "</extra>",
        "line": {"color": color, "width": 1.8},
        "marker": {
            "color": color,
            "size": 8,
            "symbol": ["circle" if ok else "circle-open" for ok in is_ok],
        },
    }


def _limits(points: Sequence[Estimate]) -> list[float] | None:
    """The range of what settled, with room around it: one that burst would flatten the rest."""
    settled = [point for point in points if point.status is EstimateStatus.OK]
    if not settled:
        return None
    low = min(point.lambda_hat - 2 * point.lambda_stderr for point in settled)
    high = max(point.lambda_hat + 2 * point.lambda_stderr for point in settled)
    room = 0.15 * (high - low)
    return [low - room, high + room]


def _has_acceptance(sweep: Sweep) -> bool:
    return any(point.acceptance is not None for point in sweep.grid)


def _surfaces(sweep: Sweep) -> dict[str, Any]:
    """λ̂ above, acceptance (or the virial) below; ε across and γ up, one column for each nβ."""
    n_betas = sorted({point.n_beta for point in sweep.grid})
    num_gammas = len({point.localization for point in sweep.grid})
    limits = _limits(sweep.grid) or [0.0, 1.0]
    acceptance = _has_acceptance(sweep)
    rows = (
        ("λ̂", {"colorscale": "Viridis", "zmin": limits[0], "zmax": limits[1]}),
        ("acceptance", {"colorscale": "Cividis", "zmin": 0.0, "zmax": 1.0})
        if acceptance
        else ("virial V", {"colorscale": "RdBu", "zmin": 0.0, "zmax": 2.0}),
    )
    data, layout = [], _surface_layout(num_gammas)
    for row, (title, look) in enumerate(rows):
        for column, n_beta in enumerate(n_betas):
            number = row * len(n_betas) + column + 1
            suffix = "" if number == 1 else str(number)
            surface = _surface(sweep, n_beta, title)
            bar = {"title": {"text": title}, "len": 0.46, "y": 0.77 - 0.54 * row}
            data.append(
                {
                    **surface,
                    **look,
                    "xaxis": f"x{suffix}",
                    "yaxis": f"y{suffix}",
                    "showscale": column == 0,
                    "colorbar": bar,
                }
            )
            width, gap = 1 / len(n_betas), 0.02
            name = f"{title} at nβ = {n_beta:.4g}"
            layout[f"xaxis{suffix}"] = {
                "type": "category",
                "domain": [column * width + gap * (column > 0), (column + 1) * width - gap],
                "anchor": f"y{suffix}",
                "title": {"text": "step size ε" if row == 1 else "", "standoff": 8},
                "tickangle": 0,
                "tickfont": {"size": 10},
                "showgrid": False,
            }
            layout[f"yaxis{suffix}"] = {
                "type": "category",
                "domain": [0.54 * (1 - row), 0.54 * (1 - row) + 0.42],
                "anchor": f"x{suffix}",
                "title": {"text": "γ" if column == 0 else ""},
                "showticklabels": column == 0,
                "showgrid": False,
            }
            layout["annotations"].append(
                {
                    "text": name,
                    "showarrow": False,
                    "xref": f"x{suffix} domain",
                    "yref": f"y{suffix} domain",
                    "x": 0,
                    "y": 1,
                    "yanchor": "bottom",
                    "xanchor": "left",
                }
            )
            if sweep.recommended is not None and sweep.recommended.n_beta == n_beta:
                layout["shapes"].append(_frame(sweep, sweep.recommended, suffix))
    return {"data": data, "layout": layout}


def _surface_layout(num_gammas: int) -> dict[str, Any]:
    return {
        "height": 2 * num_gammas * ROW_PIXELS + 240,
        "margin": {"t": 30, "b": 60, "l": 60, "r": 20},
        "font": FONT,
        "plot_bgcolor": "#E5E5E5",
        "shapes": [],
        "annotations": [],
    }


def _surface(sweep: Sweep, n_beta: float, title: str) -> dict[str, Any]:
    steps = sorted({point.step_size for point in sweep.grid})
    gammas = sorted({point.localization for point in sweep.grid})
    at = {
        (point.step_size, point.localization): index
        for index, point in enumerate(sweep.grid)
        if point.n_beta == n_beta
    }
    indices = [[at[step, gamma] for step in steps] for gamma in gammas]
    values = [[_height(sweep.grid[index], title) for index in row] for row in indices]
    return {
        "type": "heatmap",
        "x": [f"{step:.2g}" for step in steps],
        "y": [f"{gamma:g}" for gamma in gammas],
        "z": [[finite(value) for value in row] for row in values],
        "text": [
            [_cell(sweep.grid[index], value) for index, value in zip(*pair, strict=True)]
            for pair in zip(indices, values, strict=True)
        ],
        "texttemplate": "%{text}",
        "textfont": {"size": 11},
        "customdata": indices,
        "hovertemplate": "ε = %{x}, γ = %{y}<br>%{text}<extra></extra>",
        "xgap": 1,
        "ygap": 1,
    }


def _height(point: Estimate, title: str) -> float:
    if title == "λ̂":
        return point.lambda_hat
    if title == "acceptance":
        return math.nan if point.acceptance is None else point.acceptance
    return point.virial


def _cell(point: Estimate, value: float) -> str:
    """The number; a letter where the point did not pass its checks."""
    mark = STATUS_LETTERS.get(point.status, "")
    number = f"{value:.3g}" if math.isfinite(value) else ""
    return " ".join(part for part in (number, mark) if part)


def _frame(sweep: Sweep, best: Estimate, suffix: str) -> dict[str, Any]:
    """A frame around the cell of the recommended point."""
    x = sorted({point.step_size for point in sweep.grid}).index(best.step_size)
    y = sorted({point.localization for point in sweep.grid}).index(best.localization)
    return {
        "type": "rect",
        "xref": f"x{suffix}",
        "yref": f"y{suffix}",
        "x0": x - 0.5,
        "x1": x + 0.5,
        "y0": y - 0.5,
        "y1": y + 0.5,
        "line": {"color": "#D55E00", "width": 3},
    }


# ---- every number


COLUMNS = ("#nβ", "#γ", "#ε", "#λ̂", "#virial", "#drift", "#acceptance", "status", "reason")


def _table(points: Sequence[Estimate], num_grid: int) -> str:
    rows = [_row(point, at >= num_grid) for at, point in enumerate(points)]
    told = table("Every estimate", COLUMNS, rows, named="points")
    return f"<h2>All points</h2><details><summary>Every estimate</summary>{told}</details>"


def _row(point: Estimate, automatic: bool) -> tuple[str, ...]:
    return (
        f"{point.n_beta:.4g}",
        f"{point.localization:g}",
        f"{point.step_size:.3g}" + (" (automatic)" if automatic else ""),
        f"{point.lambda_hat:.4g} ± {point.lambda_stderr:.2g}",
        f"{point.virial:.2f}",
        f"{point.drift:.2f}",
        "–" if point.acceptance is None else f"{point.acceptance:.2f}",
        html.escape(point.status),
        html.escape(point.reason),
    )
