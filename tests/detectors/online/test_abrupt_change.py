"""The detector of logged streams: two rules side by side, neither of which silences the other."""

import json

import numpy as np
import pytest

from phasewatch.detectors import AlarmKind, Direction, create
from support.curves import sigmoid_fall


def alarms(values, detector=None):
    detector = detector or create("abrupt_change")
    found = [detector.update(step, float(value)) for step, value in enumerate(values)]
    return [alarm for alarm in [*found, detector.finish()] if alarm is not None]


def noise(count, sigma, seed=0):
    return sigma * np.random.default_rng(seed).standard_normal(count)


STEP = np.where(np.arange(240) < 150, 0.0, 1.0)
LEVELS = {
    "a loss that is halved": 2.0 * 0.5**STEP,
    "a loss that doubles": 0.7 * 2.0**STEP,
    "cross-entropy from 3.65 to 8.5 nats": 3.65 + 4.85 * STEP,
    "an accuracy from 85 to 93": 85.0 + 8.0 * STEP,
    "a return from -15 to 18": -15.0 + 33.0 * STEP,
    "a return from 18 to -15": 18.0 - 33.0 * STEP,
    "a return that collapses": 870.0 - 800.0 * STEP,
}


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("seed", range(3))
def test_a_step_is_told_once_whatever_the_stream_is(name, seed):
    level = LEVELS[name]
    (alarm,) = alarms(level + noise(240, 0.02 * abs(level[-1] - level[0]), seed))
    assert alarm.direction is (Direction.UP if level[-1] > level[0] else Direction.DOWN)
    assert abs(alarm.onset_step - 150) <= 3
    assert alarm.detected_step <= 156
    assert alarm.rule


def test_falls_of_a_loss_are_those_that_its_slope_tells():
    curve = sigmoid_fall(1000, 0.1) * 10.0 ** noise(1000, 0.005)
    said, alone = alarms(curve), create("slope_shift")
    expected = [a for step, v in enumerate(curve) if (a := alone.update(step, v)) is not None]
    assert [(a.onset_step, a.detected_step) for a in said] == [
        (a.onset_step, a.detected_step) for a in expected
    ]
    assert {a.rule for a in said} == {"slope of a fall"}


@pytest.mark.parametrize("seed", range(3))
def test_a_fall_within_few_checkpoints_is_told_by_the_first_that_is_sure_and_once(seed):
    """27 checkpoints at even distances in log step: few points for a slope."""
    dex = 0.8 - 0.7 / (1.0 + np.exp(-2.0 * (np.arange(27) - 11.7)))
    curve = 10.0 ** (dex + noise(27, 0.002, seed))
    (alarm,) = alarms(curve)
    (by_slope,) = alarms(curve, create("abrupt_change", falls=100.0))
    assert alarm.direction is by_slope.direction is Direction.DOWN
    assert (alarm.detected_step, by_slope.detected_step) == (12, 13)
    assert alarm.rule != by_slope.rule == "slope of a fall"


def test_a_rise_just_before_does_not_hide_a_fall():
    levels = np.concatenate([np.full(100, 1.0), np.full(6, 1.6), np.geomspace(1.6, 0.01, 60)])
    found = alarms(np.append(levels, np.full(80, 0.01)) * 10.0 ** noise(246, 0.003))
    assert [a.direction for a in found] == [Direction.UP, Direction.DOWN]


def test_a_rise_that_stays_is_over_soon_and_the_next_one_is_told():
    levels = 10.0 ** np.concatenate([np.zeros(100), np.full(150, 0.8), np.full(60, 1.6)])
    detector, seen = create("abrupt_change"), []
    for step, value in enumerate(levels * 10.0 ** noise(levels.size, 0.01)):
        alarm = detector.update(step, float(value))
        seen += [] if alarm is None else [alarm.onset_step]
        if step == 140:
            assert not detector.active
            again = create("abrupt_change")
            again.load_state_dict(detector.state_dict())
            assert not again.active
    assert seen == [pytest.approx(100, abs=1), pytest.approx(250, abs=1)]


def test_a_saved_state_is_small_and_goes_on_exactly():
    detector = create("abrupt_change")
    values = (2.0 + 0.1 * np.random.default_rng(0).standard_normal(9000)).tolist()
    for step, value in enumerate(values[:8000]):
        detector.update(step, value)
    saved = json.dumps(detector.state_dict())
    assert len(saved) < 30_000
    again = create("abrupt_change")
    again.load_state_dict(json.loads(saved))
    for step, value in enumerate(values[8000:], start=8000):
        assert detector.update(step, value) == again.update(step, value)
        assert detector.statistic == again.statistic


def test_a_divergence_over_decades_is_told_once():
    values = [*(0.15 + noise(60, 0.002)), *np.geomspace(0.3, 1e10, 30)]
    (alarm,) = alarms(values)
    assert (alarm.direction, alarm.onset_step) == (Direction.UP, pytest.approx(60, abs=1))
    assert alarm.kind in (AlarmKind.SHIFT, AlarmKind.INSTABILITY)


def test_changes_below_the_smallest_effect_do_not_count():
    values = 0.001 + 0.02 * STEP + noise(240, 0.0003)
    assert len(alarms(values)) == 1
    assert alarms(values, create("abrupt_change", min_effect=0.05)) == []


def test_fewer_false_alarms_ask_for_more():
    values = 85.0 + 8.0 * STEP + noise(240, 0.4)
    assert len(alarms(values)) == 1
    assert alarms(values, create("abrupt_change", false_alarms=1e-6)) == []


def test_a_collapse_soon_after_a_rise_is_told_though_the_rise_was_one_of_half_a_decade():
    rng = np.random.default_rng(0)
    levels = np.repeat([10.0, 100.0, 8.0], [60, 30, 30])
    detector = create("abrupt_change", certainty=2.0, falls=1.0)
    said = [detector.update(i, float(v)) for i, v in enumerate(levels + rng.normal(0, 0.3, 120))]
    assert [(a.onset_step, a.direction) for a in said if a] == [
        (60, Direction.UP), (90, Direction.DOWN),
    ]  # fmt: skip
