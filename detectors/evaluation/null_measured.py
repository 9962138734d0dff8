"""Measured streams without a change of level, such as λ̂, with their standard errors.

The dense ones, losses, are in `null_streams`. An alarm on any of these is false.
"""

from __future__ import annotations

import numpy as np

from phasewatch.detectors.base import require
from phasewatch.detectors.evaluation.null_streams import Array, Course, autoregressive, log_uniform
from phasewatch.detectors.evaluation.scoring import Curve


def _drift(rng: np.random.Generator, num_points: int) -> Array:
    """A fall by a factor of 2 to 4 that takes the whole stream, exponential or straight."""
    t, factor = np.arange(num_points) / num_points, rng.uniform(2.0, 4.0)
    course = factor**-t if rng.random() < 0.5 else 1.0 - t * (1.0 - 1.0 / factor)
    return np.asarray(course, dtype=np.float64)


def _growth(rng: np.random.Generator, num_points: int) -> Array:
    """A rise that is fast at first, as a power of up to ½, or the logarithm, of the step."""
    k = np.arange(1.0, num_points + 1.0)
    course = k ** rng.uniform(0.1, 0.5) if rng.random() < 0.5 else np.log(1.0 + k)
    return np.asarray(course, dtype=np.float64)


def _settling(rng: np.random.Generator, num_points: int) -> Array:
    """An exponential approach to a level, from half or from twice of it."""
    t = np.arange(num_points) / num_points
    start = 2.0 if rng.random() < 0.5 else 0.5
    course = 1.0 + (start - 1.0) * np.exp(-t / rng.uniform(0.15, 0.5))
    return np.asarray(course, dtype=np.float64)


def _flat(rng: np.random.Generator, num_points: int) -> Array:  # noqa: ARG001
    return np.ones(num_points)


def _white(rng: np.random.Generator, num_points: int) -> Array:
    return rng.standard_normal(num_points)


CLASSES: dict[str, tuple[Course, Course]] = {
    "flat": (_flat, _white),
    "drift": (_drift, _white),
    "growth": (_growth, _white),
    "settling": (_settling, _white),
    "correlated": (_flat, lambda rng, n: autoregressive(rng, n, 0.6, 1.0)),
    "errors too small": (_flat, lambda rng, n: 1.5 * rng.standard_normal(n)),
    "t3 tails, flat": (_flat, lambda rng, n: rng.standard_t(3, n) / np.sqrt(3.0)),
}
"""Streams of measured values by name: the course of the level, and the noise in standard errors."""


def curve(name: str, num_points: int, seed: int = 0) -> Curve:
    """A measured stream without a change of level, such as λ̂, with its standard errors.

    They differ by a factor of up to two within a stream, and are at most 2 to 15 % of the level:
    measurements with larger ones are marked, and never reach a detector.

    Args:
        name: One of `CLASSES`.
        num_points: Its length; real ones have 20 to 200 points.
        seed: Another seed draws another level and noise.

    Raises:
        ValueError: No such stream, or a length below 2.
    """
    require(name in CLASSES, "name", name, f"one of {', '.join(CLASSES)}")
    require(num_points >= 2, "num_points", num_points, "at least 2")
    rng = np.random.default_rng([seed, *name.encode()])
    course, noise = CLASSES[name]
    levels = 10.0 ** rng.uniform(0.0, 3.0) * course(rng, num_points)
    stderrs = log_uniform(rng, 0.02, 0.15) * rng.uniform(0.5, 1.0, num_points) * levels
    return Curve(
        name=f"{name}, seed {seed}",
        steps=tuple(range(0, 100 * num_points, 100)),
        values=tuple((levels + stderrs * noise(rng, num_points)).tolist()),
        source=name,
        noisy=True,
        stderrs=tuple(stderrs.tolist()),
    )
