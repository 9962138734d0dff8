"""Residuals of a stream against its own trend, in units of their own scale.

Loss always moves, so a test for a change of level alarms for ever unless the trend is taken off
first. A straight line is fitted to the last points as a function of step, so that irregular logging
does no harm, and carried on to the next point. With n points at steps tᵢ, mean t̄,
S = Σ (tᵢ − t̄)², the residual of value y at step t is

    z = (y − ŷ(t)) / (σ √(1 + 1/n + (t − t̄)²/S)),

the recursive residual of Brown, Durbin and Evans (1975, J. R. Statist. Soc. B 37:149). σ is
1.4826 × the median absolute numerator of the last residuals, each over its own root: about 0, not
about their median, so that a curve that is bent all along has residuals of ordinary size. It never
falls below `noise_floor`, or noise-free curves would give residuals without bound. z is clipped to
±10 and, for tests made for white noise, divided by √((1+φ)/(1−φ)), φ its running autocorrelation.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping
from operator import mul
from typing import Any

from phasewatch.detectors.base import require
from phasewatch.detectors.statistics.noise import MAD_TO_SIGMA, RunningCorrelation, inflation

CLIP = 10.0
"""Largest residual: a few wild points must not look like a change of level."""

BELIEVED = 3
"""So many clipped residuals in a row, on one side, are no spike: the line takes their points."""

MEMORY = 100
"""Residuals whose median absolute size is the scale."""

MIN_POINTS = 5
"""Points from which on a line is fitted; the residuals start there."""

MIN_SIZES = 10
"""Residuals that set the scale before the first is given."""


class Detrend:
    """One-step residuals of a local straight line over a robust running scale.

    Memory of `points` values and 100 residuals.

    Args:
        points: Points of the line; the first residual is given at the 16th point.
        noise_floor: Smallest scale of the noise, in units of `unit` in `update`.

    Attributes:
        forecast: The line through the points before the latest, at its step.
        slope: Slope of that line, per step.

    Raises:
        ValueError: A parameter is out of its range.
    """

    __slots__ = (
        "_correlation", "_held", "_noise_floor", "_points", "_sizes", "_sorted", "_steps",
        "_values", "_wild", "forecast", "slope",
    )  # fmt: skip

    def __init__(self, points: int = 30, noise_floor: float = 0.01) -> None:
        require(points >= MIN_POINTS, "trend", points, f"at least {MIN_POINTS}")
        require(noise_floor > 0.0, "noise_floor", noise_floor, "above 0")
        self._points, self._noise_floor = points, noise_floor
        self._steps: deque[int] = deque(maxlen=points)
        self._values: deque[float] = deque(maxlen=points)
        self._held: list[tuple[int, float]] = []
        self._wild = 0
        self._sizes: deque[float] = deque()
        self._sorted: list[float] = []
        self._correlation = RunningCorrelation()
        self.forecast = self.slope = 0.0

    def update(self, step: int, y: float, unit: float) -> float | None:
        """Take the next point.

        Args:
            step: Its step.
            y: Its value, on the scale the stream is watched on.
            unit: What `noise_floor` is measured in.

        Returns:
            The residual z, within [−10, 10]; None while there are too few points.
        """
        if len(self._steps) < MIN_POINTS:
            self.forecast, self.slope = y, 0.0
            self._push(step, y)
            return None
        error = self._forecast_error(step, y)
        if not math.isfinite(error):
            self._steps.clear()  # the sums overflow: begin the line afresh
            self._values.clear()
            return None
        ready = len(self._sizes) >= MIN_SIZES
        z = error / max(self._scale(), self._noise_floor * unit)
        self._learn(abs(error))
        if not ready:
            self._push(step, y)
            return None
        z = min(max(z, -CLIP), CLIP)
        self._take(step, y, z)
        white = z / inflation(self._correlation.phi)
        self._correlation.update(z)
        return white

    def _take(self, step: int, y: float, z: float) -> None:
        """Move the line on. Wild points wait until they are too many for a spike."""
        sign = (z >= CLIP) - (z <= -CLIP)
        if sign == 0 or sign * self._wild < 0:
            self._wild = 0
            self._held.clear()
        self._wild += sign
        if 0 < abs(self._wild) < BELIEVED:
            self._held.append((step, y))
            return
        for point in self._held:
            self._push(*point)
        self._held.clear()
        self._push(step, y)

    def _push(self, step: int, y: float) -> None:
        self._steps.append(step)
        self._values.append(y)

    def _forecast_error(self, step: int, y: float) -> float:
        """How far the point lies from the line, over √(1 + 1/n + (t − t̄)²/S)."""
        n = len(self._steps)
        centre = sum(self._steps) / n
        x = [point - centre for point in self._steps]
        spread = sum(map(mul, x, x))
        self.slope = sum(map(mul, x, self._values)) / spread
        ahead = step - centre
        self.forecast = sum(self._values) / n + self.slope * ahead
        return (y - self.forecast) / math.sqrt(1.0 + 1.0 / n + ahead * ahead / spread)

    def _scale(self) -> float:
        sizes = self._sorted
        return MAD_TO_SIGMA * sizes[len(sizes) // 2] if sizes else 0.0

    def _learn(self, size: float) -> None:
        self._sizes.append(size)
        insort(self._sorted, size)
        if len(self._sizes) > MEMORY:
            del self._sorted[bisect_left(self._sorted, self._sizes.popleft())]

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes."""
        return {
            "points": [list(point) for point in zip(self._steps, self._values, strict=True)],
            "held": [list(point) for point in self._held],
            "wild": self._wild,
            "sizes": list(self._sizes),
            "correlation": self._correlation.state_dict(),
            "line": [self.forecast, self.slope],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        for step, value in state["points"]:
            self._push(step, value)
        self._held = [(step, value) for step, value in state["held"]]
        self._wild = int(state["wild"])
        self._sizes = deque(float(size) for size in state["sizes"])
        self._sorted = sorted(self._sizes)
        self._correlation.load_state_dict(state["correlation"])
        self.forecast, self.slope = state["line"]
