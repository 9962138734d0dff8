"""What a detector's score is worth: settings it was not chosen by, and an interval.

    from phasewatch.detectors import create
    from phasewatch.detectors.evaluation import cross_validation as judging
    from phasewatch.detectors.evaluation.scoring import detect, load_curves

    curves = load_curves("training_curves.json")
    by_gate = {
        gate: judging.score_by_source(curves, lambda c, g=gate: detect(c, create("cusum", gate=g)))
        for gate in (0.25, 0.15, 0.4)
    }
    judging.leave_one_source_out(by_gate).f1  # no curve chose the setting it was judged by
    judging.bootstrap(by_gate[0.25], lambda score: score.f1)  # its 95 % interval over sources

Curves of one source resemble each other: sources, not curves or points, are what is drawn anew and
left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

import numpy as np
from scipy import stats

from phasewatch.detectors.base import require
from phasewatch.detectors.evaluation.scoring import Curve, Score, match

Run = Callable[[Curve], Iterable[int]]
"""From a curve to the points of a detector's alarms."""

Setting = TypeVar("Setting")


def score_by_source(curves: Iterable[Curve], run: Run) -> dict[str, Score]:
    """Score of a detector on the curves of each source, added up."""
    scores: dict[str, Score] = {}
    for curve in curves:
        scores[curve.source] = scores.get(curve.source, Score()) + match(run(curve), curve)
    return scores


def total(scores: Iterable[Score]) -> Score:
    """All counts together."""
    return sum(scores, Score())


def leave_one_source_out(scores: Mapping[Setting, Mapping[str, Score]]) -> Score:
    """Score where each source is judged by the setting that is best on all others.

    Best is the highest lenient F1 of the counts added up; the first of equals, so give the default
    first.

    Args:
        scores: Score by source for each setting, as `score_by_source` gives it.

    Raises:
        ValueError: No setting, or fewer than two sources: nothing could be left out.
    """
    require(len(scores) > 0, "scores", dict(scores), "of one setting at least")
    sources = list(next(iter(scores.values())))
    require(len(sources) > 1, "sources", sources, "two at least")

    def f1_without(setting: Setting, source: str) -> float:
        rest = total(score for name, score in scores[setting].items() if name != source)
        return -1.0 if math.isnan(rest.f1) else rest.f1

    held_out = Score()
    for source in sources:
        best = max(scores, key=lambda setting: f1_without(setting, source))
        held_out += scores[best][source]
    return held_out


def bootstrap(
    scores: Mapping[str, Score],
    figure: Callable[[Score], float],
    *,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a figure, over sources drawn with replacement (Efron 1979).

    Args:
        scores: Score by source.
        figure: The figure of the added counts, such as `lambda score: score.f1`.
        level: Share of the draws inside the interval.
        draws: How often as many sources as there are, are drawn.
        seed: Seed of the draws.

    Returns:
        Lower and upper end; NaN where no draw had the figure.
    """
    require(len(scores) > 0, "scores", dict(scores), "of one source at least")
    require(0.0 < level < 1.0, "level", level, "above 0 and below 1")
    each = list(scores.values())
    rng = np.random.default_rng(seed)
    figures = np.array(
        [
            figure(total(each[i] for i in rng.integers(0, len(each), len(each))))
            for _ in range(draws)
        ]
    )
    figures = figures[np.isfinite(figures)]
    if not figures.size:
        return math.nan, math.nan
    low, high = np.quantile(figures, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return float(low), float(high)


def poisson_upper(count: int, level: float = 0.95) -> float:
    """Upper bound of the mean of a Poisson count, exact and one-sided (Garwood 1936).

    Example:
        >>> round(poisson_upper(0), 2)  # the rule of three
        3.0
    """
    return float(stats.chi2.ppf(level, 2 * (count + 1)) / 2.0)


def with_noise(curve: Curve, dex: float, seed: int = 0) -> Curve:
    """The curve under Gaussian noise of that standard deviation, added to log10 of its values.

    Args:
        curve: The curve; its values are positive.
        dex: Standard deviation of the noise, in powers of ten.
        seed: Seed of the noise.
    """
    rng = np.random.default_rng([seed, *curve.name.encode()])
    factors = 10.0 ** (dex * rng.standard_normal(len(curve.values)))
    values = tuple((np.asarray(curve.values) * factors).tolist())
    return replace(curve, values=values, noisy=True)
