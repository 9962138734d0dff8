"""Thresholds from a number of false alarms.

`false_alarms.json` holds how often each detector alarmed on the streams of `null_streams`, at some
settings of its *knob*: the one parameter that makes it stricter. To the alarms on equal parts of
all classes a log-linear course

    rate(g) = exp(a − b g),   g = the knob (its logit for a probability)

is fitted by maximum likelihood for Poisson counts: (Σ n g) / Σ n = Σ g e^(−bg) / Σ e^(−bg) gives b,
the total gives a. Only settings from the last with `ENOUGH` alarms on count: the tail falls more
slowly than the body. The false alarms of a run are thus those to expect of a run whose stream is of
any class alike; on the worst class there are more (`worst_class` says how many were seen), but no
class alone has enough alarms at strict settings for a fit of its own. CUSUM and Page–Hinkley are at
least as strict as Siegmund's closed form asks on white noise.

But for that closed form, nothing is set more strictly than what was simulated: a rate too low to be
measured is a promise nobody can keep, and its price is blindness. `expected_rate` says what then
remains to expect.
`tests/benchmarks/false_alarms.py` makes the table, and measures the rate on streams that it was not
made from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

from phasewatch.detectors.base import Detector, StateError, require
from phasewatch.detectors.registry import create
from phasewatch.detectors.types import Alarm

TABLE = "false_alarms.json"

KNOBS = {
    "bocpd": "threshold",
    "cusum": "threshold",
    "focus": "threshold",
    "level_shift": "threshold",
    "page_hinkley": "threshold",
    "ruptures_window": "penalty",
    "slope_shift": "strictness",
}
"""The parameter of each detector that makes it stricter."""

PROBABILITIES = frozenset({"bocpd"})
"""Detectors whose knob is a probability."""

CLOSED_FORM = frozenset({"cusum", "page_hinkley"})
"""Detectors for which Siegmund's formula holds on white noise."""

SLACK = 0.5
"""Slack of these two by default, in scales of the noise."""

ENOUGH = 10
"""Alarms at a setting from which its rate is known to about a third."""

STEEPEST = 50.0
"""Largest decay of a rate, in e-folds over the simulated settings."""


@dataclass(frozen=True, slots=True)
class Decay:
    """Rate of false alarms exp(a − b g) per point."""

    a: float
    b: float

    @classmethod
    def fit(cls, settings: Sequence[float], counts: Sequence[int], points: int) -> Decay | None:
        """By maximum likelihood; None without an alarm.

        Args:
            settings: Values of g, increasing.
            counts: Alarms at each.
            points: Points of the streams at each.
        """
        if not sum(counts):
            return None
        first = max((i for i, n in enumerate(counts[:-1]) if n >= ENOUGH), default=0)
        settings, counts = settings[first:], counts[first:]
        low, span = settings[0], settings[-1] - settings[0]
        # Half an alarm at the first setting without one: alarms at the lowest alone would say
        # that the rate falls off at once.
        smoothed = [float(count) for count in counts]
        if 0 in counts:
            smoothed[counts.index(0)] = 0.5
        total = sum(smoothed)
        mean = sum(n * (g - low) for n, g in zip(smoothed, settings, strict=True)) / total

        def weights(b: float) -> list[float]:
            return [math.exp(-b * (g - low)) for g in settings]

        lowest, highest = 0.0, STEEPEST / span
        for _ in range(60):  # the mean of g falls as b grows
            b = 0.5 * (lowest + highest)
            w = weights(b)
            here = sum(x * (g - low) for x, g in zip(w, settings, strict=True)) / sum(w)
            lowest, highest = (b, highest) if here > mean else (lowest, b)
        return cls(math.log(total / (points * sum(weights(b)))) + b * low, b)

    def rate(self, g: float) -> float:
        """Expected false alarms per point."""
        return math.exp(min(self.a - self.b * g, 0.0))

    def setting(self, rate: float) -> float:
        """The g at which the rate is so low; infinite where it depends on no g."""
        excess = self.a - math.log(rate)
        return excess / self.b if self.b else math.copysign(math.inf, excess)


