"""Fewer points for detection: which are kept, whatever the cuts, and when it begins and ends."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest

from phasewatch.monitor.core.columns import Column
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.meaning import THINNING
from phasewatch.monitor.transitions.thinning import (
    ALLOWANCE_SECONDS,
    LEADING,
    RECOVERY_SECONDS,
    Pace,
    Thinner,
    thinned,
    width,
)

FILLERS = [f"first{i}" for i in range(LEADING)]


def column(steps, values) -> Column:
    steps = list(steps)
    return Column(steps, [float(v) for v in values], [None] * len(steps), [float(s) for s in steps])


def noise(num: int, seed: int = 0):
    return 1.0 + 0.1 * np.random.default_rng(seed).standard_normal(num)


def thinner_at(level: int, after: int = 0) -> Thinner:
    """A thinner to which the leading streams have come already."""
    thinner = Thinner()
    thinner.thin({name: column([0], [1.0]) for name in FILLERS})
    thinner.change(level, after)
    return thinner


def kept_steps(thinner: Thinner, values, steps=None, name="late") -> list[int]:
    steps = range(1, len(values) + 1) if steps is None else steps
    kept = thinner.thin({name: column(steps, values)})
    return kept[name].steps if name in kept else []


def test_without_a_level_everything_is_kept_as_it_is():
    thinner, given = Thinner(), {"a": column(range(10), range(10))}
    assert thinner.thin(given) is given
    assert thinner.num_thinned == 0


def test_a_dense_stream_gives_about_one_point_in_a_stretch():
    thinner = thinner_at(5)
    kept = kept_steps(thinner, noise(6400))
    regular = {step for step in kept if step % 32 == 0}
    assert regular == {*range(32, 6401, 32)}
    assert len(kept) < 1.15 * len(regular)
    assert thinner.num_thinned == 6400 - len(kept)


def test_a_stream_that_comes_more_seldom_than_the_stretch_keeps_everything():
    thinner = thinner_at(5)
    steps = range(50, 5001, 50)
    assert kept_steps(thinner, noise(len(steps)), steps) == list(steps)


def test_the_first_streams_are_thinned_last_and_settings_never():
    thinner = thinner_at(5)
    values = noise(640)
    assert kept_steps(thinner, values, name=FILLERS[0]) == [*range(1, 641)]
    assert kept_steps(thinner, values, name="lr") == [*range(1, 641)]
    assert [width(0, level) for level in (0, 6, 7, 9)] == [1, 1, 2, 8]
    assert [width(LEADING, level) for level in (0, 1, 6)] == [1, 2, 64]


@pytest.mark.parametrize("at", [3000, 3001, 3017, 3030])
def test_a_fall_is_seen_at_its_step(at):
    values = noise(6400)
    values[at - 1 :] -= 0.9
    assert at in kept_steps(thinner_at(5), values)


@pytest.mark.parametrize("strange", [100.0, -100.0, math.nan, math.inf, -math.inf])
def test_a_single_strange_value_is_seen(strange):
    values = noise(6400)
    values[3001] = strange
    assert 3002 in kept_steps(thinner_at(6), values)


def test_what_is_kept_does_not_depend_on_how_the_points_come():
    values = noise(20_000, seed=1)
    values[7000:] *= 0.3
    values[12_345] = math.nan
    whole = kept_steps(thinner_at(4), values)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        cuts = [0, *sorted(rng.choice(np.arange(1, 20_000), 40, replace=False)), 20_000]
        thinner, pieces = thinner_at(4), []
        for begin, end in itertools.pairwise(cuts):
            pieces += kept_steps(thinner, values[begin:end], range(begin + 1, end + 1))
            state = json.loads(json.dumps(thinner.state_dict()))
            thinner = Thinner()
            thinner.load_state_dict(state)
        assert pieces == whole


def test_a_level_holds_for_the_steps_after_its_own():
    thinner = thinner_at(3, after=100)
    thinner.change(0, after=300)
    kept = kept_steps(thinner, np.ones(400))
    assert kept[:100] == [*range(1, 101)]
    assert kept[-100:] == [*range(301, 401)]
    assert kept[100:-100] == [101, *range(104, 301, 8)]


def test_a_replay_keeps_the_points_of_the_live_run_by_the_stored_levels():
    values = {name: noise(3000, seed) for seed, name in enumerate([*FILLERS, "late"])}
    live, seen = Thinner(), []
    for begin in range(0, 3000, 250):
        if begin in (500, 1250, 2000):
            live.change({500: 4, 1250: 8, 2000: 2}[begin], begin)
        part = {
            n: column(range(begin + 1, begin + 251), v[begin : begin + 250])
            for n, v in values.items()
        }
        seen.append({n: c.steps for n, c in live.thin(part).items()})
    stored = {name: column(range(1, 3001), v) for name, v in values.items()}
    stored[THINNING] = column([500, 1250, 2000], [4, 8, 2])
    measured = Observation(name="llc", step=3000, value=1.0, stderr=0.1)
    replayed, last = thinned([stored, measured])
    for name in values:
        assert replayed[name].steps == [step for part in seen for step in part.get(name, [])]
    assert live.num_thinned > 1000
    assert THINNING not in replayed
    assert last is measured


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def drive(pace, clock, seconds: float, demand, num_streams=300) -> list[int]:
    """Levels of so many seconds in which detection needs `demand(level)` of a processor."""
    levels = []
    for _ in range(int(seconds)):
        clock.now += 1.0
        levels.append(pace.judge(num_streams))
        pace.spend(demand(levels[-1]))
    return levels


def test_detection_that_keeps_to_its_share_is_never_thinned():
    clock = Clock()
    assert set(drive(Pace(0.025, clock=clock), clock, 1000, lambda level: 0.024)) == {0}


def test_a_short_burst_has_its_allowance():
    clock = Clock()
    pace = Pace(0.025, clock=clock)
    pace.spend(0.99 * ALLOWANCE_SECONDS)
    clock.now += 0.01
    assert pace.judge(300) == 0


def test_too_much_is_thinned_until_it_fits_and_what_it_takes_beyond_its_share_is_bounded():
    clock = Clock()
    pace, spent = Pace(0.025, clock=clock), []

    def demand(level):
        spent.append(0.4 / 2**level)
        return spent[-1]

    levels = drive(pace, clock, 300, demand)
    assert levels[-1] >= 4
    assert 0.4 / 2 ** levels[-1] <= 0.025
    assert max(levels) <= 6
    assert sum(spent) <= 0.025 * 300 + ALLOWANCE_SECONDS + 1.0


def test_few_streams_go_at_once_to_the_level_that_thins_them():
    clock = Clock()
    levels = drive(Pace(0.025, clock=clock), clock, 100, lambda level: 0.04, num_streams=3)
    first = next(level for level in levels if level)
    assert width(0, first) == 2


def test_it_looks_finely_again_when_there_is_less_to_do():
    clock = Clock()
    pace = Pace(0.025, level=3, clock=clock)
    levels = drive(pace, clock, 5 * RECOVERY_SECONDS, lambda level: 0.001)
    assert levels[0] == 3
    assert levels[-1] == 0
