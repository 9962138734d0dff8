"""Real curves of public repositories, annotated by eye, and how alarms on them are judged.

A hit has its onset within max(half the width, 10 points) of the annotated span and is detected not
before its start. An alarm that is no hit, and lies in no zone to ignore, is false. Repeated
slingshots of one curve count once. Only sure annotations are asked for; the others are ignored.
"""

from __future__ import annotations

import json
import math
import statistics
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

LOSS_WORDS = ("loss", "entropy", "ppl", "perplexity")


@dataclass(frozen=True)
class PublicCurve:
    """One annotated curve: finite points only.

    Attributes:
        name: Its name.
        repository: Where it comes from.
        family: "losses", "other scalars" or "RL".
        steps: Their steps.
        values: Their values.
        truths: Groups of spans of steps, each with its kind; any span of a group may be hit.
        ignore: Spans that count neither way.
    """

    name: str
    repository: str
    family: str
    steps: list[int]
    values: list[float]
    truths: list[list[tuple[int, int, str]]]
    ignore: list[tuple[int, int]]

    def every(self, n: int) -> PublicCurve:
        """The same with every n-th point."""
        return PublicCurve(
            self.name, self.repository, self.family, self.steps[::n], self.values[::n],
            self.truths, self.ignore,
        )  # fmt: skip

    def spacing(self, at: int) -> float:
        """Median distance of points around a step."""
        i = bisect_left(self.steps, at)
        near = self.steps[max(0, i - 5) : i + 6]
        return statistics.median([b - a for a, b in pairwise(near)] or [1])

    def truth_of(self, onset: int, detected: int) -> int | None:
        """Index of the transition that an alarm hits."""
        best: tuple[float, int] | None = None
        for index, group in enumerate(self.truths):
            for start, end, _ in group:
                slack = max(0.5 * (end - start), 10 * self.spacing(start))
                if start - slack <= onset <= end + slack and detected >= start:
                    inside = start <= onset <= end
                    far = 0 if inside else min(abs(onset - start), abs(onset - end))
                    if best is None or far < best[0]:
                        best = (far, index)
        return None if best is None else best[1]

    def is_ignored(self, onset: int, detected: int) -> bool:
        """Whether an alarm that hits nothing lies in a zone that does not count."""
        return any(start <= detected and onset <= end for start, end in self.ignore)

    @property
    def null_points(self) -> int:
        """Points outside of all transitions and zones."""
        spans = self.ignore + [(a, b) for group in self.truths for a, b, _ in group]
        return sum(not any(a <= step <= b for a, b in spans) for step in self.steps)


def load(path: Path) -> list[PublicCurve]:
    """The curves of a file."""
    return [_curve(c) for c in json.loads(path.read_text()) if not c.get("excluded_from_scores")]


def _curve(record: dict[str, Any]) -> PublicCurve:
    values = [math.nan if v is None else float(v) for v in record["values"]]
    log = record["scale"] == "log10_loss"
    raw = [10.0**v if log and math.isfinite(v) else v for v in values]
    points = [(s, v) for s, v in zip(record["steps"], raw, strict=True) if math.isfinite(v)]
    groups: dict[object, list[tuple[int, int, str]]] = {}
    ignore = [(z["start_step"], z["end_step"]) for z in record["ignore"]]
    for t in record["transitions"]:
        span = (t["start_step"], t["end_step"])
        if t["confidence"] != "sure":
            ignore.append(span)
            continue
        key = "slingshots" if "slingshot" in t.get("why", "") else (t["start_step"], t["kind"])
        groups.setdefault(key, []).append((*span, t["kind"]))
    name = record["stream"].lower()
    family = "other scalars"
    if record["class"].startswith("RL"):
        family = "RL"
    elif log or any(word in name for word in LOSS_WORDS):
        family = "losses"
    return PublicCurve(
        name=record["name"],
        repository="/".join(record["source"].split("/")[:2]),
        family=family,
        steps=[s for s, _ in points],
        values=[v for _, v in points],
        truths=sorted(groups.values(), key=lambda group: group[0][0]),
        ignore=ignore,
    )


@dataclass
class Tally:
    """Counts over curves; they add up."""

    asked: int = 0
    hit: int = 0
    false: int = 0
    doubled: int = 0
    null: int = 0
    clean: int = 0
    alarmed: int = 0
    delays: list[float] = field(default_factory=list)

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.asked + other.asked, self.hit + other.hit, self.false + other.false,
            self.doubled + other.doubled, self.null + other.null, self.clean + other.clean,
            self.alarmed + other.alarmed, self.delays + other.delays,
        )  # fmt: skip

    @property
    def recall(self) -> float:
        """Share of the transitions that were found."""
        return self.hit / self.asked if self.asked else math.nan

    @property
    def false_per_1000(self) -> float:
        """False alarms per 1000 null points."""
        return 1000.0 * self.false / self.null if self.null else math.nan


def judge(curve: PublicCurve, alarms: Sequence[tuple[int, int]]) -> Tally:
    """Counts of one curve from the (onset, detected) steps of its alarms."""
    hits: dict[int, list[int]] = {}
    false = 0
    for onset, detected in alarms:
        truth = curve.truth_of(onset, detected)
        if truth is not None:
            hits.setdefault(truth, []).append(detected)
        elif not curve.is_ignored(onset, detected):
            false += 1
    tally = Tally(len(curve.truths), len(hits), false, null=curve.null_points)
    for truth, detected_at in hits.items():
        group = curve.truths[truth]
        tally.doubled += len(detected_at) - 1 if len(group) == 1 else 0
        start, end, _ = group[0]
        tally.delays.append((min(detected_at) - start) / max(end - start, 1))
    if not curve.truths:
        tally.clean, tally.alarmed = 1, int(false > 0)
    return tally


def classes(curve: PublicCurve) -> Iterator[str]:
    """The rows of a table that a curve belongs to."""
    yield from ("all", curve.family)
    if len(curve.steps) <= 80:
        yield "short (up to 80)"


def total(tallies: Iterable[Tally]) -> Tally:
    """All counts together."""
    return sum(tallies, Tally())
