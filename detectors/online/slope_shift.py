"""A sudden fall of a loss: its slope in log10 turns several times steeper, at any time scale.

Two straight lines in the step are fitted, to the last w points ("new") and to those before them
("old"): 3 after 6 points, then w after 3w for w = 4, 6, 12, 24 points and, on means of 2, 4, 8, …
points, for w = 48, 96, 192, … . A window looks up to six times while it moves by its width. A fall
is a `hit` when all of this holds:

- effect: the latest level (median of three) lies `gate` (0.1 dex, or 3 % of the range so far if
  that is more) below the end of the old line;
- slope: |new slope| > `ratio` · |old slope|. Ordinary decay slows down and never passes;
- significance: the extrapolation error E of the old line passes the quantile of Student's t, with
  the old window's degrees of freedom against the scatter of both windows, and with those of the
  running noise against its scale and autocorrelation (AR(1)). At the n-th point, 2^k > n, the
  quantile is that of `false_alarms` / (2^k k²): over all n that is less than `false_alarms`;
- past: E > `past_ratio` × the root mean square of E over the stream's own past.

An old line that rises counts as flat; the effect is then measured from the lowest point of its
window, and so it is where the window reaches back into an episode: coming back from a spike is no
fall. Two hits in a row raise the alarm, or one by half more than needed. The episode ends when the
speed stays below `release` of its peak.

A sudden rise by `rise_gate` is an instability; see
`phasewatch.detectors.statistics.instability` for its life.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from scipy import stats

from phasewatch.detectors.base import BaseDetector, require
from phasewatch.detectors.statistics.instability import Instability
from phasewatch.detectors.statistics.scales import ScaleName, StreamScale
from phasewatch.detectors.statistics.windows import Level, TwinLines
from phasewatch.detectors.types import Alarm, AlarmKind, Direction

SHAPES = ((3, 6), (4, 12), (6, 18), (12, 36), (24, 72))
"""Points of the new and the old window on single points; the last is also that on means."""

HITS = 2
"""Consecutive looks that make an alarm: a single odd look is none,"""

OVERWHELMING = 1.5
"""unless all its conditions are met by so much."""

PERSISTENCE = 3
"""Consecutive looks below the release speed that end an episode."""

RISE_LEVELS = 2
"""Levels on which a rise can be sudden enough to be an instability: up to 48 points."""

LONG, BRIEF = 2048, 6
"""From so many points on, windows of fewer points sleep: they are a blink, and cost the most."""

ALWAYS = 2**62
"""More points than any run has."""

NO_NOISE = 1e-9
"""Smallest error of an extrapolation, in dex or in units of the stream's size."""


