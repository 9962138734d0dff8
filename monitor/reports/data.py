"""What a report and a picture show of a run: read from the store, sorted into panels, thinned."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from phasewatch.monitor.core.estimates import Estimate, EstimateStatus, Observation
from phasewatch.monitor.core.meaning import Meanings, StreamMeaning
from phasewatch.monitor.core.meaning import Panel as PanelKind
from phasewatch.monitor.core.transitions import Transition
from phasewatch.monitor.store.reader import Hole
from phasewatch.monitor.store.store import RunInfo, Store

MAX_BINS = 1000
"""A curve is drawn with at most two points for each of so many bins, and its two ends."""

MAX_PANELS = 10
"""Further observables share one panel once there are so many."""

MAX_WITH_STATUS = 50_000
"""Longest stream whose observations are read one by one, with their details."""

# Okabe and Ito (2008): eight colours that colour-blind people can tell apart.
# `static/page.css` has them darker, and brighter in the dark.
LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
KIND_COLOURS = {
    "generalisation": "#009E73",
    "memorisation": "#E69F00",
    "simplification": "#56B4E9",
    "acquisition": "#CC79A7",
    "instability": "#D55E00",
    "cleanup": "#0072B2",
    "circuit_formation": "#F0E442",
    "unclassified": "#7F7F7F",
}


@dataclass(frozen=True, slots=True)
class Series:
    """One stream, as it is drawn.

    Attributes:
        name: Stream name.
        unit: Unit of the values.
        steps: Optimizer steps, shape (n,).
        values: Values, shape (n,); may hold NaN and infinity.
        stderrs: Standard errors, shape (n,); NaN where a value is exact.
        meaning: What the stream means.
        observations: The same points with status and detail; empty for exact streams, and for those
            of more than `MAX_WITH_STATUS` points.
        passed: Which points passed every check, shape (n,); None where all did.
    """

    name: str
    unit: str
    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    stderrs: NDArray[np.float64]
    meaning: StreamMeaning
    observations: tuple[Observation, ...] = ()
    passed: NDArray[np.bool_] | None = None

    @property
    def finite(self) -> NDArray[np.bool_]:
        """Which points can be drawn."""
        finite: NDArray[np.bool_] = np.isfinite(self.values)
        return finite

    @property
    def ok(self) -> NDArray[np.bool_]:
        """Which points are finite and passed every check."""
        return self.finite if self.passed is None else self.finite & self.passed

    @property
    def is_measured(self) -> bool:
        """Whether the values carry an error or a status of their own."""
        return bool(self.observations) or self.passed is not None

    @property
    def is_llc(self) -> bool:
        """Whether it is λ̂, of the whole model or of a part."""
        return self.meaning.panel is PanelKind.LLC

    @property
    def estimates(self) -> list[Estimate]:
        """The LLC estimates behind the values."""
        return [o.detail for o in self.observations if o.detail is not None]


@dataclass(frozen=True, slots=True)
class Panel:
    """Series that are drawn over one another."""

    title: str
    series: tuple[Series, ...]
    scale: Literal["log", "linear"]


@dataclass(frozen=True, kw_only=True)
class Record:
    """Streams, and the transitions found in them.

    Attributes:
        series: The streams, by name.
        transitions: By onset.
        step_label: What is counted along the axis of steps.
        config: The configuration of the run, as far as it is known.
    """

    series: Mapping[str, Series]
    transitions: tuple[Transition, ...]
    step_label: str = "optimizer step"
    config: Mapping[str, Any] | None = None

    @property
    def units(self) -> dict[str, str]:
        """Unit by stream."""
        return {name: series.unit for name, series in self.series.items()}

    @property
    def last_step(self) -> int:
        """Last step at which anything was observed; 0 before the first."""
        ends = [int(s.steps[-1]) for s in self.series.values() if len(s.steps)]
        said = [max(t.detected_step, t.end_step or 0) for t in self.transitions]
        return max([0, *ends, *said])


@dataclass(frozen=True, kw_only=True)
class RunRecord(Record):
    """Everything that is shown of one run.

    Attributes:
        info: What it is.
        holes: What it observed and the store lacks.
    """

    info: RunInfo
    holes: tuple[Hole, ...] = ()

    @property
    def last_step(self) -> int:
        """Last step at which anything was observed; 0 before the first."""
        return max(self.info.last_step or 0, super().last_step)


def read_run(store: Store, run: str) -> RunRecord:
    """Read a run from the store.

    Args:
        store: The run history.
        run: Id or name of the run.

    Raises:
        StoreError: There is no such run, or the store cannot be read.
    """
    info = store.run(run)
    meanings = Meanings.stored(info.config)
    series = {
        name: _series(store, info.id, name, unit, meanings.of(name))
        for name, unit in sorted(store.units(info.id).items())
    }
    return RunRecord(
        info=info,
        series=series,
        transitions=tuple(store.transitions(info.id)),
        config=info.config,
        holes=tuple(store.holes(info.id)),
    )


def _series(store: Store, run_id: str, name: str, unit: str, meaning: StreamMeaning) -> Series:
    history = store.history(run_id, name, include_unconverged=True)
    steps, values, stderrs = history
    doubtful = bool((np.isfinite(values) & ~history.ok).any())
    has_errors = bool(np.isfinite(stderrs).any())
    if not (has_errors or doubtful or meaning.panel is PanelKind.LLC):
        return Series(name, unit, steps, values, stderrs, meaning)
    observations: tuple[Observation, ...] = ()
    passed = history.ok
    if len(steps) <= MAX_WITH_STATUS:
        observations = tuple(store.observations(run_id, name))
        # A run that is being written may have grown between the two reads.
        steps = np.array([o.step for o in observations], dtype=np.int64)
        values = np.array([o.value for o in observations], dtype=np.float64)
        stderrs = np.array(
            [math.nan if o.stderr is None else o.stderr for o in observations], dtype=np.float64
        )
        passed = passed_of(observations)
    return Series(name, unit, steps, values, stderrs, meaning, observations, passed)


def passed_of(observations: Sequence[Observation]) -> NDArray[np.bool_]:
    """Which observations passed every check."""
    return np.array([o.status is EstimateStatus.OK for o in observations], dtype=np.bool_)


def is_coefficient(series: Series) -> bool:
    """Whether it shares an axis with λ̂: WBIC, in hundreds of nats, would flatten it to a line."""
    return series.is_llc and series.unit in ("", "1")


def panels(series: Iterable[Series], *, limit: bool = True) -> list[Panel]:
    """Sort streams into panels: losses, λ̂, norms, fractions, then each other stream alone.

    Args:
        series: The streams.
        limit: Draw what would make more than `MAX_PANELS` in one.
    """
    drawn = [s for s in series if s.finite.any() or s.is_measured]
    losses = [s for s in drawn if s.meaning.panel is PanelKind.LOSSES and not s.is_measured]
    llc = [s for s in drawn if is_coefficient(s)]
    norms = [s for s in drawn if s.meaning.panel is PanelKind.NORMS]
    units = sorted({s.unit for s in norms})
    taken = {s.name for s in (*losses, *llc, *norms)}
    rest = [s for s in drawn if s.name not in taken]
    fractions = [s for s in rest if not s.is_measured and is_fraction(s)]
    others = [s for s in rest if s.name not in {f.name for f in fractions}]
    found = [
        make_panel("Losses (nats)", losses, log=True),
        make_panel("Local learning coefficient λ̂", llc, log=True),
        *(
            make_panel("Norms" + _in_unit(unit), [s for s in norms if s.unit == unit], log=True)
            for unit in units
        ),
        make_panel("Metrics between 0 and 1", fractions, log=False),
    ]
    room = MAX_PANELS - sum(1 for panel in found if panel.series)
    alone, rest = others, []
    if limit and len(others) > room:
        alone, rest = others[:room], others[room:]
    found += [make_panel(s.name, [s], log=False) for s in alone]
    found.append(make_panel("Further observables", rest, log=False))
    return [panel for panel in found if panel.series]


def make_panel(title: str, series: Sequence[Series], *, log: bool, ordered: bool = True) -> Panel:
    """Streams over one another.

    Args:
        title: What they are.
        series: The streams.
        log: Draw them on a logarithmic axis, if all that is trusted is positive.
        ordered: Sort them by name, the parts of a total after it.
    """
    # A logarithmic axis would silently hide what is zero or negative.
    positive = any(s.ok.any() for s in series) and all((s.values[s.ok] > 0).all() for s in series)
    if ordered:
        series = sorted(series, key=lambda s: ("/" in s.name, s.name))
    return Panel(title, tuple(series), "log" if log and positive else "linear")


def _in_unit(unit: str) -> str:
    return "" if unit in ("", "1") else f" ({unit})"


def is_fraction(series: Series) -> bool:
    """Whether a stream looks like an accuracy: a number between 0 and 1, and meant as one."""
    values = series.values[series.finite]
    meant = series.meaning.panel is PanelKind.FRACTIONS
    return bool(meant and len(values) and values.min() >= 0 and values.max() <= 1)


def thin(
    steps: NDArray[np.int64], values: NDArray[np.float64], bins: int = MAX_BINS
) -> NDArray[np.int64]:
    """Indices of the points to draw: of each of `bins` runs of points the lowest and the highest.

    Peaks and spikes survive; the first and the last point are always kept. Nothing is thinned
    while there are at most 2 · bins points.

    Args:
        steps: Steps, shape (n,).
        values: Finite values, shape (n,).
        bins: Number of equal runs of consecutive points.

    Returns:
        Increasing indices, at most 2 · bins + 2 of them.
    """
    count = len(steps)
    if count <= 2 * bins:
        return np.arange(count)
    edges = np.linspace(0, count, bins + 1).astype(np.int64)
    kept = {0, count - 1}
    for low, high in pairwise(edges.tolist()):
        part = values[low:high]
        kept.add(low + int(part.argmin()))
        kept.add(low + int(part.argmax()))
    return np.array(sorted(kept), dtype=np.int64)


def lines(
    steps: NDArray[np.int64],
    values: NDArray[np.float64],
    ok: NDArray[np.bool_],
    bins: int = MAX_BINS,
) -> list[NDArray[np.int64]]:
    """Indices of the points to draw, by line: none joins two points across one that is not OK.

    Args:
        steps: Steps, shape (n,).
        values: Values, shape (n,); finite where they are OK.
        ok: Which points are finite and passed every check, shape (n,).
        bins: Runs of points of which the lowest and the highest are kept.
    """
    trusted = np.flatnonzero(ok)
    if not trusted.size:
        return []
    kept = trusted[thin(steps[trusted], values[trusted], bins)]
    doubts = np.cumsum(~ok)[kept]
    return np.split(kept, np.flatnonzero(np.diff(doubts)) + 1)


def span(transition: Transition, last_step: int) -> tuple[int, int]:
    """First and last step of a transition; one that has not ended reaches to the last step.

    As the stream said; one that only hindsight saw lies where that saw it.
    """
    seen = transition.hindsight
    if seen is not None and seen.streamed is None and seen.onset_step is not None:
        return seen.onset_step, last_step if seen.end_step is None else seen.end_step
    end = last_step if transition.end_step is None else transition.end_step
    return transition.onset_step, max(end, transition.detected_step)


def together(records: Sequence[RunRecord], labels: Sequence[str]) -> list[Panel]:
    """Streams that several runs have, one panel a stream, in which each run is a curve.

    Args:
        records: The runs.
        labels: What each is called.
    """
    counts = Counter(name for record in records for name in record.series)
    shared = {name for name, count in counts.items() if count > 1}
    first = {
        name: record.series[name]
        for record in reversed(records)
        for name in sorted(shared & {*record.series})
    }
    found = []
    for panel in panels(first.values(), limit=False):
        for one in panel.series:
            curves = [
                replace(record.series[one.name], name=label)
                if one.name in record.series
                else _nothing(one, label)
                for label, record in zip(labels, records, strict=True)
            ]
            found.append(make_panel(one.name, curves, log=panel.scale == "log", ordered=False))
    return found


def _nothing(like: Series, label: str) -> Series:
    """A curve that a run lacks: it keeps its place, and so its colour, in the legend."""
    nothing = np.empty(0)
    return replace(
        like,
        name=label,
        steps=np.empty(0, dtype=np.int64),
        values=nothing,
        stderrs=nothing,
        observations=(),
        passed=None,
    )
