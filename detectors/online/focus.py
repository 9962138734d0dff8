"""FOCuS: the likelihood-ratio test of a change of a Gaussian mean, for all sizes at once.

Romano, Eckley, Fearnhead and Rigaill (2023, JMLR 24:81), with the mean before the change unknown.
With partial sums Sₜ of n residuals of variance 1, the statistic is

    max over τ of 2 log Λ(τ) = n / (τ (n − τ)) · (S_τ − τ Sₙ/n)²,

which is twice the log-likelihood ratio, maximised over the change point τ and both means. Each τ is
a quadratic in the mean after the change. A τ whose quadratic is nowhere the largest can never give
the maximum again and is pruned; those left are the vertices of the convex hull of the walk
(τ, S_τ), the lower hull for a mean that rises, the upper for one that falls. On noise that is about
log n of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from phasewatch.detectors.base import require
from phasewatch.detectors.statistics.residual import ResidualDetector
from phasewatch.detectors.statistics.scales import ScaleName


class FunctionalPruning:
    """The bare recursion: exact while no side holds more than `max_pieces` change points.

    Args:
        max_pieces: Change points held for each side; beyond it the oldest is forgotten.
    """

    __slots__ = ("_count", "_max_pieces", "_sides", "_sum", "run_length", "sign", "statistic")

    def __init__(self, max_pieces: int) -> None:
        self._max_pieces = max_pieces
        self._count = 0
        self._sum = 0.0
        # The walk, and the walk upside down; the first vertex is its start, which is no change.
        self._sides: dict[int, list[tuple[int, float]]] = {1: [(0, 0.0)], -1: [(0, 0.0)]}
        self.statistic = 0.0
        self.sign = 1
        self.run_length = 0

    def update(self, z: float) -> None:
        """Take the next number."""
        if self._count:
            for sign, hull in self._sides.items():
                self._add(hull, self._count, sign * self._sum)
        self._count += 1
        self._sum += z
        self._maximise()

    def _add(self, hull: list[tuple[int, float]], tau: int, height: float) -> None:
        """Make a point the last vertex of a lower hull; those it hides are pruned."""
        while len(hull) > 1:
            (t1, s1), (t2, s2) = hull[-2:]
            if (s2 - s1) * (tau - t2) < (height - s2) * (t2 - t1):
                break
            hull.pop()
        hull.append((tau, height))
        if len(hull) > self._max_pieces + 1:
            del hull[1]

    def _maximise(self) -> None:
        n = self._count
        best, best_tau, best_sign = 0.0, n, 1
        for sign, hull in self._sides.items():
            mean = sign * self._sum / n
            for tau, height in hull[1:]:
                gap = tau * mean - height
                gain = gap * gap * n / (tau * (n - tau))
                if gap > 0.0 and gain > best:
                    best, best_tau, best_sign = gain, tau, sign
        self.statistic, self.sign, self.run_length = best, best_sign, n - best_tau

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes."""
        return {
            "sum": [self._count, self._sum],
            "up": [list(vertex) for vertex in self._sides[1]],
            "down": [list(vertex) for vertex in self._sides[-1]],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._count, self._sum = state["sum"]
        for sign, side in ((1, "up"), (-1, "down")):
            self._sides[sign] = [(tau, height) for tau, height in state[side]]
        if self._count:
            self._maximise()


class Focus(ResidualDetector):
    """Detects changes of level against the local trend, of any size, upwards and downwards.

    Cost: about 20 µs a point; memory of `max_pieces` change points for each side.

    Args:
        threshold: Smallest 2 log Λ.
        max_pieces: Change points held for each side; the test is exact while that is enough.
        gate: Smallest change, in dex; on the linear scale in shares of the largest size so far.
        trend: Points of the local line.
        scale: "log", "linear", or "auto": "log" until the first negative value.
        floor: Losses below it count as equal, in the loss's unit.

    Raises:
        ValueError: A parameter is out of its range.

    Example:
        >>> detector = Focus()
        >>> stream = [2.0] * 100 + [0.5] * 100
        >>> alarms = [detector.update(step, value) for step, value in enumerate(stream)]
        >>> [(alarm.onset_step, alarm.detected_step) for alarm in alarms if alarm]
        [(100, 102)]
    """

    name = "focus"

    def __init__(
        self,
        *,
        threshold: float = 30.0,
        max_pieces: int = 64,
        gate: float = 0.25,
        trend: int = 30,
        scale: ScaleName = "auto",
        floor: float = 1e-8,
    ) -> None:
        given = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        require(threshold > 0.0, "threshold", threshold, "above 0")
        require(max_pieces >= 1, "max_pieces", max_pieces, "at least 1")
        self._threshold, self._max_pieces = threshold, max_pieces
        super().__init__(given)

    @property
    def threshold(self) -> float:
        """Smallest 2 log Λ that may alarm."""
        return self._threshold

    def _recursion(self) -> FunctionalPruning:
        return FunctionalPruning(self._max_pieces)
