"""The charts of a report as SVG, complete without a script; `static/charts.js` adds to them.

The browser stretches curves to the width of the page; texts, strokes and points it does not. A
chart's coordinates are the steps themselves, and heights from 0 at the top to `HEIGHT`.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.transitions import Transition, TransitionStatus
from phasewatch.monitor.reports.data import (
    KIND_COLOURS,
    MAX_BINS,
    Panel,
    Record,
    Series,
    lines,
    panels,
    span,
)

HEIGHT = 100_000

MAX_POINTS = 60_000
"""Points of all curves of a page together: about a megabyte."""

MIN_BINS = 50
"""Bins of a curve however many there are."""

MAX_TOLD = 300
"""Measurements of one stream of which each is a point that says its value, error and status."""

MAX_RUG = 300
"""Ticks drawn for values that are not finite."""

NUM_COLOURS = 7
"""Colours in `page.css`; the curves after those are dashed."""

MAX_DRAWN = 1e100
"""Values beyond are drawn as this one: differences of larger ones overflow."""

FAR = 100.0
"""Doubtful values up to this factor beyond the trusted ones widen a logarithmic axis."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How high a value is drawn.

    Attributes:
        low: Value at the bottom.
        high: Value at the top.
        log: Whether heights go by the logarithm.
    """

    low: float
    high: float
    log: bool

    def heights(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        """Where values are drawn; what lies beyond the axis is drawn beyond the chart.

        Args:
            values: Finite values, shape (n,).
        """
        values = np.clip(values, -MAX_DRAWN, MAX_DRAWN)
        low, high = self.low, self.high
        if self.log:
            values = np.log10(np.maximum(values, low / 10))
            low, high = math.log10(low), math.log10(high)
        found = np.clip(HEIGHT * (high - values) / (high - low), -HEIGHT, 2 * HEIGHT)
        return found.round().astype(np.int64)

    @property
    def ticks(self) -> list[float]:
        """A handful of round values."""
        return ticks(self.low, self.high, log=self.log)


def ticks(low: float, high: float, *, log: bool = False) -> list[float]:
    """A handful of round numbers between two; where `log`, powers of ten, their doubles and halves.

    Args:
        low: The lower one.
        high: The higher one.
        log: Whether they stand on a logarithmic axis; both are positive then.

    >>> ticks(0, 1000), ticks(0.003, 40, log=True)
    ([0.0, 200.0, 400.0, 600.0, 800.0, 1000.0], [0.01, 0.1, 1.0, 10.0])
    >>> ticks(0.2, 3, log=True)
    [0.2, 0.5, 1.0, 2.0]
    """
    if log:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        wide = last - first > 4
        digits = (1,) if wide else (1, 2, 5)
        stride = -((first - last) // 6) if wide else 1
        found = [
            digit * 10.0**power for power in range(first, last + 1, stride) for digit in digits
        ]
        found = [tick for tick in found if low <= tick <= high]
        if len(found) > 2:
            return found
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * times for times in (1, 2, 5, 10, 20) if times * unit >= rough * (1 - 1e-9))
    return [at * step for at in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


def scale_of(panel: Panel) -> Scale:
    """The axis that shows every exact value and every trusted measurement.

    Early estimates, far from any minimum, can be off by orders of magnitude: they would press the
    trusted ones into a line. Those beyond the axis are drawn at its edge, and say their value.
    """
    wanted = [_wanted(series) for series in panel.series]
    values = np.concatenate([np.clip(w, -MAX_DRAWN, MAX_DRAWN) for w in wanted] or [np.empty(0)])
    log = panel.scale == "log"
    if log:
        values = values[values > 0]
        if values.size:
            doubtful = np.concatenate([s.values[s.finite & ~s.ok] for s in panel.series])
            near = (doubtful > values.min() / FAR) & (doubtful < values.max() * FAR)
            values = np.concatenate([values, doubtful[near]])
        values = np.clip(values, 1 / MAX_DRAWN, MAX_DRAWN)
    if not values.size:
        return Scale(1.0, 10.0, log=True) if log else Scale(0.0, 1.0, log=False)
    low, high = float(values.min()), float(values.max())
    if log:
        room = (high / low) ** 0.04 if high > low else 3.0
        return Scale(low / room, high * room, log=True)
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        low, high = min(0.0, low), max(0.0, high)
    room = 0.05 * (high - low) or 1.0
    return Scale(low - room, high + room, log=False)


def _wanted(series: Series) -> NDArray[np.float64]:
    """Values that an axis must show."""
    ok = series.ok
    if not series.is_measured or not ok.any():
        return series.values[series.finite]
    errors = 2 * np.nan_to_num(series.stderrs[ok])
    return np.concatenate([series.values[ok] - errors, series.values[ok] + errors])


def num_bins(num_series: int) -> int:
    """How many bins each of so many curves is thinned to."""
    return max(MIN_BINS, min(MAX_BINS, MAX_POINTS // (2 * max(num_series, 1))))


def is_thinned(series: Series, bins: int) -> bool:
    """Whether fewer points are drawn than there are."""
    return len(series.steps) > 2 * bins


def charts(record: Record, bins: int) -> str:
    """Every stream against the step, one chart a group, transitions as bands over all of them.

    Args:
        record: What is drawn.
        bins: Bins that each curve is thinned to.
    """
    found = panels(record.series.values())
    return "".join(
        chart(
            panel,
            last_step=record.last_step,
            bins=bins,
            step_label=record.step_label,
            bands=_bands(record),
            marks=_marks(record) if number == 0 else "",
        )
        for number, panel in enumerate(found)
    )


def chart(
    panel: Panel,
    *,
    last_step: int,
    bins: int,
    step_label: str,
    bands: str = "",
    marks: str = "",
) -> str:
    """One chart with its legend, as HTML.

    Args:
        panel: What is drawn.
        last_step: Where the axis of steps ends.
        bins: Bins that each curve is thinned to.
        step_label: What is counted along that axis.
        bands: SVG below the curves.
        marks: SVG above them.
    """
    scale, last = scale_of(panel), max(last_step, 1)
    title = html.escape(panel.title)
    legend = "".join(_legend(series, at, panel) for at, series in enumerate(panel.series))
    curves = "".join(_series(series, at, scale, bins) for at, series in enumerate(panel.series))
    names = html.escape(", ".join(series.name for series in panel.series[:8]))
    heights = [(100 * at / HEIGHT, t) for at, t in zip(_at(scale), scale.ticks, strict=True)]
    label = html.escape(step_label)
    # Every second step gives way on a narrow page.
    looks = ("", ' class="odd"')
    return (
        f'<figure class="panel"><figcaption><span>{title}</span>'
        f'<span class="readout"></span></figcaption><ul class="legend">{legend}</ul>'
        f'<div class="chart" data-low="{scale.low:.6g}" data-high="{scale.high:.6g}" '
        f'data-last="{last}" data-scale="{"log" if scale.log else "linear"}">'
        '<svg class="heights" aria-hidden="true">'
        + "".join(
            f'<text x="100%" dx="-6" y="{at:.2f}%" dy=".35em" text-anchor="end">{tick:.4g}</text>'
            for at, tick in heights
        )
        + '</svg><svg class="curves" role="img" '
        f'aria-label="{title}: {names}, by {label}">'
        + "".join(
            f'<line class="grid" x1="0" x2="100%" y1="{at:.2f}%" y2="{at:.2f}%"/>'
            for at, _ in heights
        )
        + f'<svg class="view" viewBox="0 0 {last} {HEIGHT}" preserveAspectRatio="none" '
        f'width="100%" height="100%">{bands}{curves}</svg>{marks}'
        '<line class="cursor" y1="0" y2="100%"/><rect class="zoom" y="0" height="100%"/></svg>'
        '<svg class="steps" aria-hidden="true">'
        + "".join(
            f'<text x="{100 * step / last:.2f}%" y="1.1em" text-anchor="middle"'
            f"{looks[number % 2]}>{step:,.6g}</text>"
            for number, step in enumerate(ticks(0, last))
        )
        + "</svg></div></figure>"
    )


def _at(scale: Scale) -> list[int]:
    return [int(at) for at in scale.heights(np.array(scale.ticks, dtype=np.float64))]


def _look(at: int) -> str:
    return f"c{at % NUM_COLOURS}" + (" dashed" if at >= NUM_COLOURS else "")


def _legend(series: Series, at: int, panel: Panel) -> str:
    total, _, part = series.name.partition("/")
    waits = " data-part" if part and any(other.name == total for other in panel.series) else ""
    return (
        f'<li class="{_look(at)}" data-at="{at}"{waits}><span class="swatch"></span>'
        f"{html.escape(series.name)}</li>"
    )


def _series(series: Series, at: int, scale: Scale, bins: int) -> str:
    drawn = _measured(series, scale, bins) if series.is_measured else _exact(series, scale, bins)
    lost = series.steps[~series.finite][:MAX_RUG].tolist()
    rug = "".join(f"M{step},{HEIGHT * 94 // 100}L{step},{HEIGHT}" for step in lost)
    ticked = f'<path class="lost" d="{rug}"><title>not finite</title></path>' if rug else ""
    name = html.escape(series.name)
    return f'<g class="series {_look(at)}" data-at="{at}" data-name="{name}">{drawn}{ticked}</g>'


def _exact(series: Series, scale: Scale, bins: int) -> str:
    drawn = lines(series.steps, series.values, series.ok, bins)
    alone = [line for line in drawn if len(line) == 1]
    joined = [line for line in drawn if len(line) > 1]
    return _path("line", "".join(_line(series, line, scale) for line in joined)) + _path(
        "point", "".join(_line(series, line, scale) + "h0" for line in alone)
    )


def _line(series: Series, line: NDArray[np.int64], scale: Scale) -> str:
    heights = scale.heights(series.values[line]).tolist()
    points = zip(series.steps[line].tolist(), heights, strict=True)
    return "M" + "L".join(f"{step},{height}" for step, height in points)


def _path(kind: str, d: str, title: str = "") -> str:
    told = f"<title>{html.escape(title)}</title>" if title else ""
    return f'<path class="{kind}" d="{d}">{told}</path>' if d else ""


def _measured(series: Series, scale: Scale, bins: int) -> str:
    """Lines with the bands of their errors, a point for each value, and what is not OK apart."""
    errors = 2 * np.nan_to_num(series.stderrs)
    found = []
    for line in stretches(series, bins):
        if len(line) > 1 and errors[line].any():
            around = [*line.tolist(), *line[::-1].tolist()]
            steps = series.steps[around].tolist()
            edges = [(series.values + errors)[line], (series.values - errors)[line][::-1]]
            heights = scale.heights(np.concatenate(edges)).tolist()
            points = "L".join(f"{x},{y}" for x, y in zip(steps, heights, strict=True))
            found.append(_path("error", f"M{points}Z"))
        found.append(_path("line" if len(line) > 1 else "point", _line(series, line, scale)
                           + ("h0" if len(line) == 1 else "")))  # fmt: skip
    if len(series.observations) <= MAX_TOLD:
        found += [_told(one, scale) for one in series.observations if math.isfinite(one.value)]
    else:
        doubtful = np.flatnonzero(series.finite & ~series.ok)
        d = "".join(_place(*pair) for pair in _edged(series, doubtful, scale))
        found.append(_path("doubt", d, f"{series.name}: not ok") + _path("hole", d))
    return "".join(found)


def _told(one: Observation, scale: Scale) -> str:
    """A point that says its value, its error and its status when one points at it."""
    height = int(scale.heights(np.array([one.value]))[0])
    place = _place(one.step, min(max(height, 0), HEIGHT))
    error = "" if one.stderr is None else f" ± {one.stderr:.2g}"
    reason = f": {one.reason}" if one.reason else ""
    told = f"step {one.step:,}: {one.value:.4g}{error}, {one.status}{reason}"
    if one.status.value == "ok":
        return _path("point", place, told)
    return _path("doubt", place, told) + _path("hole", place)


def _edged(series: Series, chosen: NDArray[np.int64], scale: Scale) -> zip[tuple[int, int]]:
    heights = np.clip(scale.heights(series.values[chosen]), 0, HEIGHT)
    return zip(series.steps[chosen].tolist(), heights.tolist(), strict=True)


def _place(step: int, height: int) -> str:
    return f"M{step},{height}h0"


def stretches(series: Series, bins: int = MAX_BINS) -> list[NDArray[np.int64]]:
    """Indices of lines through points that passed, cut where n, nβ or γ change.

    A line joins what may be compared, and joins nothing across a point that did not pass.
    """
    found: list[NDArray[np.int64]] = []
    for line in lines(series.steps, series.values, series.ok, bins):
        made = [_settings(series.observations[i]) if series.observations else () for i in line]
        ends = [place for place in range(1, len(line)) if made[place] != made[place - 1]]
        found += np.split(line, ends)
    return found


def _settings(observation: Observation) -> tuple[float, ...]:
    """What two values of λ̂ must share to be compared: n, nβ and γ."""
    made = observation.detail
    return () if made is None else (made.n_samples, made.n_beta, made.localization)


# ---- transitions


def _bands(record: Record) -> str:
    """A band from onset to end, and a dashed line where it was detected."""
    return "".join(_band(transition, record.last_step) for transition in record.transitions)


def _band(transition: Transition, last_step: int) -> str:
    first, last = span(transition, last_step)
    withdrawn = " withdrawn" if transition.status is TransitionStatus.WITHDRAWN else ""
    colour = f' style="--c:{KIND_COLOURS[transition.kind]}"'
    told = html.escape(f"{transition.kind} ({transition.status}), steps {first:,} to {last:,}")
    seen = transition.detected_step
    return (
        f'<path class="span{withdrawn}"{colour} '
        f'd="M{first},0L{last},0L{last},{HEIGHT}L{first},{HEIGHT}Z"><title>{told}</title></path>'
        f'<path class="seen"{colour} d="M{seen},0L{seen},{HEIGHT}"/>'
    )


def _marks(record: Record) -> str:
    """The kind of each transition, at the top of a chart."""
    last, found = max(record.last_step, 1), []
    for index, transition in enumerate(record.transitions):
        step = transition.detected_step
        late = step > last / 2
        kind = transition.kind.value.replace("_", " ")
        gone = " (withdrawn)" if transition.status is TransitionStatus.WITHDRAWN else ""
        found.append(
            f'<text class="mark" data-step="{step}" x="{100 * step / last:.2f}%" '
            f'y="{14 + 15 * (index % 3)}" dx="{-5 if late else 5}" '
            f'text-anchor="{"end" if late else "start"}">{kind}{gone}</text>'
        )
    return "".join(found)


def onset_marks(found: Sequence[tuple[int, Transition]]) -> str:
    """Where transitions of several runs began: a short line at the top, in the colour of the run.

    Args:
        found: Place of the run's curve in its chart, and the transition.
    """
    return "".join(
        f'<g class="{_look(at)}">'
        + _path("onset", f"M{t.onset_step},0L{t.onset_step},{HEIGHT // 12}",
                f"{t.kind}, from step {t.onset_step:,}")
        + "</g>"
        for at, t in found
    )  # fmt: skip
