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

from phasewatch.detectors.base import require
from phasewatch.detectors.registry import create

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
        from phasewatch.detectors.online import cusum  # scipy: only for who needs it

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
        files("phasewatch.detectors.error_control").joinpath(TABLE).read_text(encoding="utf-8")
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