class SlopeShift(BaseDetector):
    """Detects abrupt falls of a loss, and sudden rises as instabilities.

    Expect about 0.02 false alarms per 1000 points or fewer; ordinary decay, learning-rate schedules
    and autocorrelated noise stay quiet. It needs `min_points` to say anything, and about 20 to be
    of use. Cost: 15 to 30 µs a point, constant memory (one level of 97 to 194 means per doubling of
    the stream's length, at most `levels`).

    Args:
        gate: Smallest fall, in dex; on the linear scale in shares of the stream's
            largest size so far.
        gate_share: Smallest fall as a share of the range so far.
        ratio: How many times steeper the new line must be.
        false_alarms: What the t-test alone would let pass in an endless stream, of each pair of
            windows, were the noise Gaussian. The other conditions leave far fewer.
        past_ratio: How far the statistic must stand out of its own past.
        strictness: How many times what noise allows a change must be. The one knob that trades
            false alarms for missed changes under noise; `false_alarms.threshold_for` sets it.
        memory: Memory of that past, in window widths.
        share: Largest share of the steps so far that a new window above 24 points may take.
        release: The episode ends below this share of the peak speed.
        rise_gate: Smallest sudden rise that is an instability, in dex (shares of that size).
        quiet: Points without a new rise that end an instability.
        levels: Levels of means; 12 reach windows of 49 152 points.
        scale: "log" takes log10(value + floor); "linear" takes the value; "auto" starts with
            "log" and changes to "linear", afresh, at the first negative value.
        floor: Losses below it count as equal, in the loss's unit; a loss of exactly 0 is legal.

    Raises:
        ValueError: A parameter is out of its range.

    Example:
        >>> detector = SlopeShift()
        >>> curve = [2.0] * 100 + [2.0 * 0.9 ** i for i in range(30)] + [2.0 * 0.9 ** 30] * 100
        >>> alarms = [detector.update(step, value) for step, value in enumerate(curve)]
        >>> [(alarm.onset_step, alarm.detected_step) for alarm in alarms if alarm]
        [(100, 105)]
    """

    name = "slope_shift"

    def __init__(
        self,
        *,
        gate: float = 0.1,
        gate_share: float = 0.03,
        ratio: float = 2.5,
        false_alarms: float = 2.0,
        past_ratio: float = 4.0,
        strictness: float = 1.0,
        memory: int = 40,
        share: float = 0.2,
        release: float = 0.35,
        rise_gate: float = 0.5,
        quiet: int = 24,
        levels: int = 12,
        scale: ScaleName = "auto",
        floor: float = 1e-8,
    ) -> None:
        given = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        for key in ("gate", "gate_share", "rise_gate", "past_ratio", "false_alarms", "strictness"):
            require(given[key] > 0.0, key, given[key], "above 0")
        for key in ("share", "release"):
            require(0.0 < given[key] < 1.0, key, given[key], "above 0 and below 1")
        require(ratio > 1.0, "ratio", ratio, "above 1")
        for key in ("memory", "quiet", "levels"):
            require(given[key] >= 1, key, given[key], "at least 1")
        self._gate, self._gate_share, self._rise_gate = gate, gate_share, rise_gate
        self._ratio, self._past_ratio = ratio, past_ratio
        self._share, self._release, self._strictness = share, release, strictness
        self._memory, self._max_levels = memory, levels
        self._unstable = Instability(quiet)
        self._scale = StreamScale(scale, floor)
        self._false_alarms = false_alarms
        super().__init__(given)

    @property
    def statistic(self) -> float:
        """Smallest margin of the conditions of a fall, at the scale where it is largest."""
        return max((w.score for level in self._levels for w in level.windows), default=0.0)

    @property
    def min_points(self) -> int:
        """Fewest points with which it can alarm."""
        return sum(SHAPES[0])

    @property
    def _in_episode(self) -> bool:
        return self._falling is not None or self._unstable.on

    def _reset(self) -> None:
        self._scale.reset()
        self._restart()

    def _restart(self) -> None:
        """Forget the points, not the parameters: what a change of scale needs."""
        self._levels: list[Level] = []
        self._count = 0
        self._ended = -1
        self._first_step = 0
        self._falling: dict[str, Any] | None = None
        self._unstable.reset()

    def _observe(self, step: int, value: float, stderr: float | None) -> Alarm | None:  # noqa: ARG002
        if self._scale.must_change(value):
            self._restart()
        y = self._scale.take(value)
        if self._count == 0:
            self._first_step = step
        self._count += 1
        mean: tuple[float, float] | None = (step, y)
        alarm: Alarm | None = None
        index = 0
        while mean is not None and index <= self._max_levels:
            if index == len(self._levels):
                self._levels.append(self._new_level(index))
            level = self._levels[index]
            mean = level.push(*mean)
            if index == 0 and self._unstable.on:
                self._follow_instability(y, level.latest)
            alarm = self._judge(step, index, level) or alarm
            index += 1
        return alarm

    def _new_level(self, index: int) -> Level:
        return Level(2**index, SHAPES if index == 0 else SHAPES[-1:], self._memory)

    def _judge(self, step: int, index: int, level: Level) -> Alarm | None:
        """All windows of a level after one point: count hits, learn from the past, perhaps alarm.

        Nearly every point of a run passes here without a further call: the time goes here.
        """
        alarm: Alarm | None = None
        points, stride = level.count, level.stride
        due = [w for w in level.windows if not points % w.pace and points >= w.width + w.old]
        if not due:
            return None
        long = self._count > LONG and self._falling is None
        latest, unit = level.latest, self._scale.unit
        since = self._count - self._ended if self._ended >= 0 else ALWAYS
        gate = max(self._gate * unit, self._gate_share * self._scale.range)
        highest_base = latest - self._rise_gate * unit if index < RISE_LEVELS else -math.inf
        for window in due:
            if long and window.width < BRIEF:
                window.hits = window.rises = 0
                window.score = 0.0
                continue
            window.look(level)
            clear = since >= window.width * stride
            apart = since >= (window.width + window.old) * stride
            score = rise = 0.0
            if window.new_slope < 0.0:
                base = window.old_mean if window.old_slope >= 0.0 else window.old_end
                score = (base - latest) / gate
                if score > 0.0:
                    score = self._fall_score(step, level, window, gate, score, apart)
            elif clear and window.old_end <= highest_base:
                rise = self._rise_score(level, window)
            window.score = score
            if self._falling is not None:
                if self._falling["level"] == index and self._falling["width"] == window.width:
                    self._follow_fall(window, self._falling)
                    if self._falling is None:
                        return None
                continue
            if self._unstable.on:
                continue  # a change is no part of what is usual
            if apart:
                window.learn()
            window.rises = window.rises + 1 if rise >= 1.0 else 0
            window.hits = window.hits + 1 if clear and score >= 1.0 else 0
            if window.rises >= HITS:
                alarm = self._begin_instability(step, level, window, rise) or alarm
            elif window.hits >= HITS or (window.hits and score >= OVERWHELMING):
                alarm = self._begin_fall(step, index, level, window)
        return alarm

    def _fall_score(
        self, step: int, level: Level, window: TwinLines, gate: float, margin: float, apart: bool
    ) -> float:
        """Smallest margin of all conditions of a fall; the costly ones come last.

        `apart` says whether the windows lie wholly behind the last episode.
        """
        if level.stride > 1 and window.span > self._share * (step - self._first_step):
            return 0.0
        if window.old_slope < 0.0:
            margin = min(margin, window.new_slope / (self._ratio * window.old_slope))
        if margin >= 1.0 and (window.old_slope > 0.0 or not apart):
            margin = min(margin, (min(window.old_values(level)) - level.latest) / gate)
        if margin >= 1.0:
            margin = min(margin, self._surprise(level, window, window.excess, window.past.up))
        return margin

    def _surprise(self, level: Level, window: TwinLines, excess: float, past: float) -> float:
        """The excess over what noise allows: now, by the t-test, and in the stream's own past."""
        octave = self._count.bit_length()
        local, running = window.standard_errors(level)
        allowed = max(
            _t_limit(self._false_alarms, octave, window.old - 2) * local,
            _t_limit(self._false_alarms, octave, max(level.noise.count, 1)) * running,
            self._past_ratio * past,
            NO_NOISE * self._scale.unit,
        )
        return excess / (self._strictness * allowed)

    def _rise_score(self, level: Level, window: TwinLines) -> float:
        """The same for a sudden rise, which is an instability; 1 is a hit."""
        gate = self._scale.unit * self._rise_gate
        margin = (level.latest - window.old_end) / gate
        if window.new_slope <= self._ratio * abs(window.old_slope):
            return 0.0
        margin = min(margin, (level.latest - max(window.old_values(level))) / gate)
        return min(margin, self._surprise(level, window, -window.excess, window.past.down))

    def _begin_fall(self, step: int, index: int, level: Level, window: TwinLines) -> Alarm:
        self._falling = {
            "level": index, "width": window.width, "peak": -window.new_slope, "slow": 0,
        }  # fmt: skip
        return self._alarm(step, level, window, window.score)

    def _begin_instability(
        self, step: int, level: Level, window: TwinLines, score: float
    ) -> Alarm | None:
        high = max(level.values[-window.width :])
        if not self._unstable.begin(self._count, window.old_end, high):
            return None
        return self._alarm(step, level, window, score, AlarmKind.INSTABILITY)

    def _alarm(
        self,
        step: int,
        level: Level,
        window: TwinLines,
        score: float,
        kind: AlarmKind = AlarmKind.SHIFT,
    ) -> Alarm:
        back = window.crossing(level)
        until_onset = list(level.values)[: len(level.values) - back][-3:]
        return Alarm(
            detected_step=step,
            onset_step=int(level.steps[-1 - back]),
            direction=Direction.DOWN if kind is AlarmKind.SHIFT else Direction.UP,
            kind=kind,
            score=score,
            run_length=back * level.stride + 1,
            value_before=self._scale.back(sum(until_onset) / len(until_onset)),
            value_after=self._scale.back(level.latest),
        )

    def _follow_fall(self, window: TwinLines, falling: dict[str, Any]) -> None:
        """End the episode once the speed stays below a share of its peak."""
        speed = -window.new_slope
        falling["peak"] = max(falling["peak"], speed)
        falling["slow"] = falling["slow"] + 1 if speed < self._release * falling["peak"] else 0
        if falling["slow"] >= PERSISTENCE:
            self._end()

    def _follow_instability(self, y: float, latest: float) -> None:
        self._unstable.follow(self._count, y, latest, self._gate * self._scale.unit)
        if not self._unstable.on:
            self._end()

    def _end(self) -> None:
        self._falling = None
        self._ended = self._count
        for level in self._levels:
            for window in level.windows:
                window.hits = window.rises = 0
                window.past.forget_latest()

    def _state(self) -> dict[str, Any]:
        return {
            "levels": [level.state_dict() for level in self._levels],
            "scale": self._scale.state_dict(),
            "count": self._count,
            "ended": self._ended,
            "first_step": self._first_step,
            "falling": dict(self._falling) if self._falling else None,
            "unstable": self._unstable.state_dict(),
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        self._scale.load_state_dict(state["scale"])
        self._count = int(state["count"])
        self._ended = int(state["ended"])
        self._first_step = int(state["first_step"])
        self._falling = dict(state["falling"]) if state["falling"] else None
        self._unstable.load_state_dict(state["unstable"])
        for index, saved in enumerate(state["levels"]):
            level = self._new_level(index)
            level.load_state_dict(saved)
            self._levels.append(level)


@lru_cache(maxsize=4096)
def _t_limit(p_value: float, octave: int, freedom: int) -> float:
    """Quantile of Student's t, stricter with the length of the stream.

    The level is p / (n k²) at n = 2^k points: its sum over all n is finite.
    """
    return float(stats.t.isf(p_value / (2.0**octave * octave**2), freedom))
