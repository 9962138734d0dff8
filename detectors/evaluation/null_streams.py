"""Losses without a transition, to measure how often a detector is wrong.

    from phasewatch.detectors import create
    from phasewatch.detectors.evaluation import null_streams
    from phasewatch.detectors.evaluation.scoring import evaluate

    curves = null_streams.curves(10_000, seeds=range(10))
    evaluate(curves, lambda: create("cusum")).false_alarms_per_1000

Each class of stream is a function of a generator and a number of points. Levels, sizes and periods
are drawn anew for each seed, within ranges that the class states; sizes are in dex, that is
decimal logarithms of the loss. Any alarm of a shift on such a stream is false. A rise, a spike or a
saw-tooth may be told as an instability: that claims no transition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from phasewatch.detectors.base import require
from phasewatch.detectors.evaluation.scoring import Curve

Array = NDArray[np.float64]
Course = Callable[[np.random.Generator, int], Array]
"""From a generator and a number of points to log10 of a loss."""

NOISE = (0.01, 0.1)
"""Range of the noise's standard deviation where a class does not say otherwise, in dex."""

LEARNING_RATE_DROP = 0.06
"""Largest sudden fall where the learning rate is divided by ten, in dex.

A real division by ten may take more off a training loss, at once: then the loss *has* changed
abruptly, and a detector that knows nothing of the schedule is right to say so. Null is only what
stays clear of the smallest fall that counts, 0.1 dex, also under the noise.
"""


def autoregressive(rng: np.random.Generator, num_points: int, phi: float, scale: float) -> Array:
    """Stationary AR(1) noise, shape (num_points,).

    xₙ = φ xₙ₋₁ + √(1−φ²) σ εₙ with x₀ of the stationary law.

    Args:
        rng: Source of ε.
        num_points: Points.
        phi: Lag-one autocorrelation φ.
        scale: Standard deviation σ.
    """
    white = scale * np.sqrt(1.0 - phi * phi) * rng.standard_normal(num_points)
    before = phi * scale * rng.standard_normal(1)
    noise, _ = lfilter([1.0], [1.0, -phi], white, zi=before)
    return _array(noise)


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A number whose logarithm is uniform.

    Args:
        rng: What is drawn from.
        low: Lower end, above 0.
        high: Upper end.
    """
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _array(values: object) -> Array:
    return np.asarray(values, dtype=np.float64)


def _level(rng: np.random.Generator) -> float:
    return float(rng.uniform(-2.0, 0.5))


def _correlated(phi: float) -> Course:
    def course(rng: np.random.Generator, num_points: int) -> Array:
        scale = log_uniform(rng, *NOISE)
        return _level(rng) + autoregressive(rng, num_points, phi, scale)

    return course


def _heavy_tails(rng: np.random.Generator, num_points: int) -> Array:
    """Student's t with three degrees of freedom: single points far out, on both sides."""
    scale = log_uniform(rng, *NOISE) / np.sqrt(3.0)  # t₃ has variance 3
    return _array(_level(rng) + scale * rng.standard_t(3, num_points))


def _heteroscedastic(rng: np.random.Generator, num_points: int) -> Array:
    """Noise whose size swings by a factor of five in 2 to 20 periods."""
    turns = rng.uniform(2.0, 20.0) * np.arange(num_points) / num_points + rng.uniform()
    scale = log_uniform(rng, *NOISE) / 5.0 ** (0.5 + 0.5 * np.sin(2.0 * np.pi * turns))
    return _array(_level(rng) + scale * autoregressive(rng, num_points, 0.3, 1.0))


def _growing_noise(rng: np.random.Generator, num_points: int) -> Array:
    """A loss whose noise grows tenfold while the mean slowly falls, as on small minibatches."""
    t = np.arange(num_points) / num_points
    scale = 0.1 * NOISE[1] * 10.0**t
    return _array(_level(rng) - 0.3 * t + scale * rng.standard_normal(num_points))


