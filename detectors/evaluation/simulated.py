"""Losses with known transitions, for judging a detector without recorded curves.

A transition is a logistic fall of log10 of the loss. Its ends are where recorded curves have
theirs: it starts at 20 % of its greatest speed and ends at 35 %, so that its width is 5.12 times
the scale of the logistic function.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from phasewatch.detectors.base import require
from phasewatch.detectors.evaluation import null_streams
from phasewatch.detectors.evaluation.scoring import Curve, Interval

START, END = 2.0 * np.arccosh(0.2**-0.5), 2.0 * np.arccosh(0.35**-0.5)
"""Scales from the middle at which the speed sech²(x/2) is 20 % and 35 % of its peak."""

SOURCES = (
    "constant, no noise", "power law, no noise", "white", "AR(0.6)", "power law",
    "cosine schedule", "minibatches", "heteroscedastic",
)  # fmt: skip
"""Null streams that `curves` lays transitions on: four of each."""


def fall(num_points: int, start: int, width: int, dex: float) -> NDArray[np.float64]:
    """log10 of a factor that falls from 1 to 10^−dex, shape (num_points,).

    Args:
        num_points: Points.
        start: Point at which the speed has reached 20 % of its peak.
        width: Points from there to where it is down to 35 %.
        dex: Size of the fall.
    """
    scale = width / (START + END)
    x = (np.arange(num_points) - start) / scale - START
    return np.asarray(-dex * 0.5 * (1.0 + np.tanh(0.5 * x)), dtype=np.float64)


def with_transition(null: Curve, *, start: int, width: int, dex: float) -> Curve:
    """A curve with one more transition on it.

    Args:
        null: The curve to lay it on.
        start: Point at which it starts.
        width: Its width in points.
        dex: How far the loss falls, in decimal orders of magnitude.

    Raises:
        ValueError: It does not lie within the curve, or has no width or size.
    """
    num_points = len(null.values)
    require(width >= 1, "width", width, "at least 1")
    require(dex > 0.0, "dex", dex, "above 0")
    last = num_points - width - 1
    require(
        0 <= start <= last, "start", start, f"0 to {last} for that width on {num_points} points"
    )
    values = np.array(null.values) * 10.0 ** fall(num_points, start, width, dex)
    known = Interval(start=start, end=start + width)
    return Curve(
        name=f"{null.name}, {dex:g} dex at {start}",
        steps=null.steps,
        values=tuple(values.tolist()),
        transitions=tuple(sorted((*null.transitions, known), key=lambda one: one.start)),
        ignore=null.ignore,
        source=null.source,
        noisy=null.noisy,
    )


def curves(num_points: int = 1000, seed: int = 0) -> list[Curve]:
    """Curves of eight sources; of four each, three hold one transition, two or none at all.

    Falls are .3 to 2 dex and 2 to 15 % of the curve wide. The smallest under the loudest noise are
    hard to see for anybody: not every transition here can be found.

    Args:
        num_points: Length of each, at least 200.
        seed: Another seed draws other curves.
    """
    require(num_points >= 200, "num_points", num_points, "at least 200")
    made = []
    for source in SOURCES:
        rng = np.random.default_rng([seed, *source.encode()])
        for index, places in enumerate([(), (0.5,), (0.35,), (0.3, 0.7)]):
            one = null_streams.curve(source, num_points, 1000 * seed + index)
            for place in places:
                start = int((place + rng.uniform(-0.1, 0.1)) * num_points)
                width = max(round(rng.uniform(0.02, 0.15) * num_points), 2)
                dex = float(np.exp(rng.uniform(np.log(0.3), np.log(2.0))))
                one = with_transition(one, start=start, width=width, dex=round(dex, 3))
            made.append(one)
    return made
