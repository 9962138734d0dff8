"""Abrupt changes of any scalar, both ways, at any time scale.

The stream is kept at levels: single points, and robust means of 4, 16, 64, … of them. At each level
a running forecast says cheaply whether anything may have happened; where it may have, the latest 1
to 14 values are compared with what the values before them were doing (`local_features`), at once
and again a few values later, and boosted trees (`boosted`) turn the comparison into log-odds that
an experienced eye would call it an abrupt change. The trees were fitted to recorded curves of many
repositories and to simulated ones. Falls of long smooth losses are better told by `slope_shift`:
`abrupt_change` runs both.

Everything forgets: the forecast, its errors and the range are those of the recent past, and what
lies before a change is not compared with what comes after it. No name, unit or length of the run
matters; the longer the stream, the more certain an alarm must be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from phasewatch.detectors.base import BaseDetector, require
from phasewatch.detectors.statistics.boosted import BoostedTrees, shipped
from phasewatch.detectors.statistics.local_features import (
    LOG_SPAN,
    MIN_OLD,
    NAMES,
    Looks,
    least_errors,
    look,
)
from phasewatch.detectors.statistics.watched_level import KEEP, KEEP_POINTS, WatchedLevel
from phasewatch.detectors.types import Alarm, AlarmKind, Direction

Array = NDArray[np.float64]

MODEL = "local_change.json"

FOLD = 4
"""Values of a level that are joined to one of the next: the mean of the middle two."""

FAR = 48
"""Values of the next level that say what range and jumps are usual."""

HOLD = 8
"""A change the same way that begins within so many points of the last detection is the same;"""

BRIEF = 3
"""one the other way, within so many."""

MOVES, LASTS = 0.1, (20, 100)
"""An episode goes on while a stream moves on by this share of the change that was told, for so many
times the points that took, and so many more, at most."""

CAREFUL, STRICTER = 1000.0, 0.2
"""From so many points on, the log-odds must be higher: by so much for each e-fold of the length."""

SINGLE = 2.5
"""Log-odds that a single point needs beyond that: noise with heavy tails has such points, and the
next one will tell."""

DIP = 4.0
"""The same where it lies below: one bad evaluation among good ones is usual."""

Z = NAMES.index("z_mean")

UNFIT = 2.0
"""Log-odds less where values are watched as they are though log10 fits them: so are scores that
begin near 0, of whose first decades little follows. On curves of repositories that the model never
saw, three more changes of 96 are found in this way, with no more false alarms."""

CLEAR = 2.7
"""Log-odds that a clear look has at least, whatever the trees say, who saw few long streams: on the
recorded curves 33 clear looks were of transitions, 2 were not."""

_LEAST = {
    "m": 2.0,
    "z_mean": 1.0,
    "z_least": math.log10(6.0),
    "over_residual": math.log10(2.0),
    "over_jump": math.log10(3.0),
    "over_range": 0.0,
    "hold": 0.5,
}
CLEARLY = np.array([_LEAST.get(name, -math.inf) for name in NAMES])
"""What a clear look has at least: two values or more, their mean ten standard errors away and as
far as all of the range nearby, each six deviations away, twice as far as any before and thrice the
largest jump, the newest still half as far."""

PENDING = 1.0
"""At the end of a stream, log-odds lower by this are enough: nothing more will be known."""

SUDDEN = 4
"""A change is sudden where it shows within so many points."""


class _Answer(NamedTuple):
    """What the model says of looks at a level: log-odds, and whether all values are above 0."""

    looks: Looks
    log_odds: Array
    positive: bool


def _repeats(values: Sequence[float]) -> bool:
    """Whether most values are the one before again: how they scatter cannot be known then.

    Rewards that are rarely above zero are such a stream, and each would be a change by itself.
    """
    return 2 * sum(a == b for a, b in pairwise(values)) >= len(values) - 1


def _settled(values: Sequence[float], looks: Looks) -> NDArray[np.bool_]:
    """Whether two new values or more, and most of them, lie beyond all old ones."""
    beyond = []
    for m, change in zip(looks.sizes, looks.change, strict=True):
        old, new = values[-m - looks.old : -m], values[-m:]
        low, high = min(old), max(old)
        count = sum(value > high if change > 0.0 else value < low for value in new)
        beyond.append(count >= 2 and 2 * count > m)
    return np.array(beyond)


class LocalChange(BaseDetector):
    """Detects abrupt changes of any stream of numbers, both ways.

    It needs no name, unit or range: log10 or linear, what is large and what is usual are read from
    the latest values. An alarm carries its onset interval, its effect in the stream's own units and
    in noise units, and the probability that such a look is a change.

    Args:
        certainty: Log-odds from which on a look is an alarm, up to 1000 points; half a unit more
            for each e-fold beyond.
        strictness: Log-odds added to that; the knob of a run's false alarms.
        min_effect: Smallest change that counts, in the stream's own unit.
        falls: Log-odds that a fall of values above 0 needs beyond that.

    Raises:
        ValueError: A parameter is not finite, or `min_effect` is below 0.

    Example:
        >>> detector = LocalChange()
        >>> curve = [2.0, 2.01, 1.99] * 20 + [1.2, 1.21, 1.19] * 20
        >>> alarms = [detector.update(step, value) for step, value in enumerate(curve)]
        >>> [(alarm.onset_step, alarm.direction.value) for alarm in alarms if alarm]
        [(60, 'down')]
    """

    name = "local_change"

    def __init__(
        self,
        *,
        certainty: float = 2.0,
        strictness: float = 0.0,
        min_effect: float = 0.0,
        falls: float = 0.0,
    ) -> None:
        require(math.isfinite(certainty), "certainty", certainty, "finite")
        require(math.isfinite(strictness), "strictness", strictness, "finite")
        require(math.isfinite(falls), "falls", falls, "finite")
        require(min_effect >= 0.0, "min_effect", min_effect, "at least 0")
        self._certainty, self._strictness = certainty, strictness
        self._min_effect, self._falls = min_effect, falls
        self._model: BoostedTrees = shipped(MODEL)
        self._whole = False  # whether the model is asked also where no alarm is possible
        super().__init__(
            {
                "certainty": certainty,
                "strictness": strictness,
                "min_effect": min_effect,
                "falls": falls,
            }
        )

    @property
    def min_points(self) -> int:
        """Fewest points with which it can alarm."""
        return MIN_OLD + 1

    @property
    def statistic(self) -> float:
        """Odds of a change at the latest look, over those asked for."""
        return self._odds

    @property
    def required(self) -> float:
        """Log-odds that an alarm needs now."""
        longer = max(math.log(max(self._count, 1) / CAREFUL), 0.0)
        return self._certainty + self._strictness + STRICTER * longer

    @property
    def _in_episode(self) -> bool:
        # It is over sooner than a further alarm the same way would be news.
        return self._count < self._quiet_from - HOLD + BRIEF

    def _reset(self) -> None:
        self._levels: list[WatchedLevel] = []
        self._count = self._since = self._quiet_from = self._held_until = self._last_until = 0
        self._farthest = self._size = 0.0
        self._in_log = False
        self._odds = 0.0

    def _observe(self, step: int, value: float, stderr: float | None) -> Alarm | None:  # noqa: ARG002
        self._count += 1
        self._odds = 0.0
        if self._count < self._quiet_from < self._last_until:
            self._go_on(value)
        alarm: Alarm | None = None
        index = 0
        while True:
            if index == len(self._levels):
                self._levels.append(WatchedLevel(KEEP if index else KEEP_POINTS))
            level = self._levels[index]
            if level.push(step, value) and alarm is None:
                alarm = self._look(step, index, level, self.required)
            fold = level.fold
            fold.append(value)
            if len(fold) < FOLD:
                return alarm
            fold.sort()
            value = 0.5 * (fold[1] + fold[2])
            fold.clear()
            index += 1

    def forget(self, points: int) -> None:
        """Compare nothing that comes with what lies more than so many points back."""
        self._since = max(self._since, self._count - points)

    def _go_on(self, value: float) -> None:
        """Prolong the episode while the stream moves on in its direction."""
        moved = value - self._farthest
        if self._in_log and self._farthest > 0.0:
            moved = math.log10(value / self._farthest) if value > 0.0 else -math.inf
        if moved * math.copysign(1.0, self._size) > MOVES * abs(self._size):
            self._farthest = value
            self._quiet_from = self._count + HOLD

    def finish(self) -> Alarm | None:
        """The stream is over: an alarm for what was pending, if it is likely enough."""
        if self._last_step is None or self._in_episode:
            return None
        for index, level in enumerate(self._levels):
            if level.due:
                alarm = self._look(self._last_step, index, level, self.required - PENDING)
                if alarm is not None:
                    return alarm
        return None

    def _ask(self, index: int, level: WatchedLevel) -> list[_Answer]:
        """What the model says of the latest values of a level; nothing where none stands out.

        On the scale that fits them, and as they are where that is log10.
        """
        # Values that lie wholly behind the last change.
        usable = min(len(level.values), level.keep, level.count - -(-self._since // FOLD**index))
        if usable <= MIN_OLD or not level.stands_out(usable):
            return []
        values = np.array(level.values[-usable:])
        low, high = float(values.min()), float(values.max())
        fits_log = low > 0.0 and high > LOG_SPAN * low
        answers = []
        for as_they_are in (False, True) if fits_log else (False,):
            looks = self._looks(index, level, values, as_they_are=as_they_are)
            if looks is None:
                continue
            said = self._model.log_odds(looks.features)
            clear = np.asarray((looks.features >= CLEARLY).all(axis=1))
            said = np.where(clear, np.maximum(said, CLEAR), said)
            if as_they_are:
                said -= UNFIT
            said[looks.change == 0.0] = -math.inf
            said[np.abs(looks.after - looks.before) < self._min_effect] = -math.inf
            answers.append(_Answer(looks, said, low > 0.0))
        return answers

    def _looks(
        self, index: int, level: WatchedLevel, values: Array, *, as_they_are: bool
    ) -> Looks | None:
        far = self._levels[index + 1].values[-FAR:-1] if index + 1 < len(self._levels) else []
        return look(
            values,
            far,
            level=index,
            seen=self._count,
            since=self._count - self._since,
            past_of=level.past,
            whole=self._whole,
            as_they_are=as_they_are,
        )

    def _likeliest(
        self, index: int, level: WatchedLevel, required: float
    ) -> tuple[_Answer, int] | None:
        """The look at a level that is the likeliest change, if one is likely enough."""
        found: tuple[_Answer, int] | None = None
        highest = -math.inf
        for answer in self._ask(index, level):
            looks, log_odds = answer.looks, answer.log_odds.copy()
            log_odds[looks.features[:, Z] < math.log10(least_errors(looks.old))] = -math.inf
            if answer.positive:
                log_odds[looks.change < 0.0] -= self._falls
            if index == 0:
                log_odds[0] -= SINGLE if looks.change[0] > 0.0 else DIP
            if log_odds.max() >= required and _repeats(level.values[-1 - looks.old : -1]):
                log_odds[~_settled(level.values, looks)] = -math.inf
            best = int(log_odds.argmax())
            odds = float(log_odds[best])
            self._odds = max(self._odds, math.exp(min(odds - required, 20.0)))
            if odds >= required and odds > highest:
                found, highest = (answer, best), odds
        return found

    def _look(self, step: int, index: int, level: WatchedLevel, required: float) -> Alarm | None:
        """Whether the latest values of a level are a change."""
        found = self._likeliest(index, level, required)
        if found is None:
            return None
        answer, best = found
        looks, stride = answer.looks, FOLD**index
        began = self._count - looks.sizes[best] * stride
        size = float(looks.change[best])
        onward = size * self._size > 0.0
        again = began < (self._quiet_from if onward else self._held_until)
        self._since = began
        self._held_until, self._quiet_from = self._count + BRIEF, self._count + HOLD
        for one in self._levels:
            one.linear.recent.clear()
            one.log.recent.clear()
        if again:
            return None
        self._farthest, self._size, self._in_log = float(looks.after[best]), size, looks.log
        self._last_until = self._count + LASTS[0] * looks.sizes[best] * stride + LASTS[1]
        return self._alarm(step, level, looks, best, float(answer.log_odds[best]), stride)

    def _alarm(
        self, step: int, level: WatchedLevel, looks: Looks, best: int, log_odds: float, stride: int
    ) -> Alarm:
        # Values that are still old belong to no effect.
        m = looks.sizes[best] - self._still_old(level, looks, best)
        last_before, first = level.steps[-m - 1], level.steps[-m]
        before, after = float(looks.before[best]), float(looks.after[best])
        sigmas = abs(looks.change[best])
        if m < looks.sizes[best]:
            new = np.array(level.values[-m:])
            scaled = np.log10(new) if looks.log else new
            after = float(10.0 ** scaled.mean() if looks.log else scaled.mean())
            sigmas = abs(scaled.mean() - (math.log10(before) if looks.log else before))
        return Alarm(
            detected_step=step,
            onset_step=min(last_before + max((first - last_before) // (2 * stride), 1), step),
            direction=Direction.UP if looks.change[best] > 0.0 else Direction.DOWN,
            kind=AlarmKind.SHIFT,
            score=max(self._odds, 1.0),
            run_length=m * stride,
            value_before=before,
            value_after=after,
            onset_interval=(last_before, first),
            effect=after - before,
            effect_sigma=float(sigmas / looks.sigma[best]),
            probability=1.0 / (1.0 + math.exp(-log_odds)),
            rule=f"{m} of {stride} points, {'log10' if looks.log else 'linear'}",
        )

    def _still_old(self, level: WatchedLevel, looks: Looks, best: int) -> int:
        """How many of the new values are still where the old ones were."""
        m = looks.sizes[best]
        new, before = np.array(level.values[-m:]), looks.before[best]
        off = np.log10(new / before) if looks.log else new - before
        away = min(0.5 * abs(looks.change[best]), 4.0 * looks.sigma[best])
        return int(np.argmax(np.sign(looks.change[best]) * off >= away))

    def _state(self) -> dict[str, Any]:
        return {
            "levels": [level.state_dict() for level in self._levels],
            "counts": [self._count, self._since],
            "episode": [self._quiet_from, self._held_until, self._last_until],
            "change": [self._farthest, self._size, self._in_log],
            "odds": self._odds,
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        self._count, self._since = state["counts"]
        self._quiet_from, self._held_until, self._last_until = state["episode"]
        self._farthest, self._size, self._in_log = state["change"]
        self._odds = float(state["odds"])
        for index, saved in enumerate(state["levels"]):
            level = WatchedLevel(KEEP if index else KEEP_POINTS)
            level.load_state_dict(saved)
            self._levels.append(level)