def _power(rng: np.random.Generator, num_points: int) -> Array:
    """4 (1 + t/τ)^−α with α of .1 to .6 and τ of 10 to 300 points."""
    alpha, tau = rng.uniform(0.1, 0.6), log_uniform(rng, 10.0, 300.0)
    return _array(np.log10(4.0) - alpha * np.log10(1.0 + np.arange(num_points) / tau))


def _to_a_floor(rng: np.random.Generator, num_points: int) -> Array:
    """4 exp(−t/τ) down to a floor of 10⁻⁶ to 10⁻¹; τ is 3 to 10 % of the stream.

    Not faster: a fall that takes a per cent of a stream and then stops is one that detectors are
    for. From a point of at least 30, so that every detector has seen some of it.
    """
    tau = max(rng.uniform(0.03, 0.1) * num_points, 30.0)
    floor = 10.0 ** rng.uniform(-6.0, -1.0)
    return _array(np.log10(4.0 * np.exp(-np.arange(num_points) / tau) + floor))


def _noisy(course: Course, phi: float = 0.3, low: float = 0.005, high: float = 0.05) -> Course:
    def with_noise(rng: np.random.Generator, num_points: int) -> Array:
        scale = log_uniform(rng, low, high)
        return course(rng, num_points) + autoregressive(rng, num_points, phi, scale)

    return with_noise


def _cosine(rng: np.random.Generator, num_points: int) -> Array:
    """A power law whose last .05 to .3 dex come as the rate goes down, half a cosine over all."""
    annealing = 0.5 - 0.5 * np.cos(np.pi * np.arange(num_points) / num_points)
    return _power(rng, num_points) - rng.uniform(0.05, 0.3) * annealing


def _steps(rng: np.random.Generator, num_points: int) -> Array:
    """A power law with the rate divided by ten at 1/2 and 3/4: a fall and a flatter course.

    The fall is below `LEARNING_RATE_DROP` and takes 1 to 30 points; from there on the loss goes on
    at a third of its speed.
    """
    log_loss = _power(rng, num_points)
    t = np.arange(num_points)
    for share in (0.5, 0.75):
        at = int(share * num_points)
        after = slice(at, None)
        log_loss[after] = log_loss[at] + (log_loss[after] - log_loss[at]) / 3.0
        tau = log_uniform(rng, 0.3, 10.0)
        fall = rng.uniform(0.3, 1.0) * LEARNING_RATE_DROP
        log_loss[after] -= fall * -np.expm1(-(t[after] - at + 1.0) / tau)
    return log_loss


def _warm_restarts(rng: np.random.Generator, num_points: int) -> Array:
    """A power law with up to 20 cycles: up by .05 to .3 dex at once, down along a half cosine.

    A cycle has 400 points or more: such a fall within few points is one that detectors are for.
    """
    period = max(num_points / rng.integers(5, 21), 400.0)
    phase = (np.arange(num_points) % period) / period
    rise = rng.uniform(0.05, 0.3)
    return _array(_power(rng, num_points) + rise * (0.5 + 0.5 * np.cos(np.pi * phase)))


def _saw_teeth(rng: np.random.Generator, num_points: int) -> Array:
    """Micro-batches of one accumulated step, logged each: teeth of .02 to .15 dex, 2 to 32 long."""
    length, size = int(rng.integers(2, 33)), rng.uniform(0.02, 0.15)
    return _power(rng, num_points) + size * (np.arange(num_points) % length) / length


def _spikes(rng: np.random.Generator, num_points: int) -> Array:
    """Sudden rises of .3 to 3 dex, one in 300 to 3000 points, that are gone within 50 points."""
    log_loss = _power(rng, num_points) + autoregressive(rng, num_points, 0.3, 0.02)
    hits = rng.random(num_points) < 1.0 / log_uniform(rng, 300.0, 3000.0)
    kicks = np.where(hits, rng.uniform(0.3, 3.0, num_points), 0.0)
    return _array(log_loss + lfilter([1.0], [1.0, -np.exp(-1.0 / rng.uniform(0.5, 10.0))], kicks))


