"""Changes that a whole history shows from both sides.

Read backwards, a history has its future as its past: noise that a change ended is compared with the
calm that followed it, and a change among the first points with the hundreds that came after. What
`local_change` says backwards counts where it does not speak against it forwards: log-odds of both
directions at the same place add up. Alone neither would do. Each decay is a sudden rise when read
backwards, and much is faint when read forwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from phasewatch.detectors.online.local_change import FOLD, LocalChange
from phasewatch.detectors.statistics.local_features import NEW
from phasewatch.detectors.statistics.watched_level import WatchedLevel
from phasewatch.detectors.types import Alarm, Direction

BACKWARDS = 1.0
"""Log-odds that a change needs when read backwards."""

TOGETHER, FALLS = 1.5, 4.3
"""Log-odds that it needs in both directions together; a fall of a loss, whose decays bend."""

NEAR = 0.25
"""Both directions mean one place where they differ by less than this share of the values that
spoke backwards,"""

LEAST = 2
"""or by so many points, or one value of the level."""


MOST = 20_000
"""Longer histories are read in robust means of `FOLD` points, as the rule's own levels are."""


class Seen(NamedTuple):
    """A change seen from both sides.

    Attributes:
        onset_step: Where it began.
        end_step: The first step that belongs to what follows.
        direction: Which way the stream moved.
        log_odds: Of both directions together.
    """

    onset_step: int
    end_step: int
    direction: Direction
    log_odds: float


class _Place(NamedTuple):
    """Where a change was seen backwards.

    Attributes:
        before: Index of the last value before it.
        after: Index of the first value after it.
        rises: Which way the stream moves there, read forwards.
        near: How far from `after` it may be seen forwards.
        log_odds: Of the look backwards.
    """

    before: int
    after: int
    rises: bool
    near: float
    log_odds: float


class _Witness(LocalChange):
    """Writes down what each look near some places says, and forgets nothing: it never alarms."""

    def __init__(self, places: Sequence[_Place], min_effect: float) -> None:
        self._places = places
        super().__init__(min_effect=min_effect)

    def _reset(self) -> None:
        super()._reset()
        self.said: list[tuple[int, bool, float]] = []
        self._whole = True

    def _look(self, step: int, index: int, level: WatchedLevel, required: float) -> Alarm | None:  # noqa: ARG002
        stride = FOLD**index
        if not any(
            place.after - place.near + stride
            <= self._count
            <= place.after + place.near + NEW[-1] * stride
            for place in self._places
        ):
            return None  # no new values of this look begin near any of them
        for answer in self._ask(index, level):
            looks = answer.looks
            for m, change, odds in zip(looks.sizes, looks.change, answer.log_odds, strict=True):
                self.said.append((self._count - m * stride, bool(change > 0.0), float(odds)))
        return None


def seen_both_ways(
    steps: Sequence[int], values: Sequence[float], *, is_loss: bool, min_effect: float = 0.0
) -> list[Seen]:
    """Changes that both directions agree on.

    Args:
        steps: Increasing, as many as values.
        values: Finite.
        is_loss: Whether its falls need more.
        min_effect: Smallest change that counts, in the stream's own unit.
    """
    while len(values) > MOST:
        means = np.sort(np.reshape(values[: len(values) // FOLD * FOLD], (-1, FOLD)), axis=1)
        steps, values = steps[FOLD - 1 :: FOLD], means[:, 1:3].mean(axis=1).tolist()
    places = _seen_backwards(values, min_effect)
    if not places:
        return []
    forwards = _Witness(places, min_effect)
    for index, value in enumerate(values):
        forwards.update(index, value)
    found = []
    for before, after, rises, near, log_odds in places:
        agrees = [o for at, up, o in forwards.said if up is rises and abs(at - after) <= near]
        odds = max(agrees, default=-math.inf) + log_odds
        if odds < (TOGETHER if rises or not is_loss else FALLS):
            continue
        onset = (before + after + 1) // 2
        direction = Direction.UP if rises else Direction.DOWN
        found.append(Seen(steps[onset], steps[after], direction, odds))
    return found[::-1]


def _seen_backwards(values: Sequence[float], min_effect: float) -> list[_Place]:
    backwards = LocalChange(certainty=BACKWARDS, min_effect=min_effect)
    last = len(values) - 1
    places = []
    for index, value in enumerate(reversed(values)):
        alarm = backwards.update(index, value)
        if alarm is None or alarm.onset_interval is None or alarm.probability is None:
            continue
        after, before = (last - at for at in alarm.onset_interval)
        near = max(float(after - before), LEAST, NEAR * alarm.run_length)
        rises = alarm.direction is Direction.DOWN
        places.append(_Place(before, after, rises, near, _log_odds(alarm.probability)))
    return places


def _log_odds(probability: float) -> float:
    return math.log(probability / max(1.0 - probability, 1e-12))