def knob(detector: str) -> str:
    """Name of the parameter that makes a detector stricter.

    Raises:
        ValueError: There is no table for that detector.
    """
    require(detector in KNOBS, "detector", detector, f"one of {', '.join(KNOBS)}")
    return KNOBS[detector]


def threshold_for(detector: str, false_alarms: float, points: float) -> float:
    """Setting of a detector's knob, never laxer than its default.

    Args:
        detector: One of `KNOBS`.
        false_alarms: False alarms to expect at most, above 0.
        points: Points over which they are counted.

    Raises:
        ValueError: There is no table for that detector, or a number is not above 0.

    Example:
        >>> threshold_for("cusum", 0.1, 1e6) > threshold_for("cusum", 0.1, 1e5)
        True
    """
    key = knob(detector)
    require(false_alarms > 0.0, "false_alarms", false_alarms, "above 0")
    require(points > 0.0, "points", points, "above 0")
    rate = min(false_alarms / points, 1.0)
    strictest, decay = _fit(detector)
    wanted = -math.inf if decay is None else min(decay.setting(rate), strictest)
    if detector in CLOSED_FORM:
        from phasewatch.detectors import cusum  # scipy: only for who needs it

        run_length = max(1.0 / rate, 2.0 * cusum.average_run_length(SLACK, 0.0))
        wanted = max(wanted, cusum.threshold_for(SLACK, run_length))
    return max(_from_g(detector, wanted), _default(detector, key))


def expected_rate(detector: str, setting: float) -> float:
    """False alarms to expect per 1000 points at a setting of the knob.

    Where no stream alarmed at any setting: the upper 95 % bound of what was simulated, 3/N.

    Raises:
        ValueError: There is no table for that detector.
    """
    knob(detector)
    _, decay = _fit(detector)
    if decay is None:
        return -1000.0 * math.log(0.05) / _num_points(detector)
    return 1000.0 * decay.rate(_to_g(detector, setting))


def worst_class(detector: str, setting: float) -> tuple[str, float]:
    """The class of streams with most alarms at a simulated setting, and how many per 1000 points.

    Args:
        detector: One of `KNOBS`.
        setting: The knob; the strictest simulated setting up to it is looked at.

    Raises:
        ValueError: There is no table for that detector, or no setting so lax was simulated.
    """
    knob(detector)
    record = table()[detector]
    laxer = [i for i, simulated in enumerate(record["settings"]) if simulated <= setting]
    require(bool(laxer), "setting", setting, f"at least {record['settings'][0]}")
    counts = {name: row[laxer[-1]] for name, row in record["alarms"].items()}
    worst = max(counts, key=lambda name: counts[name])
    return worst, 1000.0 * counts[worst] / record["points"]


@lru_cache
def table() -> Mapping[str, Any]:
    """What was simulated: by detector, the settings, points a class, and alarms by class."""
    found: Mapping[str, Any] = json.loads(
        files("phasewatch.detectors").joinpath(TABLE).read_text(encoding="utf-8")
    )
    return found


@lru_cache
def _fit(detector: str) -> tuple[float, Decay | None]:
    """The strictest simulated g, and the decay over equal parts of all classes."""
    record = table()[detector]
    settings = [_to_g(detector, setting) for setting in record["settings"]]
    counts = [sum(column) for column in zip(*record["alarms"].values(), strict=True)]
    return settings[-1], Decay.fit(settings, counts, _num_points(detector))


def _num_points(detector: str) -> int:
    """Points of all classes together."""
    record = table()[detector]
    return int(record["points"]) * len(record["alarms"])


@lru_cache
def _default(detector: str, key: str) -> float:
    """The knob of a detector made without arguments."""
    made = create(detector)
    value = getattr(made, "parameters", {}).get(key)
    return float(made.threshold if value is None else value)


