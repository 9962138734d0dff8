"""Simulated streams: losses with and without transitions, noise of several kinds, λ̂ curves."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from phasewatch.detectors import Alarm, Detector

Array = NDArray[np.float64]


def feed(detector: Detector, values, *, stderrs=None, every: int = 1) -> list[Alarm]:
    """Alarms of a detector on a stream logged every so many steps."""
    alarms = []
    for i, value in enumerate(values):
        alarm = detector.update(i * every, float(value), None if stderrs is None else stderrs[i])
        if alarm is not None:
            alarms.append(alarm)
    return alarms


def grokking_val_loss(num_points: int = 250, every: int = 10) -> tuple[Array, Array]:
    """Steps and validation loss (nats) of a full-batch grokking run, noise-free.

    It rises from 4 to 10 nats while the run memorises, stays, falls to 1e-3 around 60 % of the
    run and is flat from there on.
    """
    t = np.linspace(0.0, 1.0, num_points)
    memorise = 10.0 - 6.0 * np.exp(-t / 0.03)
    generalise = 1.0 / (1.0 + np.exp(-(t - 0.6) / 0.025))
    log_loss = np.log10(memorise) * (1.0 - generalise) - 3.0 * generalise
    return every * np.arange(1, num_points + 1, dtype=np.float64), 10.0**log_loss


def memorising_train_loss(num_points: int = 2500) -> Array:
    """Train loss (nats) of the same run at every step: falls from the start, ends at 1e-6."""
    t = np.arange(num_points)
    return 4.0 * np.exp(-t / 60.0) + 0.02 * np.exp(-t / 300.0) + 1e-6


def power_law(num_points: int, scale: float = 30.0, exponent: float = 0.4) -> Array:
    """Ordinary loss decay 4 (1 + t/scale)^−exponent."""
    return 4.0 * (1.0 + np.arange(num_points) / scale) ** -exponent


def warm_up_start(num_points: int, warm_up: int, vocabulary: int = 1000) -> Array:
    """The start of a language model: flat at ln V, then a power law in the summed rate."""
    t = np.arange(num_points, dtype=np.float64)
    summed = np.where(t < warm_up, t * t / (2.0 * max(warm_up, 1)), t - warm_up / 2.0)
    return np.log(vocabulary) * (0.1 + 0.9 * (1.0 + summed / 20.0) ** -0.6)


def autoregressive(num_points: int, phi: float, scale: float, seed: int) -> Array:
    """AR(1) noise of standard deviation `scale`."""
    white = np.random.default_rng(seed).standard_normal(num_points)
    return scale * np.sqrt(1.0 - phi * phi) * lfilter([1.0], [1.0, -phi], white)


def sigmoid_fall(num_points: int, width: float, dex: float = 1.0, middle: float = 0.5) -> Array:
    """A loss of 2 nats that falls by `dex` around `middle`; `width` is a share of the curve."""
    t = np.linspace(0.0, 1.0, num_points)
    return 2.0 * 10.0 ** (-dex / (1.0 + np.exp(-(t - middle) / (width / 4.0))))


def spiky(num_points: int, period: int, dex: float = 3.0, seed: int = 0) -> Array:
    """A loss of 1e-6 that shoots up every `period` points and comes back within 60."""
    log_loss = -6.0 + 0.01 * np.random.default_rng(seed).standard_normal(num_points)
    for start in range(period, num_points, period):
        tail = log_loss[start : start + 60]
        tail += dex * np.exp(-np.arange(tail.size) / 10.0)
    return 10.0**log_loss


def grokking_llc(num_points: int = 40, seed: int = 0) -> tuple[Array, Array]:
    """λ̂ of a grokking run and its standard errors: up while it memorises, then slowly down."""
    rng = np.random.default_rng(seed)
    t = np.linspace(0.0, 1.0, num_points)
    llc = np.where(t < 0.05, 30.0 + 2000.0 * t, 130.0 * np.exp(-2.5 * (t - 0.05)))
    stderrs = rng.uniform(0.02, 0.08, num_points) * llc
    return llc + stderrs * rng.standard_normal(num_points), stderrs
