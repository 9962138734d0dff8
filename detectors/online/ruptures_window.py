"""Changes of any scalar stream: ruptures over a sliding window of detrended residuals.

Each point is forecast from a straight line through the `trend` points before it. The forecast
error over its own running scale, clipped to ±5, is the residual z. When a CUSUM of z says that
something may have moved, the last `window` residuals are searched by ruptures with every point a
candidate (`jump=1`): by default for mean shifts, by kernel change point detection (`KernelCPD`,
linear kernel, penalised; Celisse et al. 2018). The newest change found alarms when

- its gain n₁n₂/(n₁+n₂)·(z̄₂ − z̄₁)² passes `penalty` × (1+φ)/(1−φ), φ the lag-one autocorrelation
  of the residuals within the segments,
- the residuals were nearer to 0 before it than after it, and
- effect: the values after it have left the line through those before it by more than `effect`
  of the stream's range so far, and at least `min_effect`; and their level has moved that way by
  half as much (a curve that flattens has not fallen).

A search that finds nothing is not repeated for `min_size` points.

The episode ends after `trend` calm residuals in a row; the window then starts afresh.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from operator import mul
from typing import Any, Literal, get_args

import numpy as np
import ruptures
from numpy.typing import NDArray

from phasewatch.detectors.base import BaseDetector, require
from phasewatch.detectors.statistics.noise import autocorrelation, inflation, scale
from phasewatch.detectors.statistics.weighted_lines import WeightedLines
from phasewatch.detectors.types import Alarm, Direction

CLIP = 5.0
"""Largest residual, in scales: a few wild points must not look like a change of level."""

SLACK, SUSPICION = 0.5, 8.0
"""Slack and threshold of the CUSUM that decides whether a search is worth its cost."""

BELIEVED = 15
"""So many clipped residuals in a row are no longer wild points."""

CALM = 3.0
"""Residuals below it are calm."""

MEAN_TO_SIGMA = 1.2533
"""Standard deviation of a Gaussian over its mean absolute deviation."""

ROUNDING = 1e-9
"""Smallest noise scale assumed, as a share of the largest size so far."""

TINY = 1e-300

RELATIVE_FLOOR = 1e-6
"""Smallest noise scale assumed, as a share of the range so far."""


Search = Literal["kernelcpd", "pelt", "binseg", "bottomup", "window"]
Cost = Literal["l2", "rbf", "linear", "weighted"]

_SEARCHES: dict[str, Any] = {
    "pelt": ruptures.Pelt,
    "binseg": ruptures.Binseg,
    "bottomup": ruptures.BottomUp,
    "window": ruptures.Window,
}
_KERNELS = {"l2": "linear", "rbf": "rbf"}


def search_changes(
    residuals: NDArray[np.float64],
    *,
    penalty: float,
    min_size: int,
    search: Search = "kernelcpd",
    cost: Cost = "l2",
    stderrs: NDArray[np.float64] | None = None,
) -> list[int]:
    """Where residuals change, by ruptures with `jump=1`.

    Args:
        residuals: Shape (n,), in noise scales.
        penalty: Smallest gain of a change. A Gaussian kernel lies in [0, 1] whatever the scale, so
            "rbf" takes 3 log n instead.
        min_size: Points a segment must have at least.
        search: How ruptures searches. "bottomup" joins leaves of `min_size` points, and is off by
            up to as many.
        cost: What it searches for: a mean ("l2"), a distribution ("rbf"), a line ("linear"), or a
            mean of points with known standard errors ("weighted").
        stderrs: Standard errors, above 0, for "weighted"; only their ratios matter.

    Returns:
        Indices at which a segment begins, but for the first.

    Raises:
        ValueError: A residual or a standard error is not finite.
    """
    weights = None
    if cost == "weighted" and stderrs is not None:
        weights = stderrs**-2.0
        weights /= weights.mean()
    for name, array in (("residuals", residuals), ("stderrs", weights)):
        if array is not None and not np.isfinite(array).all():
            raise ValueError(f"{name} has a value that is not finite: leave such points out")
    if residuals.size < 2 * min_size:
        return []
    if cost == "rbf":
        penalty = 3.0 * math.log(residuals.size)
    settings: dict[str, Any] = {"min_size": min_size, "jump": 1}
    if search == "kernelcpd":
        found = ruptures.KernelCPD(kernel=_KERNELS[cost], **settings)
    else:
        if search == "window":
            settings["width"] = 4 * min_size
        if cost == "rbf":
            settings["model"] = "rbf"
        else:
            places = np.arange(residuals.size, dtype=np.float64) if cost == "linear" else None
            settings["custom_cost"] = WeightedLines(places, weights)
        found = _SEARCHES[search](**settings)
    return list(found.fit(residuals[:, None]).predict(pen=penalty)[:-1])


class RupturesWindow(BaseDetector):
    """Detects level changes against the stream's own trend, upwards and downwards.

    Meant for norms, ratios and metrics of any sign. Cost: about 5 µs a point and, where a
    search is due, about 150 µs for the default; 0.4 to 1 ms for "binseg", "bottomup" and "window",
    11 to 20 ms for "pelt"; three times that with "rbf". Memory of `window` + `trend` points.

    Args:
        search: How ruptures searches the window.
        cost: What it searches for; see `search_changes`. "linear" and "weighted" are beyond
            "kernelcpd". Whatever is found must pass the same gates.
        penalty: Smallest gain of a change, in squared noise scales.
        effect: Smallest change, as a share of the range so far.
        min_effect: Smallest change in the stream's own unit; 0.1 suits accuracies.
        window: Residuals searched.
        trend: Points of the local trend line.
        min_size: Points a segment must have at least.

    Raises:
        ValueError: A parameter is out of its range.

    Example:
        >>> import math
        >>> detector = RupturesWindow()
        >>> stream = [math.cos(3.0 * i) + (20.0 if i >= 200 else 0.0) for i in range(300)]
        >>> alarms = [detector.update(step, value) for step, value in enumerate(stream)]
        >>> [(alarm.onset_step, alarm.direction.value) for alarm in alarms if alarm]
        [(200, 'up')]
    """

    name = "ruptures_window"
    symmetric = True

    def __init__(
        self,
        *,
        search: Search = "kernelcpd",
        cost: Cost = "l2",
        penalty: float = 70.0,
        effect: float = 0.15,
        min_effect: float = 0.0,
        window: int = 100,
        trend: int = 20,
        min_size: int = 5,
    ) -> None:
        for name, value, kinds in (("search", search, Search), ("cost", cost, Cost)):
            known = get_args(kinds)
            require(value in known, name, value, f"one of {', '.join(map(repr, known))}")
        if search == "kernelcpd":
            require(cost in _KERNELS, "cost", cost, "'l2' or 'rbf' with search='kernelcpd'")
        require(penalty > 0.0, "penalty", penalty, "above 0")
        require(effect > 0.0, "effect", effect, "above 0")
        require(min_effect >= 0.0, "min_effect", min_effect, "at least 0")
        require(trend >= 3, "trend", trend, "at least 3")
        require(min_size >= 2, "min_size", min_size, "at least 2")
        require(window >= 4 * min_size, "window", window, f"at least 4 × min_size = {4 * min_size}")
        self._search_by, self._cost = search, cost
        self._penalty, self._effect, self._min_effect = penalty, effect, min_effect
        self._window, self._trend, self._min_size = window, trend, min_size
        # Weights of the least-squares line through x = 0 … trend−1 at x = trend.
        x = np.arange(trend) - (trend - 1) / 2.0
        weights = 1.0 / trend + x * ((trend + 1) / 2.0) / float(x @ x)
        self._weights: list[float] = weights.tolist()
        super().__init__(
            {
                "search": search, "cost": cost, "penalty": penalty,
                "effect": effect, "min_effect": min_effect,
                "window": window, "trend": trend, "min_size": min_size,
            }
        )  # fmt: skip

    @property
    def threshold(self) -> float:
        """Smallest gain that may alarm, before autocorrelation is allowed for."""
        return self._penalty

    @property
    def statistic(self) -> float:
        """Gain of the newest change at the latest search, over 1 + φ / 1 − φ; 0 without one."""
        return self._statistic

    @property
    def _in_episode(self) -> bool:
        return self._calm >= 0

    def _reset(self) -> None:
        keep = self._window + self._trend
        self._steps: deque[int] = deque(maxlen=keep)
        self._values: deque[float] = deque(maxlen=keep)
        self._latest: deque[float] = deque(maxlen=self._trend)
        self._errors: list[float] = []
        self._noise = 0.0
        self._lowest = self._highest = 0.0
        self._calm = -1
        self._wild = 0
        self._statistic = 0.0
        self._begin()

    def _begin(self) -> None:
        self._residuals: deque[float] = deque(maxlen=self._window)
        self._stderrs: deque[float] = deque(maxlen=self._window)
        self._up = self._down = 0.0
        self._wait = 0

    def _observe(self, step: int, value: float, stderr: float | None) -> Alarm | None:
        self._stderr = stderr if stderr is not None and 0.0 < stderr < math.inf else math.nan
        error = None
        if len(self._latest) == self._trend:
            error = value - sum(map(mul, self._weights, self._latest))
        if not self._values:
            self._lowest = self._highest = value
        elif value < self._lowest:
            self._lowest = value
        elif value > self._highest:
            self._highest = value
        self._steps.append(step)
        self._values.append(value)
        self._statistic = 0.0
        alarm = None if error is None else self._take(step, error)
        # Wild points must not bend the line that the points after them are measured against.
        wild = 0 < self._wild < BELIEVED
        self._latest.append(value - error if wild and error is not None else value)
        return alarm

    def _take(self, step: int, error: float) -> Alarm | None:
        """One forecast error: scale it, and search when the CUSUM is suspicious."""
        if len(self._errors) < self._trend:  # the first errors only set the scale
            self._errors.append(error)
            if len(self._errors) == self._trend:
                self._noise = scale(np.array(self._errors))
            return None
        low, high = self._lowest, self._highest
        noise = max(
            self._noise, RELATIVE_FLOOR * (high - low), ROUNDING * high, -ROUNDING * low, TINY
        )
        z = error / noise
        if -CLIP < z < CLIP:
            self._wild = 0
        else:
            self._wild += 1
            z = CLIP if z > 0.0 else -CLIP
        size = min(abs(error), CALM * noise) * MEAN_TO_SIGMA
        self._noise = max(self._noise + (size - self._noise) / self._window, 0.0)
        if self._calm >= 0:
            self._calm = self._calm + 1 if abs(z) < CALM else 0
            if self._calm >= self._trend:
                self._calm = -1
                self._begin()
            return None
        self._residuals.append(z)
        self._stderrs.append(self._stderr)
        up = self._up = max(self._up + z - SLACK, 0.0)
        down = self._down = max(self._down - z - SLACK, 0.0)
        if (up < SUSPICION and down < SUSPICION) or len(self._residuals) < 4 * self._min_size:
            return None
        self._wait = (self._wait + 1) % self._min_size
        return self._search(step) if self._wait == 1 else None

    def _search(self, step: int) -> Alarm | None:
        residuals = np.array(self._residuals)
        starts = search_changes(
            residuals,
            penalty=self._penalty,
            min_size=self._min_size,
            search=self._search_by,
            cost=self._cost,
            stderrs=self._errors_of_points(),
        )
        if not starts:
            return None
        segments = np.split(residuals, starts)
        before, after = segments[-2], segments[-1]
        jump = float(after.mean() - before.mean())
        if abs(after.mean()) <= abs(before.mean()):
            return None  # back on the line, or beyond it on the way back
        phi = autocorrelation(np.concatenate([part - part.mean() for part in segments]))
        gain = before.size * after.size / (before.size + after.size) * jump**2
        gain /= inflation(phi) ** 2
        back = after.size
        old, carried_on, now = self._levels(back)
        change = now - carried_on
        smallest = max(self._effect * (self._highest - self._lowest), self._min_effect)
        if min(change * np.sign(jump), 2.0 * (now - old) * np.sign(jump)) <= smallest:
            return None
        self._statistic = gain
        if gain < self._penalty:
            return None
        self._calm = 0
        return Alarm(
            detected_step=step,
            onset_step=self._steps[-back],
            direction=Direction.UP if jump > 0.0 else Direction.DOWN,
            score=gain / self._penalty,
            run_length=back,
            value_before=old,
            value_after=now,
        )

    def _errors_of_points(self) -> NDArray[np.float64] | None:
        """Standard errors in the window; where a point has none, the median of the others."""
        stderrs: NDArray[np.float64] = np.array(self._stderrs)
        known = np.isfinite(stderrs)
        return np.where(known, stderrs, np.median(stderrs[known])) if known.any() else None

    def _levels(self, back: int) -> tuple[float, float, float]:
        """The line before the change at its end and at the middle of what followed, whose mean."""
        values: NDArray[np.float64] = np.array(self._values)
        old, new = values[:-back][-self._trend :], values[-back:]
        x = np.arange(old.size) - (old.size - 1) / 2.0
        slope = float(x @ old) / float(x @ x)
        middle = float(old.mean())
        end = middle + slope * (old.size - 1) / 2.0
        return end, middle + slope * (old.size + back) / 2.0, float(new.mean())

    def _state(self) -> dict[str, Any]:
        return {
            "steps": list(self._steps),
            "values": list(self._values),
            "latest": list(self._latest),
            "errors": list(self._errors),
            "residuals": list(self._residuals),
            "stderrs": [None if math.isnan(error) else error for error in self._stderrs],
            "cusum": [self._up, self._down, self._wait, self._wild],
            "range": [self._lowest, self._highest],
            "noise": self._noise,
            "calm": self._calm,
            "statistic": self._statistic,
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        self._steps.extend(int(step) for step in state["steps"])
        self._values.extend(float(value) for value in state["values"])
        self._latest.extend(float(value) for value in state["latest"])
        self._errors = [float(error) for error in state["errors"]]
        self._residuals.extend(float(z) for z in state["residuals"])
        self._stderrs.extend(math.nan if e is None else float(e) for e in state["stderrs"])
        self._up, self._down, self._wait, self._wild = state["cusum"]
        self._lowest, self._highest = state["range"]
        self._noise = float(state["noise"])
        self._calm = int(state["calm"])
        self._statistic = float(state["statistic"])
