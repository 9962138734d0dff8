"""The self-check on one page: every case as a point beside what was expected of it."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from plotly.offline import get_plotlyjs

from phasewatch.monitor.reports.html import document, finite, static, table

if TYPE_CHECKING:
    from phasewatch.monitor.sampling.selfcheck import Check

COLOURS = {True: "#0072B2", False: "#D55E00"}


def render_selfcheck(checks: Sequence[Check], *, summary: str, rule: str, max_error: float) -> str:
    """The page, as HTML.

    Args:
        checks: What was measured.
        summary: What came out, in one line.
        rule: How the verdict is made, in words.
        max_error: Relative error that is always allowed: drawn as a band.
    """
    good = all(check.passed for check in checks)
    body = [
        f'<p class="found{"" if good else " none"}">{html.escape(summary)}</p>',
        '<div id="plot"></div>',
        f'<p class="note">Each point is an estimate of the local learning coefficient over what a '
        "perfect sampler finds at this n; bars are ±2 standard errors. Grey: the error that is "
        f"always allowed. {html.escape(rule)}</p>",
        table("Every case", COLUMNS, map(_row, checks), named="checks"),
    ]
    figure = _figure(checks, max_error)
    title = "Self-check of the estimator"
    return document(title, body, figure, get_plotlyjs(), static("selfcheck.js"))


COLUMNS = (
    "model",
    "#n",
    "#λ",
    "#expected at n",
    "#estimate",
    "#error",
    "status",
    "verdict",
    "reason",
)


def _row(check: Check) -> tuple[str, ...]:
    return (
        f'<span class="dot" style="background:{COLOURS[check.passed]}"></span>'
        f"{html.escape(check.name)}",
        f"{check.n_samples:,}",
        f"{check.truth:g}",
        f"{check.expected:.3g}",
        f"{check.lambda_hat:.3f} ± {check.lambda_stderr:.3f}",
        f"{check.error:+.1%}",
        html.escape(check.status),
        "pass" if check.passed else "fail",
        html.escape(check.reason),
    )


def _figure(checks: Sequence[Check], max_error: float) -> dict[str, Any]:
    """Data and layout for plotly.js."""
    return {
        "data": [_points(checks, passed) for passed in (True, False)],
        "layout": {
            "height": 24 * len(checks) + 120,
            "margin": {"t": 30, "b": 50, "l": 230, "r": 20},
            "font": {"family": "system-ui, sans-serif", "size": 13},
            "xaxis": {"title": {"text": "estimate / expected"}, "zeroline": False},
            "yaxis": {
                "categoryorder": "array",
                "categoryarray": [html.escape(check.name) for check in reversed(checks)],
                "range": [-0.7, len(checks) - 0.3],
            },
            "shapes": [
                _area(1 - max_error, 1 + max_error, fillcolor="#EBEBEB", line={"width": 0}),
                _area(1, 1, line={"width": 1, "color": "#595959", "dash": "dash"}),
            ],
        },
    }


def _points(checks: Sequence[Check], passed: bool) -> dict[str, Any]:
    chosen = [check for check in checks if check.passed is passed]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "pass" if passed else "fail",
        "x": [finite(check.lambda_hat / check.expected) for check in chosen],
        "y": [html.escape(check.name) for check in chosen],
        "error_x": {
            "array": [finite(2 * check.lambda_stderr / check.expected) for check in chosen],
            "thickness": 1.4,
        },
        "marker": {
            "color": COLOURS[passed],
            "size": 9,
            "symbol": "circle" if passed else "x",
        },
    }


def _area(left: float, right: float, **look: Any) -> dict[str, Any]:
    place = {"xref": "x", "yref": "paper", "x0": left, "x1": right, "y0": 0, "y1": 1}
    return {"type": "rect", "layer": "below", **place, **look}
