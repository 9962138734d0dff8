"""The conformance suite every detector must pass; run it over your own.

    from phasewatch.detectors import checks

    @pytest.mark.parametrize("check", checks.all_checks(), ids=lambda check: check.__name__)
    def test_my_detector(check):
        check(MyDetector)

A check takes a factory that makes a fresh detector with default parameters, and raises
`CheckFailedError`.
"""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from phasewatch.detectors.base import Detector
from phasewatch.detectors.types import Alarm, AlarmKind, Direction

Factory = Callable[[], Detector]
Point = tuple[int, float, float]
"""Step, value, standard error."""

CHANGE = 150
"""Point of `changing_stream` at which the level falls."""


class CheckFailedError(AssertionError):
    """A detector breaks the contract."""


def changing_stream(length: int = 300) -> list[Point]:
    """A loss that falls from 2.0 to 0.4 at point 150, with 1 % noise and its standard error."""
    noise = np.random.default_rng(5).standard_normal(length)
    levels = [2.0 if i < CHANGE else 0.4 for i in range(length)]
    return [
        (10 * i, level * (1.0 + 0.01 * float(e)), 0.01 * level)
        for i, (level, e) in enumerate(zip(levels, noise, strict=True))
    ]


def check_protocol(factory: Factory) -> None:
    """Every member of the contract is there."""
    _require(isinstance(factory(), Detector), "it lacks a member of the Detector protocol")


def check_quiet_on_constants(factory: Factory) -> None:
    """A constant stream never alarms, whatever its size."""
    for value in (0.0, 1e-6, 1.0, 1e6):
        alarms = _feed(factory(), [(i, value, 1e-3 * value) for i in range(400)])
        _require(not alarms, f"it alarms on a constant stream of {value}: {alarms}")


def check_one_alarm_per_episode(factory: Factory) -> None:
    """One change gives one alarm, at the change, in its direction; and the episode ends."""
    detector = factory()
    alarms: list[Alarm] = []
    for point in changing_stream():
        alarm = detector.update(*point)
        if alarm is not None:
            alarms.append(alarm)
            _require(detector.active, "it is not active at its own alarm")
            enough = detector.statistic >= detector.threshold
            _require(enough, "its statistic is below its threshold at an alarm")
    _require(len(alarms) == 1, f"one change gave {len(alarms)} alarms: {alarms}")
    alarm = alarms[0]
    _require(alarm.kind is AlarmKind.SHIFT, "it calls a change of level an instability")
    _require(alarm.direction is Direction.DOWN, "it says the falling stream went up")
    _require(alarm.onset_step <= alarm.detected_step, "the onset lies after the detection")
    off = abs(alarm.onset_step - 10 * CHANGE)
    _require(off <= 100, f"the onset is {off / 10:g} points off")
    _require(alarm.detected_step >= 10 * CHANGE, "it alarms before the change")
    _require(alarm.score >= 1.0, f"the score is {alarm.score}, below 1")
    _require(alarm.run_length >= 1, f"the run length is {alarm.run_length}, below 1")
    _require(not detector.active, "the episode has not ended 150 points after the change")


def check_reset_is_fresh(factory: Factory) -> None:
    """After `reset` it does what a new detector does."""
    used, fresh = factory(), factory()
    _feed(used, [*changing_stream(CHANGE + 30), (10**6, math.nan, 1.0)])
    used.reset()
    _require(used.num_skipped == 0, "reset leaves num_skipped")
    _require(used.state_dict() == fresh.state_dict(), "the state after reset is not a fresh one")
    same = _feed(used, changing_stream()) == _feed(fresh, changing_stream())
    _require(same, "it alarms differently after reset")


def check_causal(factory: Factory) -> None:
    """The alarms up to a point do not depend on what follows."""
    stream = changing_stream()
    whole = _feed(factory(), stream)
    for length in (CHANGE - 1, CHANGE + 5, CHANGE + 40):
        prefix = _feed(factory(), stream[:length])
        expected = [alarm for alarm in whole if alarm.detected_step <= stream[length - 1][0]]
        _require(prefix == expected, f"the first {length} points alone give other alarms")


