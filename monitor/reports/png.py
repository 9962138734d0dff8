"""A small PNG of a run: losses, λ̂ with its error, and where the transitions are."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from phasewatch.monitor.core.history import Floats
from phasewatch.monitor.core.transitions import TransitionStatus
from phasewatch.monitor.reports.data import (
    KIND_COLOURS,
    LINE_COLOURS,
    RunRecord,
    Series,
    is_coefficient,
    is_fraction,
    lines,
    read_run,
    span,
    value_range,
)
from phasewatch.monitor.store.store import Store

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH_INCHES = 9.0
DOTS_PER_INCH = 150
PANEL_INCHES = {"losses": 2.5, "llc": 2.2, "fractions": 1.5}
GREY = "#595959"


def write_picture(store: Store, run_id: str, path: str | Path) -> Path:
    """Draw a run's losses, λ̂ with an error band of ±2 standard errors, and its transitions.

    Args:
        store: The run history.
        run_id: Id or name of the run.
        path: Where to write the PNG; its folder is made if missing.

    Returns:
        The path written.

    Raises:
        StoreError: There is no such run, or the store cannot be read.
        OSError: The picture cannot be written.
    """
    record = read_run(store, run_id)
    rows = _rows(record)
    heights = [PANEL_INCHES[kind] for kind, _ in rows]
    # A figure of our own: pyplot keeps global state, and picks a backend for the whole process.
    figure = Figure(figsize=(WIDTH_INCHES, sum(heights) + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(
        len(rows), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    axes: list[Axes] = list(grid[:, 0])
    figure.suptitle(_plain(record.info.name, 90), fontsize=12, color="black", x=0.02, ha="left")
    for axis, (kind, series) in zip(axes, rows, strict=True):
        _draw(axis, kind, series)
        _mark_transitions(axis, record, labelled=axis is axes[0])
        _tidy(axis)
    axes[-1].set_xlabel("optimizer step")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[-1].set_xlim(0, max(record.last_step, 1))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # A name in a script that the built-in font lacks is drawn as boxes: that is good enough.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(path, format="png", dpi=DOTS_PER_INCH)
    return path


def _plain(text: str, length: int = 40) -> str:
    """One line of ordinary text."""
    text = " ".join(text.split())
    text = text if len(text) <= length else text[: length - 1] + "…"
    # matplotlib reads text between two dollar signs as a formula, and fails on a broken one.
    return text.replace("$", r"\$")


def _rows(record: RunRecord) -> list[tuple[str, list[Series]]]:
    series = sorted(record.series.values(), key=lambda s: s.name)
    losses = [s for s in series if "loss" in s.name.lower() and not s.is_measured]
    llc = [s for s in series if is_coefficient(s)]
    fractions = [s for s in series if not s.is_measured and is_fraction(s)]
    rows = [("losses", losses), ("llc", llc), ("fractions", fractions)]
    return [row for row in rows if row[1]] or [("losses", [])]


def _draw(axis: Axes, kind: str, series: list[Series]) -> None:
    for index, one in enumerate(series):
        colour = LINE_COLOURS[index % len(LINE_COLOURS)]
        if one.is_measured:
            _draw_measured(axis, one, colour)
        else:
            steps, values, _ = _broken(one)
            axis.plot(steps, values, color=colour, lw=1.5, label=_plain(one.name))
    if kind == "losses" and series:
        if all((s.values[s.finite] > 0).all() for s in series):
            axis.set_yscale("log")
        axis.set_ylabel("loss (nats)")
    elif kind == "llc":
        axis.set_ylabel("λ̂ (LLC)")
        limits = value_range(series)
        if limits is not None:
            axis.set_ylim(*limits)
    elif kind == "fractions":
        axis.set_ylabel("fraction")
        axis.set_ylim(-0.04, 1.04)


def _broken(series: Series) -> tuple[Floats, Floats, Floats]:
    """Steps, values and errors of the lines to draw, NaN between two of them."""
    gap = np.array([np.nan])
    drawn = lines(series.steps, series.values, series.ok)
    columns = [
        np.concatenate([part for line in drawn for part in (column[line], gap)] or [gap])
        for column in (series.steps.astype(np.float64), series.values, series.stderrs)
    ]
    return columns[0], columns[1], columns[2]


def _draw_measured(axis: Axes, series: Series, colour: str) -> None:
    steps, values, stderrs = _broken(series)
    errors = np.where(np.isnan(values), np.nan, 2 * np.nan_to_num(stderrs))
    axis.fill_between(steps, values - errors, values + errors, color=colour, alpha=0.25, lw=0)
    label = "λ̂ ± 2 standard errors" if series.name == "llc" else series.name
    axis.plot(steps, values, color=colour, lw=1.5, marker="o", ms=3, label=_plain(label))
    doubtful = series.finite & ~series.ok
    if doubtful.any():
        axis.plot(
            series.steps[doubtful],
            series.values[doubtful],
            ls="none",
            marker="x",
            ms=5,
            color=GREY,
            label="not converged",
        )
    lost = ~series.finite
    if lost.any():
        axis.plot(
            series.steps[lost],
            np.full(int(lost.sum()), 0.03),
            ls="none",
            marker="|",
            ms=8,
            color=LINE_COLOURS[1],
            transform=axis.get_xaxis_transform(),
            label="diverged",
        )


def _mark_transitions(axis: Axes, record: RunRecord, *, labelled: bool) -> None:
    shown = [t for t in record.transitions if t.status is not TransitionStatus.WITHDRAWN]
    for index, transition in enumerate(shown):
        first, last = span(transition, record.last_step)
        colour = KIND_COLOURS[transition.kind]
        axis.axvspan(first, last, color=colour, alpha=0.16, lw=0, zorder=0)
        axis.axvline(transition.detected_step, color=colour, lw=1.2, ls="--", zorder=1)
        if not labelled:
            continue
        axis.annotate(
            f"{transition.kind}, detected at {transition.detected_step:,}",
            xy=(transition.detected_step, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 4 + 13 * (index % 3)),
            textcoords="offset points",
            ha="left" if transition.detected_step < record.last_step / 2 else "right",
            va="bottom",
            fontsize=9,
            color="black",
            annotation_clip=False,
            bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": colour, "lw": 0.8},
        )


def _tidy(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#DDDDDD", lw=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=9)
    axis.yaxis.label.set_fontsize(10)
    axis.margins(x=0.01)
    handles, _ = axis.get_legend_handles_labels()
    if handles:
        axis.legend(loc="best", fontsize=9, frameon=True, framealpha=0.85, edgecolor="none")
