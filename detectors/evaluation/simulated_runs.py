"""Logged streams of simulated training runs, with the abrupt changes that were laid on them.

A stream is a course (a decay, a saturating score, a norm that creeps, a reward), a noise (white,
autocorrelated, heavy-tailed, multiplicative, with rare outliers), and none, one or several events:
learning-rate steps, sigmoid falls, epoch cliffs, spikes, divergences, collapses, jumps of a score.
What is as large as several times the noise and a good part of the recent range counts as a
transition; smaller events are zones that count neither way. Some streams are smoothed, rounded or
cut at a bound, as loggers do.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from phasewatch.detectors.evaluation.null_streams import autoregressive, log_uniform
from phasewatch.detectors.evaluation.scoring import Curve, Interval

Array = NDArray[np.float64]

BRIEF, LASTING, LASTING_CALM, CALM = 10.0, 5.0, 3.0, 0.5
"""Size in noise units from which on an event counts: one that comes back soon, one that stays
for `STAYS` points, and one that stays and leaves less than the share `CALM` of the noise."""

STAYS = 20
RANGE = 0.5
"""Its size as a share of the recent range, at least."""

UNSURE = 0.4
"""Events of less than this share of these sizes are not even a zone."""

RECENT = 60
"""Points before an event whose range counts as recent."""


def stream(seed: int, *, events: bool = True) -> Curve:
    """One stream of 30 to 3000 points.

    Args:
        seed: Another seed draws another course, noise and events.
        events: Whether any event may lie on it.
    """
    rng = np.random.default_rng([seed, int(events)])
    n = int(log_uniform(rng, 30.0, 3000.0))
    kind = ("loss", "loss", "score", "norm", "reward")[rng.integers(5)]
    course = _COURSES[kind](rng, n)
    sigma = log_uniform(rng, 0.003, 0.2) * (0.3 if kind == "loss" else 1.0)
    if rng.random() < 0.15:
        sigma *= 0.01
    noise = _noise(rng, n, sigma)
    zones: list[tuple[int, int, float]] = []
    if events:
        for start, end, shape, calm in _events(rng, n, kind):
            recent = course[max(start - RECENT, 0) : max(start, 2)]
            base = max(5.0 * sigma, float(np.ptp(recent)), 0.02)
            size = base * log_uniform(rng, 0.2, 8.0)
            if kind == "score":
                size = min(size, 0.9)
            course = course + size * shape
            stays = abs(shape[min(end + STAYS, n - 1)]) > 0.5 and end + STAYS < n
            noise = np.where(np.arange(n) >= start, calm * noise, noise)
            least = BRIEF if not stays else LASTING if calm > CALM else LASTING_CALM
            smallest = max(least * sigma, RANGE * base)
            zones.append((start, end, size / smallest))
    if kind == "score" and rng.random() < 0.5:  # counted: the noise shrinks at both ends
        share = np.clip(course, 0.0, 1.0)
        noise = noise * np.clip(2.0 * np.sqrt(share * (1.0 - share)), 0.05, 1.0)
    if kind in ("score", "reward") and rng.random() < 0.3:  # single bad evaluations
        bad = rng.random(n) < rng.uniform(0.002, 0.03)
        noise = noise - bad * sigma * log_uniform(rng, 5.0, 200.0) * rng.uniform(0.3, 1.0, n)
    values = _logged(rng, course + noise, kind)
    burn_in = Interval(start=0, end=max(min(12, n // 5), 1))
    sure = tuple(Interval(start=a, end=b) for a, b, share in zones if share >= 1.0)
    likely = tuple(Interval(start=a, end=b) for a, b, share in zones if UNSURE <= share < 1.0)
    return Curve(
        name=f"{kind}, seed {seed}",
        steps=tuple(range(n)),
        values=tuple(values.tolist()),
        transitions=tuple(sorted(sure, key=lambda one: one.start)),
        ignore=(burn_in, *likely),
        source=kind,
        noisy=True,
    )


def streams(count: int, seed: int = 0) -> Iterator[Curve]:
    """So many streams, every third of them without an event."""
    for index in range(count):
        yield stream(seed * 1_000_000 + index, events=index % 3 != 0)


def _loss(rng: np.random.Generator, n: int) -> Array:
    """log10 of a loss: a power law, a decay to a floor, a plateau, or flat."""
    t = np.arange(n, dtype=np.float64)
    which = rng.integers(4)
    level = rng.uniform(-1.0, 1.0)
    if which == 0:
        fall = -rng.uniform(0.05, 0.5) * np.log10(1.0 + t / log_uniform(rng, 2.0, 100.0))
    elif which == 1:
        floor = 10.0 ** -rng.uniform(0.3, 4.0)
        fall = np.log10(np.exp(-t / (rng.uniform(0.01, 0.3) * n + 2.0)) + floor)
    elif which == 2:
        fall = -rng.uniform(0.0, 0.3) * (0.5 - 0.5 * np.cos(np.pi * t / n))
    else:
        fall = np.zeros(n)
    return np.asarray(level + fall, dtype=np.float64)


def _score(rng: np.random.Generator, n: int) -> Array:
    """A score within [0, 1] that saturates, or stays where it is."""
    t = np.arange(n, dtype=np.float64)
    low, high = np.sort(rng.uniform(0.0, 1.0, 2))
    return np.asarray(
        low + (high - low) * (1.0 - np.exp(-t / (rng.uniform(0.02, 0.6) * n + 1.0))),
        dtype=np.float64,
    )


def _norm(rng: np.random.Generator, n: int) -> Array:
    """log10 of a norm that creeps up or down, or stays."""
    t = np.arange(n) / n
    return np.asarray(
        rng.uniform(-2.0, 2.0) + rng.uniform(-0.5, 0.5) * t ** rng.uniform(0.3, 1.5),
        dtype=np.float64,
    )


def _reward(rng: np.random.Generator, n: int) -> Array:
    """A return that wanders, or learns slowly."""
    wander = autoregressive(rng, n, 0.99, rng.uniform(0.0, 0.3))
    return np.asarray(
        rng.uniform(-2.0, 2.0) + wander + rng.uniform(0.0, 2.0) * np.arange(n) / n, dtype=np.float64
    )


_COURSES = {"loss": _loss, "score": _score, "norm": _norm, "reward": _reward}


def _noise(rng: np.random.Generator, n: int, sigma: float) -> Array:
    which = rng.integers(6)
    if which == 0:
        noise = rng.standard_normal(n)
    elif which == 1:
        noise = autoregressive(rng, n, rng.uniform(0.2, 0.95), 1.0)
    elif which == 2:
        noise = rng.standard_t(3, n) / np.sqrt(3.0)
    elif which == 3:
        shape = rng.uniform(0.5, 8.0)
        noise = (rng.gamma(shape, size=n) - shape) / np.sqrt(shape) * (1.0, -1.0)[rng.integers(2)]
    elif which == 4:
        swing = np.sin(2.0 * np.pi * (rng.uniform(1.0, 8.0) * np.arange(n) / n + rng.random()))
        noise = rng.standard_normal(n) * 3.0**swing / 1.5
    else:
        noise = rng.standard_normal(n)
        rare = rng.random(n) < rng.uniform(0.005, 0.05)
        side = (1.0, -1.0)[rng.integers(2)]
        noise = noise + rare * side * np.abs(rng.standard_t(2, n)) * rng.uniform(3.0, 10.0)
    return np.asarray(sigma * noise, dtype=np.float64)


def _events(rng: np.random.Generator, n: int, kind: str) -> Iterator[tuple[int, int, Array, float]]:
    """Start, end and shape (a size of 1) of each event, and what the noise is multiplied by."""
    t = np.arange(n, dtype=np.float64)
    count = int(rng.integers(1, 4)) if n > 120 else 1
    which = rng.integers(7)
    sign = (1.0, -1.0)[rng.integers(2)]
    places = np.sort(rng.uniform(0.15, 0.95, count)) * n
    last = 0
    for place in places:
        start = max(int(place), 10)
        if start <= last + 12 or start >= n - 3:
            continue
        calm = 1.0
        after = np.maximum(t - start, 0.0)
        there = t >= start
        if which == 0:  # at once, and stays
            end, shape = start + 1, sign * there
        elif which == 1:  # most of it at once, the rest soon after
            width = log_uniform(rng, 1.0, 0.05 * n + 2.0)
            shape = sign * there * (1.0 - rng.uniform(0.2, 0.7) * np.exp(-after / width))
            end = start + max(int(width), 1)
        elif which == 2:  # a sigmoid
            width = log_uniform(rng, 3.0, 0.15 * n + 4.0)
            shape = sign / (1.0 + np.exp(-np.clip((t - start) / (width / 5.0) - 2.9, -50.0, 50.0)))
            end = start + int(width)
        elif which == 3:  # a spike that comes back
            width = log_uniform(rng, 0.7, 0.02 * n + 2.0)
            up = 1.0 if kind == "loss" else -1.0
            shape = up * there * np.exp(-after / width)
            end = start + max(int(2.0 * width), 1)
        elif which == 4:  # a ramp
            width = max(int(log_uniform(rng, 2.0, 0.1 * n + 3.0)), 1)
            shape = sign * np.clip((t - start) / width, 0.0, 1.0)
            end = start + width
        elif which == 5:  # a learning rate that is lowered: better, and calmer
            calm = log_uniform(rng, 0.1, 1.0)
            better = -1.0 if kind == "loss" else 1.0
            width = log_uniform(rng, 0.3, 4.0)
            shape = better * there * (1.0 - rng.uniform(0.0, 0.6) * np.exp(-after / width))
            end = start + max(int(width), 1)
        else:  # an epoch cliff: down at once, then level
            shape = -1.0 * there
            end = start + 1
        last = min(end, n - 1)
        yield start, last, np.asarray(shape, dtype=np.float64), calm


def _logged(rng: np.random.Generator, total: Array, kind: str) -> Array:
    """What a logger writes of it."""
    if kind in ("loss", "norm"):
        values = 10.0 ** np.clip(total, -12.0, 12.0)
    elif kind == "score":
        values = np.clip(total, 0.0, 1.0)
        if rng.random() < 0.4:
            values = 100.0 * values
        if rng.random() < 0.3:  # counted on few examples
            few = float(rng.integers(50, 2000))
            values = np.round(values * few / values.max(initial=1e-9)) / few
    else:
        values = total * log_uniform(rng, 1.0, 1000.0)
    if rng.random() < 0.2:  # a running mean
        weight = rng.uniform(0.1, 0.5)
        smooth = values.copy()
        for i in range(1, smooth.size):
            smooth[i] = weight * values[i] + (1.0 - weight) * smooth[i - 1]
        values = smooth
    if rng.random() < 0.3:
        digits = int(rng.integers(3, 6))
        scale = 10.0 ** (digits - np.ceil(np.log10(np.abs(values).max() + 1e-300)))
        values = np.round(values * scale) / scale
    return np.asarray(values, dtype=np.float64)