def check_nonfinite_is_counted_and_survived(factory: Factory) -> None:
    """NaN and infinity are skipped and counted, and the change after them is still found."""
    stream = changing_stream()
    for point, value in ((30, math.nan), (60, math.inf), (90, -math.inf)):
        stream[point] = (stream[point][0], value, stream[point][2])
    detector = factory()
    alarms = _feed(detector, stream)
    _require(detector.num_skipped == 3, f"3 non-finite values, num_skipped={detector.num_skipped}")
    kinds = [alarm.kind for alarm in alarms]
    _require(kinds == [AlarmKind.SHIFT], f"after single non-finite values it says {alarms}")


def check_nonfinite_run_is_one_instability(factory: Factory) -> None:
    """A run of non-finite values is one instability, however long; it ends with finite values."""
    detector = factory()
    quiet = changing_stream(100)
    _feed(detector, quiet)
    run = [(quiet[-1][0] + 1 + i, math.nan, 1.0) for i in range(200)]
    alarms = _feed(detector, run)
    kinds = [alarm.kind for alarm in alarms]
    _require(kinds == [AlarmKind.INSTABILITY], f"200 NaNs in a row give {len(alarms)} alarms")
    _require(detector.active, "it is not active within a run of non-finite values")
    finite = all(map(math.isfinite, (alarms[0].value_before, alarms[0].value_after)))
    _require(finite, "the alarm carries a non-finite value")
    after = [(run[-1][0] + 1 + i, quiet[i][1], quiet[i][2]) for i in range(50)]
    _require(not _feed(detector, after), "it alarms at the return to the old level")
    _require(not detector.active, "the episode goes on after 50 good values")


def check_one_condition_is_few_alarms(factory: Factory) -> None:
    """A stream that flickers between numbers and none, or that diverges, is told about once.

    A divergence may be told once as it begins and once more as it reaches its new level.
    """
    detector = factory()
    start = changing_stream(100)
    _feed(detector, start)
    nan = (True, True, True, False, False, False)
    flicker = [
        (start[-1][0] + 1 + i, math.nan if nan[i % 6] else start[i % 100][1], start[0][2])
        for i in range(300)
    ]
    alarms = _feed(detector, flicker)
    _require(len(alarms) <= 1, f"one flickering stream of 300 points gives {len(alarms)} alarms")
    detector = factory()
    rise = [0.02 * min(i, 100) for i in range(400)]
    noise = np.random.default_rng(7).standard_normal(400).tolist()
    diverged = [
        (start[-1][0] + 1 + i, 2.0 * 10.0**up * (1.0 + 0.05 * e), 0.1 * 10.0**up)
        for i, (up, e) in enumerate(zip(rise, noise, strict=True))
    ]
    alarms = _feed(detector, [*start, *diverged])
    _require(len(alarms) <= 2, f"one divergence gives {len(alarms)} alarms: {alarms}")


def check_steps_must_increase(factory: Factory) -> None:
    """A step that does not increase is skipped and counted."""
    stream = changing_stream()
    repeated = [point for point in stream for _ in range(2)]
    detector = factory()
    alarms = _feed(detector, repeated)
    _require(detector.num_skipped == len(stream), "repeated steps are not counted as skipped")
    _require(alarms == _feed(factory(), stream), "repeated steps change the alarms")


def check_bounded_memory(factory: Factory) -> None:
    """Twice the points do not take twice the memory."""
    detector = factory()
    noise = np.random.default_rng(6).standard_normal(8_000).tolist()
    stream = [(i, 2.0 + 0.1 * e, 0.1) for i, e in enumerate(noise)]
    _feed(detector, stream[:4_000])
    half = len(pickle.dumps(detector))
    _feed(detector, stream[4_000:])
    full = len(pickle.dumps(detector))
    _require(full <= 1.25 * half, f"it grew from {half} to {full} bytes in 4000 points")


