"""Two-sided CUSUM on detrended residuals (Page 1954, Biometrika 41:100).

    S⁺ₙ = max(0, S⁺ₙ₋₁ + zₙ − k),   S⁻ₙ = max(0, S⁻ₙ₋₁ − zₙ − k),   alarm at max(S⁺, S⁻) ≥ h

It is the quickest test for a change of the mean by 2k.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from scipy.optimize import brentq

from phasewatch.detectors.base import require
from phasewatch.detectors.statistics.residual import ResidualDetector
from phasewatch.detectors.statistics.scales import ScaleName

OVERSHOOT = 1.166
"""Twice the mean overshoot of a Gaussian walk, 2 × 0.583 (Siegmund 1985, chapter 10)."""

LARGEST_EXPONENT = 700.0
SMALLEST_SLACK = 0.01


def average_run_length(slack: float, threshold: float) -> float:
    """Expected points to a false alarm of the two-sided CUSUM on white Gaussian noise of scale 1.

    Siegmund's approximation (1985, *Sequential Analysis*, equation 2.56): each side alone takes
    (exp(2kb) − 2kb − 1) / (2k²) points with b = h + 1.166; two sides take half.

    Args:
        slack: k, in scales of the noise.
        threshold: h, in the same.

    Example:
        >>> round(average_run_length(0.5, 5.0))
        469
    """
    b = 2.0 * slack * (threshold + OVERSHOOT)
    if b > LARGEST_EXPONENT:
        return math.inf
    return (math.expm1(b) - b) / (4.0 * slack * slack)


def threshold_for(slack: float, run_length: float) -> float:
    """Threshold at which `average_run_length` is so many points.

    Raises:
        ValueError: Even a threshold of 0 gives more points.

    Example:
        >>> round(threshold_for(0.5, 469.1), 2)
        5.0
    """
    least = average_run_length(slack, 0.0)
    require(
        run_length > least, "average_run_length", run_length, f"above {least:.3g} at this slack"
    )

    def excess(threshold: float) -> float:
        b = 2.0 * slack * (threshold + OVERSHOOT)
        # The logarithm, so that long runs do not overflow: log(eᵇ − b − 1).
        return b + math.log1p(-(b + 1.0) * math.exp(-b)) - math.log(4.0 * slack**2 * run_length)

    return float(brentq(excess, 0.0, (math.log(run_length + 1.0) + 50.0) / slack))


class TwoSidedSums:
    """The bare recursion.

    Args:
        slack: k.
    """

    __slots__ = ("_down", "_down_run", "_slack", "_up", "_up_run")

    def __init__(self, slack: float) -> None:
        self._slack = slack
        self._up = self._down = 0.0
        self._up_run = self._down_run = 0

    @property
    def statistic(self) -> float:
        """The larger of the two sums."""
        return max(self._up, self._down)

    @property
    def sign(self) -> int:
        """The side of the larger sum."""
        return 1 if self._up >= self._down else -1

    @property
    def run_length(self) -> int:
        """Points since that sum was last 0: the maximum-likelihood estimate of the change."""
        return self._up_run if self.sign > 0 else self._down_run

    def update(self, z: float) -> None:
        """Take the next number."""
        self._up = max(self._up + z - self._slack, 0.0)
        self._down = max(self._down - z - self._slack, 0.0)
        self._up_run = self._up_run + 1 if self._up > 0.0 else 0
        self._down_run = self._down_run + 1 if self._down > 0.0 else 0

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes."""
        return {"up": [self._up, self._up_run], "down": [self._down, self._down_run]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._up, self._up_run = state["up"]
        self._down, self._down_run = state["down"]


class Cusum(ResidualDetector):
    """Detects changes of level against the local trend, upwards and downwards.

    Cost: about 10 µs a point; constant memory.

    Args:
        threshold: h, in scales of the noise; None takes it from `average_run_length`.
        average_run_length: Expected points between false alarms on white Gaussian noise, before the
            effect gate.
        slack: k, in scales of the noise: half the smallest change that matters.
        gate: Smallest change, in dex; on the linear scale in shares of the largest size so far.
        trend: Points of the local line.
        scale: "log", "linear", or "auto": "log" until the first negative value.
        floor: Losses below it count as equal, in the loss's unit.

    Raises:
        ValueError: A parameter is out of its range.

    Example:
        >>> detector = Cusum()
        >>> stream = [2.0] * 100 + [0.5] * 100
        >>> alarms = [detector.update(step, value) for step, value in enumerate(stream)]
        >>> [(alarm.onset_step, alarm.detected_step) for alarm in alarms if alarm]
        [(100, 102)]
    """

    name = "cusum"

    def __init__(
        self,
        *,
        threshold: float | None = None,
        average_run_length: float = 1e6,
        slack: float = 0.5,
        gate: float = 0.25,
        trend: int = 30,
        scale: ScaleName = "auto",
        floor: float = 1e-8,
    ) -> None:
        given = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        require(slack >= SMALLEST_SLACK, "slack", slack, f"at least {SMALLEST_SLACK}")
        self._slack = slack
        self._threshold = (
            threshold_for(slack, average_run_length) if threshold is None else threshold
        )
        require(self._threshold > 0.0, "threshold", threshold, "above 0")
        super().__init__(given)

    @property
    def threshold(self) -> float:
        """h, in scales of the noise."""
        return self._threshold

    def _recursion(self) -> TwoSidedSums:
        return TwoSidedSums(self._slack)
