"""The detector of logged streams: both ways, whatever the unit, the scale and the past."""

import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest

from phasewatch.detectors import Direction, create
from phasewatch.detectors.evaluation import simulated_runs
from phasewatch.detectors.online import local_change
from phasewatch.detectors.statistics import boosted, watched_level
from phasewatch.detectors.statistics.boosted import BoostedTrees
from phasewatch.detectors.statistics.local_features import NAMES, Past, least_errors, look


def alarms(values, detector=None):
    detector = detector or create("local_change")
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
    "a return that collapses": 870.0 - 869.0 * STEP,
}


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("seed", range(3))
def test_a_step_is_found_within_points_whatever_the_stream_is(name, seed):
    level = LEVELS[name]
    sigma = 0.04 * abs(level[-1] - level[0])
    (alarm,) = alarms(level + noise(240, sigma, seed))
    assert alarm.direction is (Direction.UP if level[-1] > level[0] else Direction.DOWN)
    assert abs(alarm.onset_step - 150) <= 2
    assert alarm.detected_step <= 156


def test_an_alarm_carries_interval_effect_probability_and_rule():
    (alarm,) = alarms(85.0 + 8.0 * STEP + noise(240, 0.4))
    first, last = alarm.onset_interval
    assert first - 1 <= 150 <= last + 1
    assert last <= alarm.detected_step
    assert alarm.effect == pytest.approx(8.0, abs=1.5)
    assert alarm.effect_sigma == pytest.approx(20.0, rel=0.6)
    assert 0.5 < alarm.probability < 1.0
    assert "points" in alarm.rule


@pytest.mark.parametrize("factor", [1e-6, 100.0, 1e9])
def test_the_unit_does_not_matter(factor):
    values = 85.0 + 8.0 * STEP + noise(240, 0.4)
    steps = [(a.onset_step, a.detected_step) for a in alarms(values)]
    assert [(a.onset_step, a.detected_step) for a in alarms(factor * values)] == steps


def test_a_wild_beginning_is_forgotten():
    wild = 10.0 ** np.random.default_rng(3).uniform(-2.0, 4.0, 300)
    calm = 2.0 * 0.1 ** np.where(np.arange(900) < 600, 0.0, 1.0) * 10.0 ** noise(900, 0.01)
    found = alarms([*wild, *calm])
    assert any(abs(a.onset_step - 900) <= 3 and a.direction is Direction.DOWN for a in found)


def test_a_turbulent_start_does_not_hide_a_spike_soon_after():
    spike = [4.6, 4.4, 4.5, 4.3, 4.4, 4.2]
    curve = np.concatenate([np.geomspace(11.0, 3.5, 12), np.full(26, 3.5), spike])
    curve = curve + noise(curve.size, 0.02)
    assert [(a.onset_step, a.direction) for a in alarms(curve)] == [(38, Direction.UP)]


@pytest.mark.parametrize("leap", [watched_level.LEAP, math.inf])
def test_a_value_outside_of_those_before_it_is_looked_at_while_forecasts_are_still_rough(
    leap, monkeypatch
):
    monkeypatch.setattr(watched_level, "LEAP", leap)
    level = watched_level.WatchedLevel(keep=64)
    turbulent, calm = [1.0, 100.0] * 10, [50.0, 50.1] * 14
    for step, value in enumerate(turbulent + calm):
        level.push(step, value)
    level.due = 0
    assert level.push(48, 50.4) is (leap < 1.0)


def test_small_values_after_large_ones_are_forecast_in_log10():
    level = watched_level.WatchedLevel(keep=64)
    for step in range(60):
        level.push(step, 10.0 ** (3.0 - 0.1 * step) * (1.0 + 0.01 * (-1) ** step))
    level.due = 0
    assert level.push(60, 10.0**-2.0)  # tenfold where it was, nothing against the beginning
    assert level.linear.recent[-1][0] < watched_level.SURPRISE < level.log.recent[-1][0]


FRESH = {"past_of": lambda in_log: Past()}


class Never:
    """A model that takes nothing for a change."""

    def log_odds(self, features):
        return np.full(len(features), -9.0)


@pytest.mark.parametrize(("size", "found"), [(0.3, 1), (0.02, 0)])
def test_a_clear_look_counts_whatever_the_trees_say(size, found):
    detector = create("local_change")
    detector._model = Never()
    said = alarms(1.0 + size * STEP + noise(240, 0.01), detector)
    assert [(a.direction, abs(a.onset_step - 150) <= 2) for a in said] == [
        (Direction.UP, True)
    ] * found
    assert all(0.9 < alarm.probability < 0.95 for alarm in said)


class Single:
    """A model that is as sure as can be of single points, and of nothing else."""

    def log_odds(self, features):
        alone = (features[:, NAMES.index("m")] == 1) & (features[:, NAMES.index("level")] == 0)
        return np.where(alone, 5.0, -9.0)