def _constant(rng: np.random.Generator, num_points: int) -> Array:
    return np.full(num_points, _level(rng))


def _warm_up(rng: np.random.Generator, num_points: int) -> Array:
    """Flat at ln V while the rate warms up over 1 to 5 %, then a power law in the summed rate."""
    t = np.arange(num_points, dtype=np.float64)
    warm = max(rng.uniform(0.01, 0.05) * num_points, 1.0)
    summed = np.where(t < warm, t * t / (2.0 * warm), t - warm / 2.0)
    scale = rng.uniform(0.2, 1.0) * warm
    return _array(np.log10(np.log(1000.0)) - rng.uniform(0.1, 0.4) * np.log10(1.0 + summed / scale))


def _minibatches(rng: np.random.Generator, num_points: int) -> Array:
    """A mean over 4 to 32 samples with exponential losses, decaying to a floor: gamma noise."""
    samples = float(rng.integers(4, 33))
    mean = _to_a_floor(rng, num_points)
    return _array(mean + np.log10(rng.gamma(samples, 1.0 / samples, num_points)))


RISING = frozenset({"warm restarts", "spikes"})
"""Classes that rise at once. To a detector that looks for falls of a loss they are null; one that
looks both ways is right about the rises, and they say nothing about its false alarms."""

CLASSES: dict[str, Course] = {
    "white": _correlated(0.0),
    "AR(0.6)": _correlated(0.6),
    "AR(0.9)": _correlated(0.9),
    "t3 tails": _heavy_tails,
    "heteroscedastic": _heteroscedastic,
    "growing noise": _growing_noise,
    "minibatches": _minibatches,
    "power law": _noisy(_power),
    "to a floor": _noisy(_to_a_floor),
    "cosine schedule": _noisy(_cosine),
    "step schedule": _noisy(_steps),
    "warm-up": _noisy(_warm_up),
    "warm restarts": _noisy(_warm_restarts),
    "saw-teeth": _noisy(_saw_teeth),
    "spikes": _spikes,
    "constant, no noise": _constant,
    "power law, no noise": _power,
    "to a floor, no noise": _to_a_floor,
}
"""Every class of stream, by name."""


def names() -> tuple[str, ...]:
    """Names of all classes."""
    return tuple(CLASSES)


def values(name: str, num_points: int, seed: int = 0) -> Array:
    """A loss without a transition, in nats, shape (num_points,).

    Args:
        name: One of `names()`.
        num_points: Its length.
        seed: Another seed draws another level, size and noise.

    Raises:
        ValueError: No class of that name, or a length below 2.
    """
    require(name in CLASSES, "name", name, f"one of {', '.join(CLASSES)}")
    require(num_points >= 2, "num_points", num_points, "at least 2")
    # The class is part of the seed: two classes of one seed share no draw.
    rng = np.random.default_rng([seed, *name.encode()])
    return np.asarray(10.0 ** CLASSES[name](rng, num_points), dtype=np.float64)


def curve(name: str, num_points: int, seed: int = 0) -> Curve:
    """The same as a curve for `scoring`, logged at every step, with its class as its source.

    Args:
        name: Class of the stream.
        num_points: Points.
        seed: Seed of the stream.
    """
    return Curve(
        name=f"{name}, seed {seed}",
        steps=tuple(range(num_points)),
        values=tuple(values(name, num_points, seed).tolist()),
        source=name,
        noisy="no noise" not in name,
    )


def curves(
    num_points: int, seeds: Iterable[int] = (0,), classes: Iterable[str] | None = None
) -> Iterator[Curve]:
    """Curves of all classes, or of some, one for each seed.

    Args:
        num_points: Points of each curve.
        seeds: Seeds, one curve of each class for each.
        classes: Names of classes; None takes all.
    """
    chosen = tuple(CLASSES if classes is None else classes)
    for seed in seeds:
        for name in chosen:
            yield curve(name, num_points, seed)