def _to_g(detector: str, setting: float) -> float:
    return math.log(setting / (1.0 - setting)) if detector in PROBABILITIES else setting


def _from_g(detector: str, g: float) -> float:
    return 1.0 / (1.0 + math.exp(-g)) if detector in PROBABILITIES else g


class Budgeted:
    """A detector whose expected false alarms, over a stream of any length, stay within a number.

    Half of them go to the first `points` points, a quarter to as many again, an eighth to twice as
    many, and so on: a stream that outlasts its horizon is watched more strictly, and the sum never
    passes `false_alarms`. What it has seen is kept when the knob is turned.

    Args:
        name: The detector, one of `KNOBS`.
        false_alarms: Expected false alarms over the whole stream.
        points: Points the stream is expected to have.
        parameters: Further parameters of the detector.

    Raises:
        ValueError: There is no table for that detector, or a number is not above 0.

    Example:
        >>> detector = Budgeted("cusum", 0.01, 1e5)
        >>> detector.threshold > Budgeted("cusum", 0.1, 1e5).threshold
        True
    """

    def __init__(self, name: str, false_alarms: float, points: float, **parameters: Any) -> None:
        self._false_alarms, self._points = false_alarms, max(float(points), 1.0)
        self._further = parameters
        self._knob = knob(name)
        self.name = name
        self.reset()

    def __repr__(self) -> str:
        return f"Budgeted({self._inner!r})"

    @property
    def parameters(self) -> dict[str, Any]:
        """Parameters of the detector as it is now."""
        return dict(self._inner.parameters)  # type: ignore[attr-defined]

    @property
    def symmetric(self) -> bool:
        """Whether the negated stream gives the same alarms in the other direction."""
        return bool(getattr(self._inner, "symmetric", False))

    @property
    def active(self) -> bool:
        """Whether the stream is still inside the episode of the last alarm."""
        return self._inner.active

    @property
    def statistic(self) -> float:
        """How strong the evidence for a change is now."""
        return self._inner.statistic

    @property
    def threshold(self) -> float:
        """The value of `statistic` from which on the detector may alarm."""
        return self._inner.threshold

    @property
    def num_skipped(self) -> int:
        """Points that were not used."""
        return self._inner.num_skipped

    def reset(self) -> None:
        """Forget everything: as good as new."""
        self._stretch = 0
        self._left = self._points
        self._inner = self._make()

    def _make(self) -> Detector:
        share = self._false_alarms * 0.5 ** (self._stretch + 1)
        setting = threshold_for(self.name, share, self._points * 2.0 ** max(self._stretch - 1, 0))
        return create(self.name, **{**self._further, self._knob: setting})

    def update(self, step: int, value: float, stderr: float | None = None) -> Alarm | None:
        """Take the next point; say an alarm once per episode."""
        if self._left <= 0.0:
            self._tighten()
        skipped = self._inner.num_skipped
        alarm = self._inner.update(step, value, stderr)
        if self._inner.num_skipped == skipped:
            self._left -= 1.0
        return alarm

    def _tighten(self) -> None:
        self._stretch += 1
        self._left += self._points * 2.0 ** (self._stretch - 1)
        seen = self._inner.state_dict()
        self._inner = self._make()
        self._inner.load_state_dict(seen | {"parameters": self.parameters})

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes, as plain containers that JSON can hold."""
        budget = [self._false_alarms, self._points, self._stretch, self._left]
        return self._inner.state_dict() | {"budget": budget}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state, with the budget and the settings that it had.

        Raises:
            StateError: The state comes from another detector.
        """
        if state.get("detector") != self.name or "budget" not in state:
            raise StateError(
                f"the saved state is of detector {state.get('detector')!r}, this is a budgeted "
                f"{self.name!r}: make the detector as it was, or start it afresh"
            )
        seen = {key: value for key, value in state.items() if key != "budget"}
        inner = create(self.name, **seen["parameters"])
        inner.load_state_dict(seen)
        self._false_alarms, self._points, self._stretch, self._left = state["budget"]
        self._inner = inner