@pytest.mark.parametrize(("size", "found"), [(0.1, 1), (-0.1, 0)])
def test_one_bad_value_must_be_more_likely_a_change_than_one_good(size, found):
    detector = create("local_change")
    detector._model = Single()
    values = 0.8 + noise(200, 0.005)
    values[120] += size
    assert len(alarms(values, detector)) == found


def test_one_wild_value_is_no_clear_look():
    detector = create("local_change")
    detector._model = Never()
    values = 1.0 + noise(240, 0.01)
    values[150] += 5.0
    assert alarms(values, detector) == []


def test_an_early_fall_does_not_hide_a_later_one():
    levels = np.repeat([3.0, 0.3, 0.2], 150) * 10.0 ** noise(450, 0.005)
    assert [a.onset_step for a in alarms(levels)] == pytest.approx([150, 300], abs=1)


def test_a_divergence_in_the_last_points_of_a_run_is_told():
    values = [*(0.15 + noise(60, 0.01)), 2.0, 1228.0, 1e10]
    (alarm,) = alarms(values)
    assert alarm.direction is Direction.UP
    assert 59 <= alarm.onset_step <= 61


def test_noise_and_ordinary_decay_are_quiet():
    t = np.arange(1500)
    decay = 4.0 * (1.0 + t / 30.0) ** -0.4
    false = 0
    for seed in range(14):
        false += len(alarms(5.0 + noise(1500, 1.0, seed)))
        assert alarms(decay * 10.0 ** noise(1500, 0.01, seed)) == []
    assert false <= 1  # of 21,000 points


def test_what_was_found_in_a_prefix_is_found_in_the_whole():
    curve = simulated_runs.stream(7).values
    whole = create("local_change")
    said = [whole.update(step, value) for step, value in enumerate(curve)]
    short = create("local_change")
    half = len(curve) // 2
    assert [short.update(i, value) for i, value in enumerate(curve[:half])] == said[:half]


def test_a_stricter_run_says_less():
    streams = [curve.values for curve in simulated_runs.streams(12, 3)]
    usual, strict = (
        sum(len(alarms(v, create("local_change", strictness=s))) for v in streams)
        for s in (0.0, 3.0)
    )
    assert strict < usual


@pytest.mark.parametrize("seed", range(4))
def test_looks_that_are_cut_short_change_no_alarm(seed):
    whole, cut = create("local_change"), create("local_change")
    whole._whole = True
    for step, value in enumerate(0.3 * STEP + noise(240, 0.05, seed)):
        assert whole.update(step, value) == cut.update(step, value)
        assert whole.statistic == cut.statistic


def test_the_state_of_a_long_stream_stays_small():
    sizes = []
    detector = create("local_change")
    for step, value in enumerate(2.0 + noise(8000, 0.1)):
        detector.update(step, float(value))
        if step in (3999, 7999):
            sizes.append(len(pickle.dumps(detector.state_dict())))
    assert sizes[1] < 1.25 * sizes[0]


def test_the_shipped_model_knows_the_features_and_is_small():
    path = Path(boosted.__file__).with_name(local_change.MODEL)
    assert path.stat().st_size < 16_000
    content = json.loads(path.read_text())
    assert max(f for tree in content["features"] for f in tree) < len(NAMES)


def test_trees_add_the_leaf_that_the_answers_lead_to():
    tree = BoostedTrees(
        [[0, 1, 1, 0, 0, 0, 0]],
        [[0.0, 0.5, 1.5, 1e9, 1e9, 1e9, 1e9]],
        [[1.0, 9.0, 2.0, 9.0, 3.0, 9.0, 4.0, 9.0]],
        0.25,
    )
    features = np.array([[-1.0, 0.0], [-1.0, 1.0], [1.0, 1.0], [1.0, 2.0]])
    assert tree.log_odds(features).tolist() == [1.25, 2.25, 3.25, 4.25]


def test_features_see_a_step_in_noise_units_and_on_the_scale_that_fits():
    values = 10.0 + noise(60, 0.1)
    values[-3:] += 2.0
    looks = look(values, np.zeros(0), level=0, seen=60, since=60, **FRESH)
    assert not looks.log
    row = looks.sizes.index(3)
    assert looks.change[row] == pytest.approx(2.0, abs=0.2)
    assert looks.sigma[row] == pytest.approx(0.1, rel=0.7)
    loss = look(np.geomspace(1.0, 1e-3, 60), np.zeros(0), level=0, seen=60, since=60, **FRESH)
    assert loss.log
    assert math.isclose(loss.after[0], 1e-3, rel_tol=0.2)
    assert np.isfinite(loss.features).all()


@pytest.mark.parametrize(("errors", "counts"), [(0.8, False), (1.2, True)])
def test_a_look_is_given_up_where_no_change_has_the_standard_errors_it_needs(errors, counts):
    def seen(step):
        values = np.concatenate([np.tile([1.0, 1.02, 0.98, 1.0], 12), np.full(2, 1.0 + step)])
        return values, look(values, np.array([]), level=0, seen=50, since=50, **FRESH)

    _, one = seen(1.0)  # with so large a step the noise before it is all that counts
    sized = errors * least_errors(one.old) / 10.0 ** one.features[1, NAMES.index("z_mean")]
    values, _ = seen(sized)
    told = {"level": 0, "seen": 50, "since": 50, **FRESH}
    assert (look(values, np.array([]), **told, whole=False) is not None) is counts


