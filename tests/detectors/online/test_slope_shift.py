import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phasewatch.detectors import AlarmKind, Direction, SlopeShift, default
from support.curves import (
    autoregressive,
    feed,
    grokking_val_loss,
    memorising_train_loss,
    power_law,
    sigmoid_fall,
    spiky,
    warm_up_start,
)


def fed(values, **parameters):
    return feed(SlopeShift(**parameters), values)


# What must be found.


def test_generalisation_in_a_validation_loss_is_found_once_and_the_flat_tail_is_quiet():
    steps, losses = grokking_val_loss()
    detector = default("loss")
    found = [detector.update(int(s), float(v)) for s, v in zip(steps, losses, strict=True)]
    (alarm,) = [alarm for alarm in found if alarm]
    assert alarm.kind is AlarmKind.SHIFT
    assert alarm.direction is Direction.DOWN
    assert 1250 <= alarm.onset_step <= alarm.detected_step <= 1500
    at_onset = np.interp(alarm.onset_step, steps, losses)
    assert alarm.value_before == pytest.approx(at_onset, rel=0.2)
    assert alarm.value_after < alarm.value_before
    assert not detector.active


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.03, 0.1])
def test_a_fall_of_a_dex_is_found_under_noise(noise):
    values = sigmoid_fall(1000, 0.08) * 10.0 ** autoregressive(1000, 0.3, noise, seed=8)
    (alarm,) = fed(values)
    assert 400 <= alarm.onset_step <= 560
    assert 440 <= alarm.detected_step <= 600


@pytest.mark.parametrize("every", [1, 4, 16])
def test_the_same_run_gives_the_same_transition_however_often_it_is_logged(every):
    steps = np.arange(0, 20_000, every)
    values = sigmoid_fall(20_000, 0.06)[::every]
    values = values * 10.0 ** autoregressive(steps.size, 0.0, 0.02, seed=every)
    (alarm,) = feed(SlopeShift(), values, every=every)
    assert 8_500 <= alarm.onset_step <= 10_000
    assert 9_250 <= alarm.detected_step <= 10_750


def test_a_fall_over_thousands_of_points_is_found():
    values = sigmoid_fall(30_000, 0.08) * 10.0 ** autoregressive(30_000, 0.5, 0.05, seed=2)
    (alarm,) = fed(values)
    assert 12_000 <= alarm.onset_step <= 15_000
    assert alarm.run_length > 200


def test_two_transitions_give_two_alarms():
    values = sigmoid_fall(1200, 0.05, middle=0.3) * sigmoid_fall(1200, 0.05, middle=0.7)
    assert [round(alarm.onset_step, -2) for alarm in fed(values)] == [300, 800]


def test_the_episode_lasts_as_long_as_the_fall():
    detector = SlopeShift()
    active = []
    for step, value in enumerate(sigmoid_fall(1000, 0.1)):
        detector.update(step, value)
        active.append(detector.active)
    assert np.flatnonzero(active).min() == pytest.approx(460, abs=30)
    assert np.flatnonzero(active).max() == pytest.approx(560, abs=30)
    assert np.flatnonzero(np.diff(np.array(active, dtype=int))).size == 2


def test_a_fall_out_of_a_fall_of_the_old_kind_needs_a_steeper_slope():
    decay = -0.01 * np.arange(400.0)
    steeper = np.where(np.arange(400) > 200, -0.01 * (np.arange(400) - 200), 0.0)
    assert fed(10.0 ** (decay + steeper)) == []
    assert len(fed(10.0 ** (decay + 4.0 * steeper))) == 1


# What must stay quiet.


@pytest.mark.parametrize("exponent", [0.1, 0.4, 1.0])
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_power_law_decay_is_no_transition(exponent, noise):
    values = power_law(3000, exponent=exponent)
    assert fed(values * 10.0 ** autoregressive(3000, 0.0, noise, seed=1)) == []


def test_a_train_loss_that_falls_from_the_start_and_flattens_at_1e_6_is_quiet():
    assert fed(memorising_train_loss()) == []


