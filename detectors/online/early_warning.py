"""A stream that slows down critically: its fluctuations grow, and each is more like the last.

Before a tipping point a system comes back to its course more and more slowly, so the variance and
the lag-one autocorrelation of what is left after detrending both rise (Scheffer et al. 2009,
doi 10.1038/nature08227; Dakos et al. 2012, doi 10.1371/journal.pone.0041010).

Each block of `block` points is detrended by a straight line through it. Over the latest `blocks`
blocks, Kendall's τ of the blocks' variances and of their autocorrelations against time are taken.
Blocks do not overlap, so that without a trend each τ has mean 0 and variance
v = 2(2m + 5) / 9m(m − 1), m the number of blocks. The statistic is (τ_var + τ_ac) / √(2v), about a
standard normal number. It alarms when it passes `threshold`, both τ are above 0, and the
fluctuations have grown by `growth` from the first third of the blocks to the last.

Such an alarm is no change but the suspicion that one may come. Read its score in
`tests/benchmarks/precursors.py` before you rely on it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phasewatch.detectors.base import BaseDetector, require
from phasewatch.detectors.statistics.scales import ScaleName, StreamScale
from phasewatch.detectors.types import Alarm, AlarmKind, Direction

ROUNDING = 1e-9
"""Fluctuations below it, in dex or in units of the stream's size, count as none."""


class Precursor(BaseDetector):
    """Suspects that a change is coming where fluctuations grow and slow down.

    It is off unless chosen. Cost: about 13 µs a point, memory of one block and of two numbers for
    each of `blocks`.

    Args:
        block: Points of a block.
        blocks: Blocks over which a trend is looked for.
        threshold: Smallest statistic, in standard deviations; 3.5 is one block in 4000 by chance.
        growth: Smallest growth of the fluctuations' size.
        scale: "log", "linear" or "auto"; see `StreamScale`.
        floor: Losses below it count as equal, in the loss's unit.

    Raises:
        ValueError: A parameter is out of its range.

    Example:
        >>> import numpy as np
        >>> noise = np.random.default_rng(0).standard_normal(400)
        >>> x, values = 0.0, []
        >>> for i, e in enumerate(noise):
        ...     x = 0.99 * i / 400 * x + 0.01 * (1 + i / 100) * e
        ...     values.append(10.0 + x)
        >>> detector = Precursor()
        >>> alarms = [detector.update(step, value) for step, value in enumerate(values)]
        >>> [alarm.kind.value for alarm in alarms if alarm]
        ['precursor']
    """

    name = "precursor"

    def __init__(
        self,
        *,
        block: int = 16,
        blocks: int = 12,
        threshold: float = 3.5,
        growth: float = 1.5,
        scale: ScaleName = "auto",
        floor: float = 1e-8,
    ) -> None:
        require(block >= 6, "block", block, "at least 6")
        require(blocks >= 6, "blocks", blocks, "at least 6")
        require(threshold > 0.0, "threshold", threshold, "above 0")
        require(growth >= 1.0, "growth", growth, "at least 1")
        self._block, self._blocks = block, blocks
        self._limit, self._growth = threshold, growth
        self._scale = StreamScale(scale, floor)
        self._spread = math.sqrt(2.0 * 2.0 * (2 * blocks + 5) / (9.0 * blocks * (blocks - 1)))
        super().__init__(
            {
                "block": block, "blocks": blocks, "threshold": threshold, "growth": growth,
                "scale": scale, "floor": floor,
            }
        )  # fmt: skip

    @property
    def threshold(self) -> float:
        """Smallest statistic that alarms."""
        return self._limit

    @property
    def statistic(self) -> float:
        """Joint trend of variance and autocorrelation at the latest block, about N(0, 1)."""
        return self._statistic

    @property
    def _in_episode(self) -> bool:
        return False

    def _reset(self) -> None:
        self._scale.reset()
        self._restart()

    def _restart(self) -> None:
        self._steps: list[int] = []
        self._values: list[float] = []
        self._past: deque[list[float]] = deque(maxlen=self._blocks)
        self._statistic = 0.0

    def _observe(self, step: int, value: float, stderr: float | None) -> Alarm | None:  # noqa: ARG002
        if self._scale.must_change(value):
            self._restart()
        self._steps.append(step)
        self._values.append(self._scale.take(value))
        if len(self._values) < self._block:
            return None
        variance, likeness = _fluctuation(np.array(self._steps), np.array(self._values))
        self._past.append([self._steps[0], variance, likeness])
        self._steps, self._values = [], []
        return self._judge(step, value) if len(self._past) == self._blocks else None

    def _judge(self, step: int, value: float) -> Alarm | None:
        past: NDArray[np.float64] = np.array(self._past)
        floor = (ROUNDING * self._scale.unit) ** 2
        sizes = np.sqrt(np.maximum(past[:, 1], floor))
        trends = [_kendall(sizes), _kendall(past[:, 2])]
        self._statistic = max(sum(trends) / self._spread, 0.0)
        third = self._blocks // 3
        grown = float(np.median(sizes[-third:])) >= self._growth * float(np.median(sizes[:third]))
        if self._statistic < self._limit or min(trends) <= 0.0 or not grown:
            return None
        alarm = Alarm(
            detected_step=step,
            onset_step=int(past[0, 0]),
            direction=Direction.UP,
            kind=AlarmKind.PRECURSOR,
            score=self._statistic / self._limit,
            run_length=self._block * self._blocks,
            value_before=value,
            value_after=value,
        )
        self._past.clear()
        return alarm

    def _state(self) -> dict[str, Any]:
        return {
            "scale": self._scale.state_dict(),
            "steps": list(self._steps),
            "values": list(self._values),
            "past": [list(row) for row in self._past],
            "statistic": self._statistic,
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        self._scale.load_state_dict(state["scale"])
        self._steps = [int(step) for step in state["steps"]]
        self._values = [float(value) for value in state["values"]]
        self._past.extend(list(row) for row in state["past"])
        self._statistic = float(state["statistic"])


def _fluctuation(steps: NDArray[np.int64], values: NDArray[np.float64]) -> tuple[float, float]:
    """Variance and lag-one autocorrelation about the straight line through a block."""
    x = steps - steps.mean()
    rest = values - values.mean()
    rest = rest - x * float(x @ rest) / float(x @ x)
    power = float(rest @ rest)
    likeness = float(rest[1:] @ rest[:-1]) / power if power > 0.0 else 0.0
    return power / (values.size - 2), likeness


def _kendall(values: NDArray[np.float64]) -> float:
    """Kendall's τ of a series against its order: rises less falls, as a share of all pairs."""
    later = np.triu(np.sign(values[None, :] - values[:, None]), k=1)
    return float(later.sum()) / (values.size * (values.size - 1) / 2)