def test_simulated_runs_are_the_same_for_a_seed_and_know_their_transitions():
    one, two = simulated_runs.stream(11), simulated_runs.stream(11)
    assert one == two
    assert simulated_runs.stream(11, events=False).transitions == ()
    made = list(simulated_runs.streams(60, 1))
    assert sum(bool(curve.transitions) for curve in made) >= 15
    for curve in made:
        assert 30 <= len(curve.values) <= 3000
        assert np.isfinite(curve.values).all()
        assert all(t.end < len(curve.values) for t in curve.transitions)


def rare(rate, num_points, seed):
    """Rewards of 100 to 300 in a share of the episodes, and none in the others."""
    rng = np.random.default_rng(seed)
    return (rng.random(num_points) < rate) * 100.0 * rng.integers(1, 4, num_points)


@pytest.mark.parametrize("rate", [0.02, 0.05, 0.2])
def test_rewards_that_are_rare_are_no_changes_one_by_one(rate):
    assert sum(len(alarms(rare(rate, 1000, seed))) for seed in range(8)) <= 8  # several each before


def test_the_first_of_many_rewards_is_a_change():
    curve = np.concatenate([np.zeros(80), rare(0.9, 40, seed=0)])
    assert [(80 <= a.onset_step <= 82, a.direction) for a in alarms(curve)] == [
        (True, Direction.UP)
    ]


def test_a_step_of_a_stream_without_noise_is_told_at_its_second_value():
    curve = np.concatenate([np.zeros(40), np.ones(10)])
    assert [(a.onset_step, a.detected_step) for a in alarms(curve)] == [(40, 41)]


def test_a_score_that_begins_near_zero_is_also_watched_as_it_is():
    curve = [0.005, 0.008, 0.008, 0.006, 0.003, 0.08, 0.09, 0.94, 0.96, 0.97, 0.99, 0.99]
    (alarm,) = alarms(curve)
    assert (alarm.onset_step, alarm.direction) == (7, Direction.UP)
    assert "linear" in alarm.rule


def test_in_log10_it_would_be_less_than_what_was_before():
    score = [0.005, 0.008, 0.008, 0.006, 0.003, 0.08, 0.09, 0.94]
    settings = {"level": 0, "seen": 8, "since": 8, **FRESH}
    in_log = look(np.array(score), [], **settings)
    as_it_is = look(np.array(score), [], as_they_are=True, **settings)
    assert (in_log.log, as_it_is.log) == (True, False)
    z = NAMES.index("over_jump")
    assert in_log.features[0, z] < 0.0 < as_it_is.features[0, z]


def test_values_above_zero_are_no_rounding_however_small():
    (alarm,) = alarms(1e-13 * (1.0 + 0.5 * STEP + noise(240, 0.01)))
    assert abs(alarm.onset_step - 150) <= 2


def test_rounding_of_sums_that_should_be_zero_is_no_change():
    assert alarms(np.where(np.arange(80) < 50, -2.8e-15, 1.3e-14)) == []


class Scales:
    """A model whose log-odds are two numbers: for values in log10, and as they are."""

    def __init__(self, in_log, as_they_are):
        self.answers = np.array([as_they_are, in_log])

    def log_odds(self, features):
        return self.answers[(features[:, NAMES.index("log")] > 0.0).astype(int)]


@pytest.mark.parametrize(
    ("in_log", "as_they_are", "scale", "log_odds"),
    [(4.0, 5.0, "log10", 4.0), (4.0, 7.0, "linear", 5.0), (-9.0, 5.0, "linear", 3.0)],
)
def test_of_two_scales_the_one_that_fits_counts_unless_the_other_is_much_surer(
    in_log, as_they_are, scale, log_odds
):
    detector = create("local_change", certainty=2.0)
    detector._model = Scales(in_log, as_they_are)
    rng = np.random.default_rng(0)
    curve = np.concatenate([0.1 * 10.0 ** rng.uniform(0.0, 0.5, 40), 20.0 + rng.random(8)])
    (alarm,) = alarms(curve, detector)
    assert alarm.rule.endswith(scale)
    assert alarm.probability == pytest.approx(1.0 / (1.0 + math.exp(-log_odds)))


def test_of_values_that_mostly_repeat_two_that_are_few_among_the_new_are_none():
    values = [0.0] * 40 + [0.0, 0.0, 0.0, 0.0, 100.0, 200.0]
    looks = look(np.array(values), [], level=0, seen=46, since=46, **FRESH)
    settled = dict(zip(looks.sizes, local_change._settled(values, looks), strict=True))
    assert {m: bool(settled[m]) for m in (1, 2, 3, 4, 6)} == {
        1: False, 2: True, 3: True, 4: False, 6: False,
    }  # fmt: skip