@pytest.mark.parametrize("warm_up", [0, 20, 100, 500])
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_the_start_of_a_run_is_no_transition(warm_up, noise):
    values = warm_up_start(1500, warm_up)
    assert fed(values * 10.0 ** autoregressive(1500, 0.0, noise, seed=warm_up)) == []


@pytest.mark.parametrize("phi", [0.0, 0.6, 0.9])
@pytest.mark.parametrize("noise", [0.03, 0.1])
def test_autocorrelated_noise_is_no_transition(phi, noise):
    assert fed(2.0 * 10.0 ** autoregressive(8_000, phi, noise, seed=4)) == []


def test_heavy_tails_are_no_transition():
    noise = np.random.default_rng(0).standard_t(3, 8_000)
    assert fed(2.0 * 10.0 ** (0.05 * noise)) == []


def test_minibatch_noise_of_a_small_loss_is_no_transition():
    rng = np.random.default_rng(3)
    losses = (0.02 + np.exp(-np.arange(6_000) / 1000.0)) * rng.gamma(4.0, 0.25, 6_000)
    assert fed(losses) == []


def test_a_flat_tail_with_rounding_noise_is_quiet():
    rounding = 2e-8 * np.random.default_rng(1).standard_normal(8_000)
    assert fed(np.maximum(1e-6 * np.exp(-np.arange(8_000) / 5e3) + rounding, 0.0)) == []


def test_a_loss_that_is_exactly_zero_is_quiet():
    assert fed([0.0] * 500) == []


def test_a_fall_below_the_gate_is_quiet():
    assert fed(sigmoid_fall(1000, 0.05, dex=0.08)) == []
    assert len(fed(sigmoid_fall(1000, 0.05, dex=0.3))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["white", "AR(0.6)", "AR(0.9)", "t3", "bursts", "minibatches"])
