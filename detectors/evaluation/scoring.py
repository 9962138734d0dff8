"""How good a detector is on curves whose transitions are known.

Points are fed one at a time. An alarm within [start, end + 5 % of the curve] of a transition that
was not yet detected is true; a further one there is a repeat; any other is false, unless it lies
in a zone that counts neither way. Lenient precision forgives repeats, strict counts them false.
Instability alarms claim no transition and are left out. All positions are in points, from 0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from phasewatch.detectors.base import Detector
from phasewatch.detectors.types import AlarmKind

TOLERANCE = 0.05
"""Alarms up to this share of the curve after a transition's end still belong to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Points `start` to `end`, both included."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end:
            raise ValueError(f"interval is [{self.start}, {self.end}], but needs 0 ≤ start ≤ end")

    def holds(self, point: float, slack: float = 0.0) -> bool:
        """Whether a point lies in the interval, or up to `slack` points behind it."""
        return self.start <= point <= self.end + slack


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A recorded stream with its known transitions.

    Attributes:
        name: Name of the curve.
        steps: Optimizer steps, increasing.
        values: Losses in nats, or whatever the stream is.
        transitions: Where the transitions are.
        ignore: Zones that count neither for nor against.
        source: Where it was recorded; curves of one source are not independent.
        noisy: Whether it carries minibatch noise.
        stderrs: Standard errors of the values, where they are known.
    """

    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]
    transitions: tuple[Interval, ...] = ()
    ignore: tuple[Interval, ...] = ()
    source: str = ""
    noisy: bool = False
    stderrs: tuple[float, ...] | None = None

    def every(self, n: int) -> Curve:
        """The same curve logged every n-th point only."""
        return replace(
            self,
            steps=self.steps[::n],
            values=self.values[::n],
            transitions=tuple(_thin(interval, n) for interval in self.transitions),
            ignore=tuple(_thin(interval, n) for interval in self.ignore),
            stderrs=self.stderrs and self.stderrs[::n],
        )


def _thin(interval: Interval, n: int) -> Interval:
    start = -(-interval.start // n)
    return Interval(start=start, end=max(interval.end // n, start))


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Counts over one or more curves; scores add up.

    Attributes:
        num_transitions: Known transitions.
        num_false: False alarms.
        num_repeats: Further alarms within a detected transition.
        num_null_points: Points outside every transition (with its tolerance) and ignored zone.
        delays: Delay of each detection from the transition's start, in points.
        relative_delays: The same in widths of the transition.
    """

    num_transitions: int = 0
    num_false: int = 0
    num_repeats: int = 0
    num_null_points: int = 0
    delays: tuple[float, ...] = ()
    relative_delays: tuple[float, ...] = ()

    def __add__(self, other: Score) -> Score:
        return Score(
            num_transitions=self.num_transitions + other.num_transitions,
            num_false=self.num_false + other.num_false,
            num_repeats=self.num_repeats + other.num_repeats,
            num_null_points=self.num_null_points + other.num_null_points,
            delays=self.delays + other.delays,
            relative_delays=self.relative_delays + other.relative_delays,
        )

    @property
    def num_detected(self) -> int:
        """Transitions detected."""
        return len(self.delays)

    @property
    def recall(self) -> float:
        """Detected over known transitions; NaN without any."""
        return _ratio(self.num_detected, self.num_transitions)

    @property
    def precision(self) -> float:
        """True over true and false alarms, repeats forgiven; NaN without an alarm."""
        return _ratio(self.num_detected, self.num_detected + self.num_false)

    @property
    def f1(self) -> float:
        """Lenient F1 = 2 TP / (2 TP + FP + FN)."""
        return _ratio(
            2 * self.num_detected, self.num_detected + self.num_false + self.num_transitions
        )

    @property
    def strict_f1(self) -> float:
        """F1 with repeats counted as false alarms."""
        return replace(self, num_false=self.num_false + self.num_repeats).f1

    @property
    def false_alarms_per_1000(self) -> float:
        """False alarms per 1000 null points."""
        return 1000.0 * _ratio(self.num_false, self.num_null_points)

    @property
    def median_delay(self) -> float:
        """Median delay in points; NaN without a detection."""
        return median(self.delays) if self.delays else math.nan

    @property
    def median_relative_delay(self) -> float:
        """Median delay in widths of the transition; NaN without a detection."""
        return median(self.relative_delays) if self.relative_delays else math.nan


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def match(alarms: Iterable[int], curve: Curve) -> Score:
    """Score alarms, given as points of the curve, against its known transitions."""
    slack = TOLERANCE * len(curve.values)
    delays: dict[int, int] = {}
    num_false = num_repeats = 0
    for point in sorted(alarms):
        hit = [i for i, known in enumerate(curve.transitions) if known.holds(point, slack)]
        new = [i for i in hit if i not in delays]
        if new:
            delays[new[0]] = point - curve.transitions[new[0]].start
        elif hit:
            num_repeats += 1
        elif not any(zone.holds(point) for zone in curve.ignore):
            num_false += 1
    widths = [max(known.end - known.start, 1) for known in curve.transitions]
    return Score(
        num_transitions=len(curve.transitions),
        num_false=num_false,
        num_repeats=num_repeats,
        num_null_points=len(null_points(curve)),
        delays=tuple(float(delay) for delay in delays.values()),
        relative_delays=tuple(delay / widths[i] for i, delay in delays.items()),
    )


def null_points(curve: Curve) -> list[int]:
    """Points at which an alarm would be false."""
    slack = TOLERANCE * len(curve.values)
    return [
        point
        for point in range(len(curve.values))
        if not any(known.holds(point, slack) for known in curve.transitions)
        and not any(zone.holds(point) for zone in curve.ignore)
    ]


def detect(curve: Curve, detector: Detector) -> list[int]:
    """Feed a curve to a detector; the points of its alarms, instabilities left out."""
    alarms = []
    stderrs = curve.stderrs or (None,) * len(curve.values)
    points = zip(curve.steps, curve.values, stderrs, strict=True)
    for point, (step, value, stderr) in enumerate(points):
        alarm = detector.update(step, value, stderr)
        if alarm is not None and alarm.kind is AlarmKind.SHIFT:
            alarms.append(point)
    return alarms


def evaluate(curves: Sequence[Curve], factory: Callable[[], Detector]) -> Score:
    """Score of a fresh detector on each curve, added up."""
    return sum((match(detect(curve, factory()), curve) for curve in curves), Score())


def always_alarm(curves: Sequence[Curve]) -> Score:
    """Score of an alarm at every point: the baseline to print beside any other."""
    return sum((match(range(len(curve.values)), curve) for curve in curves), Score())


def load_curves(path: str | Path) -> list[Curve]:
    """Read annotated curves from JSON.

    Args:
        path: A file with a list of objects that hold `name`, `source`, `steps`, `values` (log10 of
            the loss), `transitions` and `ignore` (objects with `i_start` and `i_end`) and `noisy`.

    Raises:
        ValueError: The file does not hold such curves.
    """
    records = json.loads(Path(path).read_text())
    try:
        return [
            Curve(
                name=record["name"],
                source=record["source"],
                steps=tuple(record["steps"]),
                values=tuple(10.0**value for value in record["values"]),
                transitions=_intervals(record["transitions"]),
                ignore=_intervals(record["ignore"]),
                noisy=bool(record["noisy"]),
            )
            for record in records
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} does not hold annotated curves: {error!r} is missing") from error


def _intervals(records: Sequence[dict[str, int]]) -> tuple[Interval, ...]:
    return tuple(Interval(start=record["i_start"], end=record["i_end"]) for record in records)
