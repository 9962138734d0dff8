"""Page–Hinkley test, both ways, on detrended residuals (Hinkley 1971, Biometrika 58:509).

With the running mean z̄ₙ of the residuals so far and mₙ = Σᵢ (zᵢ − z̄ᵢ − δ),

    PH⁺ₙ = mₙ − min mᵢ,   PH⁻ₙ the same of −z,   alarm at max(PH⁺, PH⁻) ≥ λ.

It is CUSUM with a mean that is learnt: residuals that are a little off 0 all along, as on a curve
that is bent all along, wear it down less.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from phasewatch.detectors.base import require
from phasewatch.detectors.online.cusum import TwoSidedSums
from phasewatch.detectors.statistics.residual import ResidualDetector
from phasewatch.detectors.statistics.scales import ScaleName


class PageHinkleySums(TwoSidedSums):
    """The bare recursion: mₙ − min mᵢ is the sum of z − z̄ − δ that starts anew below 0.

    Args:
        slack: δ.
    """

    __slots__ = ("_count", "_mean")

    def __init__(self, slack: float) -> None:
        super().__init__(slack)
        self._count = 0
        self._mean = 0.0

    def update(self, z: float) -> None:
        """Take the next number."""
        self._count += 1
        self._mean += (z - self._mean) / self._count
        super().update(z - self._mean)

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes."""
        return {**super().state_dict(), "mean": [self._mean, self._count]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        super().load_state_dict(state)
        self._mean, self._count = state["mean"]


class PageHinkley(ResidualDetector):
    """Detects changes of level against the local trend, upwards and downwards.

    Cost: about 10 µs a point; constant memory.

    Args:
        threshold: λ, in scales of the noise.
        slack: δ, in scales of the noise.
        gate: Smallest change, in dex; on the linear scale in shares of the largest size so far.
        trend: Points of the local line.
        scale: "log", "linear", or "auto": "log" until the first negative value.
        floor: Losses below it count as equal, in the loss's unit.

    Raises:
        ValueError: A parameter is out of its range.

    Example:
        >>> detector = PageHinkley()
        >>> stream = [2.0] * 100 + [0.5] * 100
        >>> alarms = [detector.update(step, value) for step, value in enumerate(stream)]
        >>> [(alarm.onset_step, alarm.detected_step) for alarm in alarms if alarm]
        [(100, 102)]
    """

    name = "page_hinkley"

    def __init__(
        self,
        *,
        threshold: float = 12.0,
        slack: float = 0.5,
        gate: float = 0.25,
        trend: int = 30,
        scale: ScaleName = "auto",
        floor: float = 1e-8,
    ) -> None:
        given = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        require(threshold > 0.0, "threshold", threshold, "above 0")
        require(slack >= 0.0, "slack", slack, "at least 0")
        self._threshold, self._slack = threshold, slack
        super().__init__(given)

    @property
    def threshold(self) -> float:
        """λ, in scales of the noise."""
        return self._threshold

    def _recursion(self) -> PageHinkleySums:
        return PageHinkleySums(self._slack)
