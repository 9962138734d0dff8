"""A small picture of runs: losses, λ̂ with its error, and where the transitions are."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from phasewatch.monitor.core.history import Floats
from phasewatch.monitor.core.meaning import Panel as PanelKind
from phasewatch.monitor.reports.data import (
    KIND_COLOURS,
    LINE_COLOURS,
    Panel,
    RunRecord,
    Series,
    is_coefficient,
    is_fraction,
    lines,
    make_panel,
    read_run,
    span,
    together,
)
from phasewatch.monitor.reports.figures import Scale, scale_of
from phasewatch.monitor.reports.story import labels_of, standing
from phasewatch.monitor.store.store import Store

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH_INCHES = 9.0
DOTS_PER_INCH = 150
PANEL_INCHES = {"losses": 2.5, "llc": 2.2, "fractions": 1.5}
GREY = "#595959"

MAX_ROWS = 8
"""Streams that a picture of several runs has room for."""


class Picture(Figure):
    """A figure of matplotlib that notebooks show by themselves; `savefig` writes it anywhere."""

    def _repr_png_(self) -> bytes:
        """How a notebook shows it."""
        found = io.BytesIO()
        _save(self, found)
        return found.getvalue()


def write_picture(store: Store, run_id: str | Sequence[str], path: str | Path) -> Path:
    """Draw a run's losses, λ̂ with an error band of ±2 standard errors, and its transitions.

    Args:
        store: The run history.
        run_id: Id or name of the run; several are laid over one another.
        path: Where to write the PNG; its folder is made if missing.

    Returns:
        The path written.

    Raises:
        StoreError: There is no such run, or the store cannot be read.
        OSError: The picture cannot be written.
    """
    wanted = [run_id] if isinstance(run_id, str) else [*run_id]
    figure = draw([read_run(store, run) for run in wanted])
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        _save(figure, file)
    return path


def draw(records: Sequence[RunRecord]) -> Picture:
    """The picture of a run; of several, each stream that they share with a curve for each run.

    Args:
        records: The runs, at least one.
    """
    labels = labels_of(records)
    rows = _rows(records[0]) if len(records) == 1 else _shared_rows(records, labels)
    heights = [PANEL_INCHES[kind] for kind, _ in rows]
    # A figure of our own: pyplot keeps global state, and picks a backend for the whole process.
    figure = Picture(figsize=(WIDTH_INCHES, sum(heights) + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(
        len(rows), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    axes: list[Axes] = list(grid[:, 0])
    title = _plain(", ".join(labels), 90)
    figure.suptitle(title, fontsize=12, color="black", x=0.02, ha="left")
    for axis, (kind, panel) in zip(axes, rows, strict=True):
        _draw(axis, kind, panel)
        if len(records) == 1:
            _mark_transitions(axis, records[0], labelled=axis is axes[0])
        else:
            axis.set_title(_plain(panel.title), fontsize=10, loc="left")
            _mark_onsets(axis, records)
        _tidy(axis)
    axes[-1].set_xlabel("optimizer step")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[-1].set_xlim(0, max(1, *(record.last_step for record in records)))
    return figure


def _save(figure: Figure, where: IO[bytes]) -> None:
    with warnings.catch_warnings():
        # A name in a script that the built-in font lacks is drawn as boxes: that is good enough.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(where, format="png", dpi=DOTS_PER_INCH)


def _plain(text: str, length: int = 40) -> str:
    """One line of ordinary text."""
    text = " ".join(text.split())
    text = text if len(text) <= length else text[: length - 1] + "…"
    # matplotlib reads text between two dollar signs as a formula, and fails on a broken one.
    return text.replace("$", r"\$")


def _rows(record: RunRecord) -> list[tuple[str, Panel]]:
    series = sorted(record.series.values(), key=lambda s: s.name)
    losses = [s for s in series if "loss" in s.name.lower() and not s.is_measured]
    llc = [s for s in series if is_coefficient(s)]
    fractions = [s for s in series if not s.is_measured and is_fraction(s)]
    rows = [("losses", losses), ("llc", llc), ("fractions", fractions)]
    found = [(kind, make_panel(kind, streams, log=kind != "fractions")) for kind, streams in rows]
    return [row for row in found if row[1].series] or [found[0]]


def _shared_rows(records: Sequence[RunRecord], labels: Sequence[str]) -> list[tuple[str, Panel]]:
    """Losses, λ̂ and fractions that the runs share, each stream by itself."""
    kinds = {
        PanelKind.LOSSES: "losses",
        PanelKind.LLC: "llc",
        PanelKind.FRACTIONS: "fractions",
    }
    found = [
        (kinds[panel.series[0].meaning.panel], panel)
        for panel in together(records, labels)
        if panel.series[0].meaning.panel in kinds and "/" not in panel.title
    ]
    return found[:MAX_ROWS] or [("losses", make_panel("losses", [], log=False))]


def _draw(axis: Axes, kind: str, panel: Panel) -> None:
    scale = scale_of(panel)
    for index, one in enumerate(panel.series):
        colour = LINE_COLOURS[index % len(LINE_COLOURS)]
        style = "-" if index < len(LINE_COLOURS) else "--"
        if one.is_measured:
            _draw_measured(axis, one, colour, style, scale)
        else:
            steps, values, _ = _broken(one)
            axis.plot(steps, values, color=colour, ls=style, lw=1.5, label=_plain(one.name))
    labels = {"losses": "loss (nats)", "llc": "λ̂ (LLC)", "fractions": "fraction"}
    axis.set_ylabel(labels[kind])
    axis.set_yscale("log" if scale.log else "linear")
    if kind == "fractions":
        axis.set_ylim(-0.04, 1.04)
    else:
        axis.set_ylim(scale.low, scale.high)


def _broken(series: Series) -> tuple[Floats, Floats, Floats]:
    """Steps, values and errors of the lines to draw, NaN between two of them."""
    gap = np.array([np.nan])
    drawn = lines(series.steps, series.values, series.ok)
    columns = [
        np.concatenate([part for line in drawn for part in (column[line], gap)] or [gap])
        for column in (series.steps.astype(np.float64), series.values, series.stderrs)
    ]
    return columns[0], columns[1], columns[2]


def _draw_measured(axis: Axes, series: Series, colour: str, style: str, scale: Scale) -> None:
    steps, values, stderrs = _broken(series)
    errors = np.where(np.isnan(values), np.nan, 2 * np.nan_to_num(stderrs))
    axis.fill_between(steps, values - errors, values + errors, color=colour, alpha=0.25, lw=0)
    label = "λ̂ ± 2 standard errors" if series.name == "llc" else series.name
    axis.plot(steps, values, color=colour, ls=style, lw=1.5, marker="o", ms=3, label=_plain(label))
    doubtful = series.finite & ~series.ok
    if doubtful.any():
        axis.plot(
            series.steps[doubtful],
            np.clip(series.values[doubtful], scale.low, scale.high),  # at the edge, if beyond
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
    for index, transition in enumerate(standing(record)):
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


def _mark_onsets(axis: Axes, records: Sequence[RunRecord]) -> None:
    """Where transitions of several runs began: a short line at the top in the run's colour."""
    for index, record in enumerate(records):
        for transition in standing(record):
            colour = LINE_COLOURS[index % len(LINE_COLOURS)]
            axis.axvline(transition.onset_step, ymin=0.92, color=colour, lw=2)


def _tidy(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#DDDDDD", lw=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=9)
    axis.yaxis.label.set_fontsize(10)
    axis.margins(x=0.01)
    # What several curves have in common is named once.
    known = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    if known:
        axis.legend(
            known.values(),
            known,
            loc="best",
            fontsize=9,
            frameon=True,
            framealpha=0.85,
            edgecolor="none",
        )
