"""Bayesian online change-point detection on detrended residuals.

Adams and MacKay (2007, arXiv:0710.3742). The run length r is the number of points since the last
change. Before each point, a run goes on with probability 1 − 1/`mean_run` and ends otherwise:

    P(rₙ = r + 1, z₁…ₙ) = P(rₙ₋₁ = r, z₁…ₙ₋₁) π(zₙ | r) (1 − H),
    P(rₙ = 0, z₁…ₙ)     = Σᵣ P(rₙ₋₁ = r, z₁…ₙ₋₁) π(zₙ | r) H,      H = 1/`mean_run`.

Mean and variance of a run have a normal-inverse-gamma prior (0, κ, 10, 10), so that π is Student's
t with 2αᵣ degrees of freedom, αᵣ = 10 + r/2. The statistic is the posterior probability of a run
that began 3 to `recent` points ago.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from phasewatch.detectors.base import require
from phasewatch.detectors.statistics.residual import MIN_RUN, ResidualDetector
from phasewatch.detectors.statistics.scales import ScaleName

ALPHA = BETA = 10.0
"""Inverse-gamma prior of a run's variance: as good as 20 points of variance 1."""


class RunLengths:
    """The bare recursion: the posterior of the run length, for runs of up to `max_run` points.

    Longer runs share the last place, with what the last `max_run` points say about their mean and
    variance: nothing is lost of the probability, and a run may change slowly.

    Args:
        mean_run: Expected points of a run, 1/H.
        max_run: Longest run told apart.
        kappa: Weight of the prior mean 0, in points.
        recent: Longest run that counts as a change.

    Attributes:
        probabilities: P(rₙ = 0 … min(n, max_run) | z₁…ₙ), shape (min(n, max_run) + 1,).
    """

    def __init__(self, mean_run: float, max_run: int, kappa: float, recent: int) -> None:
        self._hazard = 1.0 / mean_run
        self._max_run, self._recent = max_run, recent
        # All that depends on the run length alone, for r = 0 … max_run.
        run = np.arange(max_run + 1.0)
        self._kappa, self._alpha = kappa + run, ALPHA + run / 2.0
        self._spread = 2.0 * (self._kappa + 1.0) / self._kappa
        self._log_norm = (
            gammaln(self._alpha + 0.5) - gammaln(self._alpha) - 0.5 * np.log(np.pi * self._spread)
        )
        self._count = 0
        self.probabilities: NDArray[np.float64] = np.ones(1)
        self._mean: NDArray[np.float64] = np.zeros(1)
        self._beta: NDArray[np.float64] = np.full(1, BETA)

    @property
    def statistic(self) -> float:
        """Posterior probability of a change between 3 and `recent` points ago."""
        return float(self._candidates.sum())

    @property
    def sign(self) -> int:
        """The side of 0 on which the likeliest new run lies."""
        return 1 if self._mean[self.run_length] >= 0.0 else -1

    @property
    def run_length(self) -> int:
        """The likeliest of those runs; 0 while there is none."""
        candidates = self._candidates
        return MIN_RUN + int(candidates.argmax()) if candidates.size else 0

    @property
    def _candidates(self) -> NDArray[np.float64]:
        # The run that began with the stream is no change.
        return self.probabilities[MIN_RUN : min(self._recent + 1, self._count)]

    def update(self, z: float) -> None:
        """Take the next number."""
        size = self.probabilities.size
        kappa, alpha = self._kappa[:size], self._alpha[:size]
        square = (z - self._mean) ** 2
        # log π(z | r): t with 2α degrees of freedom, scale² = β (κ+1) / (α κ).
        log_predictive = self._log_norm[:size] - 0.5 * np.log(self._beta)
        log_predictive -= (alpha + 0.5) * np.log1p(square / (self._spread[:size] * self._beta))
        joint = self.probabilities * np.exp(log_predictive - log_predictive.max())
        joint /= joint.sum()
        self._count += 1
        self.probabilities = np.concatenate([[self._hazard], (1.0 - self._hazard) * joint])
        self._beta = np.append(BETA, self._beta + kappa * square / (2.0 * (kappa + 1.0)))
        self._mean = np.append(0.0, self._mean + (z - self._mean) / (kappa + 1.0))
        if size > self._max_run:
            self.probabilities[-2] += self.probabilities[-1]
            self.probabilities = self.probabilities[:-1]
            self._beta, self._mean = self._beta[:-1], self._mean[:-1]

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes."""
        return {
            "count": self._count,
            "probabilities": self.probabilities.tolist(),
            "mean": self._mean.tolist(),
            "beta": self._beta.tolist(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._count = int(state["count"])
        self.probabilities = np.array(state["probabilities"])
        self._mean, self._beta = np.array(state["mean"]), np.array(state["beta"])


class Bocpd(ResidualDetector):
    """Detects changes of level or scale against the local trend, with a posterior probability.

    Cost: about 65 µs a point; memory of `max_run` runs.

    Args:
        threshold: Smallest posterior probability of a recent change.
        mean_run: Expected points between changes, 1/hazard.
        max_run: Longest run told apart.
        recent: Longest run that counts as a recent change.
        kappa: Weight of the prior mean 0 of a run, in points.
        gate: Smallest change, in dex; on the linear scale in shares of the largest size so far.
        trend: Points of the local line.
        scale: "log", "linear", or "auto": "log" until the first negative value.
        floor: Losses below it count as equal, in the loss's unit.

    Raises:
        ValueError: A parameter is out of its range.

    Example:
        >>> detector = Bocpd()
        >>> stream = [2.0] * 100 + [0.5] * 100
        >>> alarms = [detector.update(step, value) for step, value in enumerate(stream)]
        >>> [(alarm.onset_step, alarm.detected_step) for alarm in alarms if alarm]
        [(100, 102)]
    """

    name = "bocpd"

    def __init__(
        self,
        *,
        threshold: float = 0.9,
        mean_run: float = 1e5,
        max_run: int = 200,
        recent: int = 40,
        kappa: float = 0.01,
        gate: float = 0.25,
        trend: int = 30,
        scale: ScaleName = "auto",
        floor: float = 1e-8,
    ) -> None:
        given = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        require(0.0 < threshold < 1.0, "threshold", threshold, "above 0 and below 1")
        require(mean_run > 1.0, "mean_run", mean_run, "above 1")
        require(recent >= MIN_RUN, "recent", recent, f"at least {MIN_RUN}")
        require(max_run > recent, "max_run", max_run, f"above recent = {recent}")
        require(kappa > 0.0, "kappa", kappa, "above 0")
        self._threshold, self._mean_run, self._max_run = threshold, mean_run, max_run
        self._recent, self._kappa = recent, kappa
        super().__init__(given)

    @property
    def threshold(self) -> float:
        """Smallest posterior probability that may alarm."""
        return self._threshold

    def _recursion(self) -> RunLengths:
        return RunLengths(self._mean_run, self._max_run, self._kappa, self._recent)
