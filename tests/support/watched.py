"""Simulated streams, watched as a live run would watch them."""

from __future__ import annotations

import numpy as np

from phasewatch.monitor.config.monitor import MonitorConfig
from phasewatch.monitor.core.columns import Column, chunked, observations_of
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.replay.recorded import detect


def column(steps, values) -> Column:
    """A column of exact scalars; a step takes a second."""
    steps = [int(step) for step in steps]
    return Column(steps, [float(v) for v in values], [None] * len(steps), [float(s) for s in steps])


def watched(streams, measured=None, **config):
    """The transitions that the default detectors and fusing find.

    Args:
        streams: Steps and values of exact scalars, by name.
        measured: Steps, values and standard error of measured streams, by name.
        config: Settings of the run.
    """
    rows = [o for name, pair in streams.items() for o in observations_of(name, column(*pair))]
    for name, (steps, values, stderr) in (measured or {}).items():
        rows += [
            Observation(
                name=name,
                step=int(step),
                value=float(value),
                stderr=stderr,
                timestamp=step + 0.5,
                duration_seconds=0.1,
            )
            for step, value in zip(steps, values, strict=True)
        ]
    rows.sort(key=lambda row: (row.step, row.timestamp, row.name))
    return list(detect(chunked(rows), run="run", config=MonitorConfig.load(config)).transitions)


def sigmoid(steps, middle: float, width: float):
    """From 0 to 1 around `middle`; 80 % of it within 4.4 × `width`."""
    return 0.5 * (1.0 + np.tanh((np.asarray(steps, dtype=float) - middle) / (2.0 * width)))


def noise(num: int, scale: float, seed: int):
    """Factors with Gaussian noise in log10."""
    return 10.0 ** (scale * np.random.default_rng(seed).standard_normal(num))
