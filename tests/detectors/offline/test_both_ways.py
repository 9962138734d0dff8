"""Changes that a history shows from both sides."""

import math

import numpy as np
import pytest

from phasewatch.detectors import Direction, create
from phasewatch.detectors.offline import both_ways
from phasewatch.detectors.offline.both_ways import seen_both_ways


def seen(values, **settings):
    settings.setdefault("is_loss", False)
    return seen_both_ways(range(len(values)), [float(v) for v in values], **settings)


def noise(count, sigma, seed=0):
    return sigma * np.random.default_rng(seed).standard_normal(count)


def calmer(seed):
    """A score that becomes better and calmer: 2.5 noise units of what was, 20 of what follows."""
    return np.concatenate([82.0 + noise(60, 3.0, seed), 90.0 + noise(80, 0.4, seed + 100)])


@pytest.mark.parametrize("seed", range(4))
def test_a_change_that_ends_the_noise_is_seen_though_it_is_faint_when_it_comes(seed):
    values = calmer(seed)
    (change,) = seen(values)
    assert change.direction is Direction.UP
    assert abs(change.onset_step - 60) <= 3
    assert change.onset_step <= change.end_step <= 64


def test_among_live_rules_it_is_the_calm_after_the_change_that_tells():
    missed = 0
    for seed in range(4):
        detector = create("local_change")
        said = [detector.update(step, value) for step, value in enumerate(calmer(seed))]
        missed += not any(said)
    assert missed


@pytest.mark.parametrize("is_loss", [True, False])
@pytest.mark.parametrize(
    "course",
    [
        lambda t: 4.0 * (1.0 + t / 30.0) ** -0.4,
        lambda t: 0.2 + 3.0 * np.exp(-t / 40.0),
        lambda t: 0.2 + 3.0 * np.exp(-t / 300.0),
        lambda t: 0.9 - 0.8 * np.exp(-t / 60.0),
        lambda t: np.full(t.shape, 2.0),
    ],
)
def test_decays_and_plateaus_show_nothing(course, is_loss):
    values = course(np.arange(1000.0)) * (1.0 + noise(1000, 0.02))
    assert seen(values, is_loss=is_loss) == []


def test_falls_of_losses_need_more(monkeypatch):
    values = np.concatenate([3.0 + noise(80, 0.2), 2.2 + noise(80, 0.03)])
    assert [c.direction for c in seen(values)] == [Direction.DOWN]
    monkeypatch.setattr(both_ways, "FALLS", 99.0)
    assert seen(values, is_loss=True) == []
    assert [c.direction for c in seen(-values + 6.0, is_loss=True)] == [Direction.UP]


def test_changes_below_the_smallest_that_counts_are_left_out():
    assert seen(calmer(0), min_effect=5.0)
    assert seen(calmer(0), min_effect=12.0) == []


def test_a_long_history_is_read_in_means():
    values = np.repeat([1.0, 2.0], 40_000) + noise(80_000, 0.3)
    (change,) = seen(values)
    assert abs(change.onset_step - 40_000) <= 200


def test_a_change_elsewhere_does_not_speak_for_one_that_is_plain_from_behind_alone():
    t = np.arange(400.0)
    decay = np.where(t < 250, 0.2, 0.1) + 3.0 * np.exp(-t / 25.0)  # and one fall in its calm
    (change,) = seen(decay * (1.0 + noise(400, 0.02)))
    assert abs(change.onset_step - 250) <= 2


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("repeats", [1, 5])
def test_forwards_only_that_is_left_out_which_could_not_agree(seed, repeats):
    values = np.repeat(calmer(seed), repeats).tolist()
    values = (np.array(values) + noise(len(values), 0.1, seed + 200)).tolist()
    places = both_ways._seen_backwards(values, 0.0)
    assert places

    def said(given):
        witness = both_ways._Witness(given, 0.0)
        for index, value in enumerate(values):
            witness.update(index, value)
        return witness.said

    def near(looks):
        return [one for one in looks if any(abs(one[0] - p.after) <= p.near for p in places)]

    everywhere = said([both_ways._Place(0, 0, True, math.inf, 0.0)])
    some = said(places)
    assert near(some) == near(everywhere) != []
    assert len(some) < len(everywhere)