def test_noise_of_any_kind_gives_less_than_one_false_alarm_in_20_000_points(kind):
    alarms = points = 0
    for seed in range(16):
        length = (500, 6_000)[seed % 2]
        rng = np.random.default_rng([77, seed])
        bursts = np.where((np.arange(length) // 100) % 2, 0.1, 0.02)
        log_loss = {
            "white": autoregressive(length, 0.0, 0.1, seed),
            "AR(0.6)": autoregressive(length, 0.6, 0.1, seed),
            "AR(0.9)": autoregressive(length, 0.9, 0.1, seed),
            "t3": 0.05 * rng.standard_t(3, length),
            "bursts": bursts * rng.standard_normal(length),
            "minibatches": np.log10(rng.gamma(4.0, 0.25, length)),
        }[kind]
        alarms += len(fed(2.0 * 10.0**log_loss))
        points += length
    assert points > 50_000
    assert alarms <= points / 20_000


def cosine(t):
    return 0.5 + 0.5 * np.cos(np.pi * t)


@pytest.mark.parametrize(
    "rate",
    [cosine, lambda t: cosine(5.0 * t % 1.0), lambda t: np.where(t < 0.5, 1.0, 0.1)],
    ids=["cosine", "warm restarts", "steps"],
)
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_a_learning_rate_schedule_that_moves_the_loss_a_little_is_no_transition(rate, noise):
    t = np.linspace(0.0, 1.0, 4_000)
    losses = 1.0 + 0.15 * rate(t) + 0.5 * (1.0 + 50.0 * t) ** -0.5
    assert fed(losses * 10.0 ** (noise * np.random.default_rng(2).standard_normal(4_000))) == []


def test_saw_teeth_of_gradient_accumulation_are_no_transition():
    t = np.arange(4_000)
    assert fed(2.0 + 0.2 * (t % 8) / 8.0 + 2.0 * np.exp(-t / 400.0)) == []


# Logging densities and short streams.


@pytest.mark.parametrize("points", [320, 160, 80, 40, "150 on a log scale"])
def test_the_same_fall_is_found_at_every_logging_density(points):
    losses = power_law(8_000) * sigmoid_fall(8_000, 0.08, dex=1.5)
    if isinstance(points, int):
        steps = np.arange(0, 8_000, 8_000 // points)
    else:
        steps = np.unique(np.round(np.geomspace(1, 8_000, 150)).astype(int)) - 1
    detector = SlopeShift()
    found = [detector.update(int(step), float(losses[step])) for step in steps]
    (alarm,) = [alarm for alarm in found if alarm]
    assert 3_200 <= alarm.onset_step <= 4_200
    assert 3_600 <= alarm.detected_step <= 4_600


def epochs(length, seed, dex):
    """A validation loss per epoch: it decays, and may fall by so many dex."""
    rng = np.random.default_rng([length, seed])
    t = np.arange(length)
    decay = -rng.uniform(0.0, 0.6) * np.log10(1.0 + t / rng.uniform(0.5, 5.0))
    middle, width = rng.uniform(0.45, 0.8) * length, rng.choice([0.3, 0.05, 0.1]) * length**0.9
    fall = -dex / (1.0 + np.exp(-np.clip(4.0 * (t - middle) / width, -50.0, 50.0)))
    phi, scale = rng.choice([0.0, 0.5]), rng.choice([0.0, 0.01, 0.03])
    return 2.0 * 10.0 ** (decay + fall + autoregressive(length, phi, scale, seed)), middle


@pytest.mark.parametrize("length", [20, 30, 60])
def test_falls_in_short_streams_are_found(length):
    found = 0
    for seed in range(60):
        losses, middle = epochs(length, seed, dex=(0.3, 0.5, 1.0)[seed % 3])
        near = [a for a in fed(losses) if abs(a.detected_step - middle) <= max(0.2 * length, 4)]
        found += bool(near)
    assert found >= 0.8 * 60


@pytest.mark.parametrize("length", [15, 20, 30, 60])
def test_short_streams_without_a_fall_are_quiet(length):
    alarms = sum(len(fed(epochs(length, seed, dex=0.0)[0])) for seed in range(60))
    assert alarms <= 0.1 * 60


def test_it_says_when_there_are_too_few_points():
    detector = SlopeShift()
    assert detector.min_points == 9
    states = []
    for step, value in enumerate([2.0] * 4 + [float("nan")] + [2.0] * 6):
        detector.update(step, value)
        states.append(detector.ready)
    assert states == [False] * 9 + [True] * 2
    detector.reset()
    assert not detector.ready


# Instability.


def test_a_stream_that_spikes_for_ever_is_told_about_a_few_times():
    alarms = fed(spiky(8_000, period=100))
    assert {alarm.kind for alarm in alarms} == {AlarmKind.INSTABILITY}
    assert 1 <= len(alarms) <= 4
    assert alarms[0].direction is Direction.UP
    assert alarms[0].onset_step == pytest.approx(100, abs=10)


def test_coming_back_from_a_spike_is_no_transition():
    (alarm,) = fed(spiky(900, period=500))
    assert alarm.kind is AlarmKind.INSTABILITY


def test_an_instability_ends_when_the_stream_is_quiet_again():
    detector = SlopeShift()
    feed(detector, spiky(520, period=500))
    assert detector.active
    feed_on = spiky(200, period=500)
    for i, value in enumerate(feed_on):
        detector.update(1000 + i, value)
    assert not detector.active


def test_a_divergence_is_one_instability():
    rise = np.clip((np.arange(3000) - 1000) * 0.02, 0.0, 3.0)
    (alarm,) = fed(2.0 * 10.0 ** (rise + autoregressive(3000, 0.0, 0.02, seed=1)))
    assert alarm.kind is AlarmKind.INSTABILITY
    assert alarm.value_after > alarm.value_before


def test_a_single_odd_point_is_no_instability():
    values = 2.0 * 10.0 ** autoregressive(1000, 0.0, 0.02, seed=1)
    values[500] *= 10.0
    assert fed(values) == []


def test_a_transition_after_a_spike_is_still_found():
    values = spiky(1500, period=1000)[:500]
    spike = spiky(900, period=300)[:580]
    fall = 1e-6 * 10.0 ** (autoregressive(500, 0.0, 0.01, seed=2)) * sigmoid_fall(500, 0.05) / 2.0
    alarms = fed(np.concatenate([values, spike, fall]))
    assert [alarm.kind for alarm in alarms] == [AlarmKind.INSTABILITY, AlarmKind.SHIFT]


# Scales and parameters.


def test_a_stream_that_turns_negative_is_watched_on_the_linear_scale():
    rng = np.random.default_rng(0)
    levels = np.where(np.arange(1600) < 800, -100.0, -300.0)
    detector = SlopeShift()
    (alarm,) = feed(detector, levels + 5.0 * rng.standard_normal(1600))
    assert alarm.onset_step == pytest.approx(800, abs=10)
    assert alarm.value_before == pytest.approx(-100.0, abs=20.0)


def test_on_the_log_scale_negative_values_count_as_zero():
    detector = SlopeShift(scale="log")
    assert feed(detector, [-1.0] * 300) == []
    linear = SlopeShift(scale="linear")
    assert feed(linear, sigmoid_fall(600, 0.05)) != []


@settings(max_examples=8, deadline=None)
@given(factor=st.floats(1e-3, 1e3))
def test_on_the_log_scale_the_unit_of_the_loss_does_not_matter(factor):
    values = sigmoid_fall(400, 0.08)
    (mine,) = fed(factor * values, floor=1e-30)
    (reference,) = fed(values, floor=1e-30)
    assert (mine.onset_step, mine.detected_step) == (reference.onset_step, reference.detected_step)
    assert mine.value_before == pytest.approx(factor * reference.value_before)


@settings(max_examples=8, deadline=None)
@given(sign=st.sampled_from([-1, 1]), factor=st.sampled_from([2.0**k for k in range(-8, 9)]))
def test_on_the_linear_scale_neither_unit_nor_sign_of_the_level_matters(sign, factor):
    values = sigmoid_fall(400, 0.08) - (2.2 if sign < 0 else 0.0)
    (mine,) = fed(factor * values, scale="linear")
    (reference,) = fed(values, scale="linear")
    assert mine.detected_step == reference.detected_step


def test_the_statistic_passes_the_threshold_at_the_alarm_and_not_before():
    detector = SlopeShift()
    assert detector.statistic == 0.0
    for step, value in enumerate(power_law(1000)):
        detector.update(step, value)
        assert detector.statistic < detector.threshold


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"gate": 0.0}, r"gate is 0\.0, but must be above 0"),
        ({"ratio": 1.0}, r"ratio is 1\.0, but must be above 1"),
        ({"false_alarms": 0.0}, r"false_alarms is 0\.0, but must be above 0"),
        ({"share": 1.0}, r"share is 1\.0, but must be above 0 and below 1"),
        ({"levels": 0}, r"levels is 0, but must be at least 1"),
        ({"scale": "db"}, r"scale is 'db', but must be 'auto', 'log' or 'linear'"),
    ],
)
def test_a_parameter_out_of_range_is_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        SlopeShift(**parameters)


