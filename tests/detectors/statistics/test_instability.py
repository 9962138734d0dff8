import json

import numpy as np
import pytest

from phasewatch.detectors import AlarmKind, SlopeShift
from phasewatch.detectors.statistics.instability import Instability
from support.curves import autoregressive, feed, sigmoid_fall
from support.slingshot import GOLDEN

GATE = 0.1


def follow(instability, values, start=101):
    """Feed levels; the number of points after which it was over."""
    for i, value in enumerate(values):
        instability.follow(start + i, value, value, GATE)
        if not instability.on:
            return i + 1
    return None


@pytest.fixture
def up():
    """An instability that rose from 0 to 2 at point 100; 24 quiet points end it."""
    instability = Instability(24)
    assert instability.begin(100, 0.0, 2.0)
    return instability


def test_it_ends_when_the_stream_came_back_and_rests(up):
    assert follow(up, [1.5, 1.0, 0.5, 0.1] + [0.0] * 100) == pytest.approx(4 + 24, abs=2)


def test_it_goes_on_while_the_stream_comes_down_slowly(up):
    assert follow(up, np.linspace(2.0, 0.2, 300)) is None


def test_up_there_it_waits_four_times_as_long(up):
    assert follow(up, [2.0] * 300) == 96


def test_a_new_high_starts_the_wait_again(up):
    assert follow(up, [2.0] * 90 + [2.1] + [2.0] * 300) > 90 + 96


def test_it_is_over_where_the_stream_falls_through_its_base(up):
    assert follow(up, [1.0, 0.0, -0.05, -0.2]) == 4


def test_one_that_follows_soon_is_the_same(up):
    end = 100 + follow(up, [0.0] * 100)
    assert not up.begin(end + 300, 0.0, 2.0)
    assert up.on
    again = end + 300 + follow(up, [0.0] * 400, start=end + 301)
    assert up.begin(again + 400, 0.0, 2.0)


def test_its_state_survives_json(up):
    follow(up, [1.5, 1.0])
    again = Instability(24)
    again.load_state_dict(json.loads(json.dumps(up.state_dict())))
    assert again.state_dict() == up.state_dict()
    assert follow(again, [0.5] * 400) == follow(up, [0.5] * 400)


# In the detector.


def slingshots(seed, length=3000, noise=0.01):
    """log10 of a loss that shoots up by 1 to 4 dex now and then and comes back in 10 to 200 points.

    The way back is exponential, straight, or stays up before it falls.
    """
    rng = np.random.default_rng(seed)
    log_loss = -4.0 + noise * rng.standard_normal(length)
    start = int(rng.uniform(150, 600))
    while start < length - 10:
        height, rise, back = rng.uniform(1, 4), rng.integers(1, 6), rng.uniform(10, 200)
        t = np.arange(length - start, dtype=float)
        after = np.maximum(t - rise + 1, 0.0)
        ways = [
            np.exp(-4.0 * after / back),
            np.maximum(1.0 - after / back, 0.0),
            0.5 - 0.5 * np.tanh((after - back / 2) * 5.0 / back),
        ]
        log_loss[start:] += height * np.minimum((t + 1) / rise, 1.0) * ways[rng.integers(3)]
        start += int(back + rng.uniform(100, 800))
    return log_loss


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_slingshots_are_told_a_few_times_and_never_as_a_shift(noise, every):
    for seed in range(6):
        alarms = feed(SlopeShift(), 10.0 ** slingshots(seed, noise=noise)[::every], every=every)
        assert {alarm.kind for alarm in alarms} <= {AlarmKind.INSTABILITY}
        assert len(alarms) <= 3
        assert len(alarms) >= (every == 1)


@pytest.mark.parametrize("every", [1, 2, 4])
def test_recorded_slingshots_are_instabilities_and_the_way_back_is_no_shift(every):
    losses = np.load(GOLDEN)["loss"]
    alarms = feed(SlopeShift(), losses[200::every], every=every)
    assert {alarm.kind for alarm in alarms} == {AlarmKind.INSTABILITY}
    if every == 1:
        assert [200 + alarm.onset_step for alarm in alarms] == [
            pytest.approx(645, abs=10),
            pytest.approx(10_045, abs=10),
        ]


def test_a_transition_on_the_way_down_from_a_slingshot_is_found_below_where_it_began():
    shot = np.zeros(1200)
    shot[600:] = 2.0 * np.exp(-np.arange(600) / 20.0)
    fall = np.log10(sigmoid_fall(1200, 0.04, dex=2.0, middle=0.56) / 2.0)
    noise = autoregressive(1200, 0.0, 0.01, seed=1)
    alarms = feed(SlopeShift(), 10.0 ** (shot + fall + noise))
    assert [alarm.kind for alarm in alarms] == [AlarmKind.INSTABILITY, AlarmKind.SHIFT]
    assert alarms[1].value_after < 1.0
