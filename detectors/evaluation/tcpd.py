"""The Turing Change Point Dataset: its files, and the two scores of its benchmark.

van den Burg and Williams (2020), "An Evaluation of Change Point Detection Algorithms",
arXiv:2003.06222. Change points are indices from 0 at which a new segment begins. Several people
annotated each series; both scores count every annotator alike.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MARGIN = 5
"""A change point this many points from an annotated one still counts as it."""

ANNOTATIONS = "annotations.json"

Annotations = Mapping[str, Sequence[int]]
"""Change points by annotator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotatedSeries:
    """One univariate series.

    Attributes:
        name: Name of the data set.
        values: Shape (n,); NaN where nothing was observed.
        annotations: Change points by annotator; the benchmark knows no others.
    """

    name: str
    values: NDArray[np.float64]
    annotations: Annotations


def load_tcpd(folder: str | Path) -> list[AnnotatedSeries]:
    """Read the univariate, annotated series of a local copy, by name.

    Args:
        folder: Holds `annotations.json` and, in it or in folders below, `<name>.json` of each
            series. Some vendors' series are not part of the public repository: what is missing
            is left out.

    Raises:
        ValueError: There is no such copy, or a file is not of its format; names the file.
    """
    root = Path(folder)
    path = root / ANNOTATIONS
    if not path.is_file():
        raise ValueError(
            f"{root} holds no {ANNOTATIONS}; give a copy of the repository "
            "github.com/alan-turing-institute/TCPD"
        )
    annotations = json.loads(path.read_text(encoding="utf-8"))
    files = {file.stem: file for file in root.rglob("*.json") if file.stem in annotations}
    found = (_series(files[name], annotations[name]) for name in sorted(files))
    return [series for series in found if series is not None]


def _series(path: Path, annotations: Annotations) -> AnnotatedSeries | None:
    """The series of one file; None where it has several dimensions."""
    record = json.loads(path.read_text(encoding="utf-8"))
    try:
        if record["n_dim"] != 1:
            return None
        values = np.array(record["series"][0]["raw"], dtype=np.float64)  # None becomes NaN
        name, count = record["name"], record["n_obs"]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{path} is no series of this data set: {error!r}") from error
    if values.shape != (count,):
        raise ValueError(f"{path} says {count} observations and holds {values.size}")
    return AnnotatedSeries(name=name, values=values, annotations=annotations)


def f1(annotations: Annotations, found: Collection[int], margin: int = MARGIN) -> float:
    """F1 = 2PR / (P + R) of change points against those of several annotators.

    Precision P is over the union of all annotations, recall R the mean over annotators. The start
    of the series is a change point of everybody, so that P and R are defined.

    Args:
        annotations: Change points by annotator, as indices.
        found: Change points found, as indices.
        margin: Points by which a change point may be off.
    """
    predicted = {0, *found}
    sets = [{0, *points} for points in annotations.values()]
    precision = _num_matched(set().union(*sets), predicted, margin) / len(predicted)
    recall = sum(_num_matched(s, predicted, margin) / len(s) for s in sets) / len(sets)
    return 2.0 * precision * recall / (precision + recall)


def _num_matched(known: Collection[int], predicted: Collection[int], margin: int) -> int:
    """Known points with a predicted one within the margin; each predicted one serves once."""
    left = set(predicted)
    matched = 0
    for point in sorted(known):
        distance, nearest = min(((abs(point - x), x) for x in left), default=(margin + 1, 0))
        if distance <= margin:
            left.remove(nearest)
            matched += 1
    return matched


def cover(annotations: Annotations, found: Collection[int], count: int) -> float:
    """How well the segments cover those of the annotators; the mean over annotators.

    Σ_A |A| max_B |A ∩ B| / |A ∪ B| / count, over annotated segments A and found segments B.

    Args:
        annotations: Change points by annotator.
        found: Change points found.
        count: Points of the series.
    """
    segments = _segments(found, count)
    covers = []
    for points in annotations.values():
        parts = _segments(points, count)
        best = (max(_overlap(part, segment) for segment in segments) for part in parts)
        covers.append(sum(len(p) * share for p, share in zip(parts, best, strict=True)) / count)
    return sum(covers) / len(covers)


def _segments(points: Collection[int], count: int) -> list[range]:
    ends = sorted({0, count, *(point for point in points if 0 < point < count)})
    return [range(start, end) for start, end in pairwise(ends)]


def _overlap(one: range, other: range) -> float:
    """|A ∩ B| / |A ∪ B| of two runs of points."""
    common = max(0, min(one.stop, other.stop) - max(one.start, other.start))
    return common / (len(one) + len(other) - common)