def test_the_levels_bound_what_is_held():
    detector = SlopeShift(levels=2)
    feed(detector, power_law(3000))
    assert len(detector.state_dict()["state"]["levels"]) == 3


# Long, calm streams.


def long_stream(seed=0, length=8000):
    random = np.random.default_rng(seed)
    decay = 2.0 * (1.0 + np.arange(length) / 50.0) ** -0.3
    return decay * 10.0 ** (0.02 * random.standard_normal(length))


def test_a_spike_of_a_few_points_in_a_long_stream_is_still_an_instability():
    values = long_stream()
    values[7000:7030] *= 10.0
    ((_, alarm),) = [(i, a) for i, a in enumerate(fed_all(values)) if a]
    assert alarm.kind is AlarmKind.INSTABILITY
    assert 7000 <= alarm.detected_step <= 7010


def test_a_sudden_fall_in_a_long_stream_is_still_found_within_a_few_points():
    values = long_stream()
    values[7000:] *= 0.5
    ((_, alarm),) = [(i, a) for i, a in enumerate(fed_all(values)) if a]
    assert alarm.kind is AlarmKind.SHIFT
    assert 6980 <= alarm.onset_step <= 7000 <= alarm.detected_step <= 7020


def fed_all(values):
    detector = SlopeShift()
    return [detector.update(step, float(value)) for step, value in enumerate(values)]