def check_state_round_trip(factory: Factory) -> None:
    """A detector restored through JSON goes on as if nothing had happened; the state is kept."""
    stream = changing_stream()
    for cut in (0, 1, 37, CHANGE + 3, CHANGE + 12, CHANGE + 60):
        original = factory()
        _feed(original, stream[:cut])
        state = json.loads(json.dumps(original.state_dict(), allow_nan=False))
        untouched = copy.deepcopy(state)
        restored = factory()
        _feed(restored, stream[:77])
        try:
            restored.load_state_dict(state)
        except Exception as error:
            raise CheckFailedError(f"it cannot load its own state: {error!r}") from error
        same = restored.state_dict() == original.state_dict()
        _require(same, f"the state changes in a round trip at point {cut}")
        alarms = _feed(restored, stream[cut:])
        _require(state == untouched, "it changes the state it was given")
        expected = _feed(original, stream[cut:])
        _require(alarms == expected, f"restored at point {cut} it says {alarms}, not {expected}")
        _require(restored.active == original.active, "the restored detector is in another episode")


def check_state_is_a_snapshot(factory: Factory) -> None:
    """A state does not change when its detector goes on."""
    stream = changing_stream()
    detector = factory()
    _feed(detector, stream[: CHANGE + 3])
    state = detector.state_dict()
    untouched = copy.deepcopy(state)
    _feed(detector, stream[CHANGE + 3 :])
    _require(state == untouched, "the saved state goes on with the detector")


def check_pickle_and_copy(factory: Factory) -> None:
    """Copies go on like the original, and apart from it."""
    stream = changing_stream()
    detector = factory()
    _feed(detector, stream[: CHANGE - 10])
    twins = [pickle.loads(pickle.dumps(detector)), copy.deepcopy(detector)]  # noqa: S301
    expected = _feed(detector, stream[CHANGE - 10 :])
    for twin in twins:
        same = _feed(twin, stream[CHANGE - 10 :]) == expected
        _require(same, "a copy alarms differently from its original")


def check_symmetric(factory: Factory) -> None:
    """Where it claims to be symmetric, the negated stream alarms alike the other way."""
    if not getattr(factory(), "symmetric", False):
        return
    stream = changing_stream()
    there = _feed(factory(), stream)
    back = _feed(factory(), [(step, -value, stderr) for step, value, stderr in stream])
    flipped = [
        replace(
            alarm,
            direction=Direction.UP if alarm.direction is Direction.DOWN else Direction.DOWN,
            value_before=-alarm.value_before,
            value_after=-alarm.value_after,
        )
        for alarm in back
    ]
    _require(there == flipped, f"the negated stream gives {back}, not the mirror of {there}")


def check_parameters_are_frozen(factory: Factory) -> None:
    """Running it, or changing what it hands out, leaves its parameters alone."""
    detector = factory()
    if not hasattr(detector, "parameters"):
        return
    before = dict(detector.parameters)
    detector.parameters.clear()
    _feed(detector, changing_stream())
    _require(detector.parameters == before, "its parameters changed")


def all_checks() -> list[Callable[[Factory], None]]:
    """Every check of this module, in its order."""
    return [
        function
        for name, function in globals().items()
        if name.startswith("check_") and name != "check_detector"
    ]


def check_detector(factory: Factory) -> None:
    """Run every check.

    Raises:
        CheckFailedError: The detector breaks the contract; the message says how.
    """
    for check in all_checks():
        check(factory)


def _feed(detector: Detector, points: Iterable[Point] | Sequence[Point]) -> list[Alarm]:
    alarms = (detector.update(*point) for point in points)
    return [alarm for alarm in alarms if alarm is not None]


def _require(condition: bool, failure: str) -> None:
    if not condition:
        raise CheckFailedError(failure)
