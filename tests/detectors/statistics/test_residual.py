"""What all detectors on detrended residuals have in common."""

import math

import numpy as np
import pytest

from phasewatch.detectors import AlarmKind, Direction, create
from phasewatch.detectors.statistics.residual import LONGEST, PATIENCE
from support.curves import autoregressive, feed, power_law, sigmoid_fall, spiky

pytestmark = pytest.mark.parametrize("name", ["bocpd", "cusum", "focus", "page_hinkley"])


@pytest.mark.parametrize("every", [1, 8])
def test_a_fall_gives_one_alarm_near_its_start(name, every):
    (alarm,) = feed(create(name), sigmoid_fall(1000, 0.05), every=every)
    assert alarm.kind is AlarmKind.SHIFT
    assert alarm.direction is Direction.DOWN
    assert 440 * every <= alarm.onset_step <= alarm.detected_step <= 510 * every
    assert alarm.score >= 1.0
    assert alarm.value_before == pytest.approx(2.0, rel=0.25)
    assert alarm.value_after < 0.75 * alarm.value_before


def test_a_fall_in_noise_is_found_once(name):
    noise = 10.0 ** autoregressive(1000, 0.3, 0.01, seed=2)
    (alarm,) = feed(create(name), sigmoid_fall(1000, 0.05) * noise)
    assert alarm.direction is Direction.DOWN
    assert 460 <= alarm.detected_step <= 520


def test_irregular_logging_does_no_harm(name):
    steps = np.unique(np.geomspace(10, 1e6, 500).astype(int))
    decay = 4.0 * (steps / 10.0) ** -0.2
    detector = create(name)
    assert not any(detector.update(int(t), float(y)) for t, y in zip(steps, decay, strict=True))


def test_two_falls_give_two_alarms(name):
    values = sigmoid_fall(1200, 0.03, middle=0.3) * sigmoid_fall(1200, 0.03, middle=0.7)
    assert [round(alarm.onset_step, -2) for alarm in feed(create(name), values)] == [300, 800]


def test_the_episode_ends_when_the_fall_is_over(name):
    detector = create(name)
    active = []
    for step, value in enumerate(sigmoid_fall(1000, 0.05)):
        detector.update(step, value)
        active.append(detector.active)
    inside = np.flatnonzero(active)
    assert inside.size == inside.max() - inside.min() + 1
    assert 515 <= inside.max() <= 600


def test_an_episode_ends_even_if_the_stream_never_calms_down(name):
    detector = create(name)
    feed(detector, [2.0] * 100)
    active = []
    for i in range(2 * LONGEST):
        size = 0.5 if i % 10 else 0.05
        detector.update(100 + i, size)
        active.append(detector.active)
    assert any(active)
    assert not all(active[LONGEST + 5 :])


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_a_spike_of_one_or_two_points_is_nothing(name, size, factor):
    values = 2.0 * 10.0 ** autoregressive(600, 0.0, 0.01, seed=4)
    values[400 : 400 + size] *= factor
    assert feed(create(name), values) == []


def test_a_longer_spike_is_an_instability_and_coming_back_is_part_of_it(name):
    (alarm,) = feed(create(name), spiky(900, period=500))
    assert alarm.kind is AlarmKind.INSTABILITY
    assert alarm.direction is Direction.UP


def test_a_rise_on_the_linear_scale_is_a_shift(name):
    values = autoregressive(400, 0.0, 0.01, seed=1)
    values[200:] += 1.0
    (alarm,) = feed(create(name), values)
    assert alarm.kind is AlarmKind.SHIFT
    assert alarm.direction is Direction.UP
    assert alarm.onset_step == pytest.approx(200, abs=5)
    assert alarm.value_after - alarm.value_before == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(
    "values",
    [
        power_law(3_000),
        power_law(3_000) * 10.0 ** autoregressive(3_000, 0.3, 0.03, seed=1),
        2.0 * 10.0 ** autoregressive(3_000, 0.6, 0.03, seed=1),
        2.0 * 10.0 ** autoregressive(3_000, 0.9, 0.03, seed=1),
        1.0 + np.arange(3_000) % 8 / 8.0,
        4.0 * np.exp(-np.arange(3_000) / 300.0) + 1e-6,
        np.zeros(500),
    ],
    ids=["power law", "noisy power law", "AR(0.6)", "AR(0.9)", "saw", "exponential", "zeros"],
)
def test_streams_without_a_change_are_quiet(name, values):
    assert feed(create(name), values) == []


def test_on_the_linear_scale_up_and_down_are_alike(name):
    values = autoregressive(600, 0.3, 0.01, seed=1)
    values[200:] += 1.0
    values[400:] -= 1.0
    there, back = (feed(create(name, scale="linear"), sign * values) for sign in (1.0, -1.0))
    assert [alarm.direction for alarm in there] == [Direction.UP, Direction.DOWN]
    assert [alarm.direction for alarm in back] == [Direction.DOWN, Direction.UP]
    assert [alarm.onset_step for alarm in there] == [alarm.onset_step for alarm in back]
    assert [alarm.score for alarm in there] == [alarm.score for alarm in back]


def test_a_fall_that_flattens_is_no_rise(name):
    values = 2.0 * 10.0 ** -np.minimum(np.arange(600) / 100.0, 3.0)
    assert feed(create(name), values) == []


def test_a_fall_below_the_gate_is_quiet(name):
    values = 2.0 * 10.0 ** autoregressive(600, 0.0, 0.002, seed=3)
    values[300:] *= 10.0**-0.12
    assert feed(create(name), values) == []
    assert len(feed(create(name, gate=0.05), values)) == 1


def test_evidence_without_an_effect_is_dropped(name):
    values = 2.0 * 10.0 ** autoregressive(600, 0.0, 0.002, seed=3)
    values[300:] *= 10.0**-0.12
    detector = create(name)
    strong = []
    for step, value in enumerate(values):
        assert detector.update(step, value) is None
        strong.append(detector.statistic >= detector.threshold)
    assert any(strong[300 : 300 + PATIENCE])
    assert not any(strong[300 + 2 * PATIENCE :])


def test_one_nan_does_not_silence_it(name):
    values = 2.0 * 10.0 ** autoregressive(400, 0.0, 0.01, seed=3)
    values[100] = math.nan
    values[200:] *= 0.1
    (alarm,) = feed(create(name), values)
    assert alarm.onset_step == pytest.approx(200, abs=3)


def test_a_gate_or_a_trend_out_of_range_is_refused(name):
    with pytest.raises(ValueError, match=r"gate is 0\.0, but must be above 0"):
        create(name, gate=0.0)
    with pytest.raises(ValueError, match="trend is 3, but must be at least 5"):
        create(name, trend=3)
    with pytest.raises(ValueError, match="scale is 'db'"):
        create(name, scale="db")
