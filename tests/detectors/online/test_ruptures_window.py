import numpy as np
import pytest
import ruptures
from hypothesis import given, settings
from hypothesis import strategies as st

from phasewatch.detectors import Direction, RupturesWindow, default
from phasewatch.detectors.checks import all_checks
from phasewatch.detectors.online.ruptures_window import search_changes
from support.curves import autoregressive, feed, power_law

SEARCHES = ("kernelcpd", "pelt", "binseg", "bottomup", "window")
KINDS = [
    (search, cost)
    for search in SEARCHES
    for cost in ("l2", "rbf", "linear", "weighted")
    if search != "kernelcpd" or cost in ("l2", "rbf")
]


def fed(values, **parameters):
    return feed(RupturesWindow(**parameters), values)


@pytest.mark.parametrize("phi", [0.0, 0.6])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_change_of_level_is_found_once_and_soon(phi, sign):
    values = autoregressive(800, phi, 1.0, seed=3)
    values[400:] += sign * 15.0
    (alarm,) = fed(values)
    assert alarm.direction is (Direction.UP if sign > 0 else Direction.DOWN)
    assert alarm.onset_step == pytest.approx(400, abs=5)
    assert alarm.detected_step <= 420
    assert alarm.value_after - alarm.value_before == pytest.approx(sign * 15.0, abs=5.0)


def test_a_change_of_level_on_a_slope_is_found():
    values = 0.1 * np.arange(600) + autoregressive(600, 0.0, 0.3, seed=3)
    values[300:] += 20.0
    (alarm,) = fed(values)
    assert alarm.onset_step == pytest.approx(300, abs=5)


def test_two_changes_give_two_alarms():
    values = autoregressive(1200, 0.0, 1.0, seed=6)
    values[400:] += 20.0
    values[800:] -= 40.0
    assert [alarm.direction for alarm in fed(values)] == [Direction.UP, Direction.DOWN]


def test_the_episode_ends_after_the_residuals_are_calm():
    detector = RupturesWindow()
    values = autoregressive(800, 0.0, 1.0, seed=3)
    values[400:] += 15.0
    active = []
    for step, value in enumerate(values):
        detector.update(step, float(value))
        active.append(detector.active)
    inside = np.flatnonzero(active)
    assert 400 <= inside.min() <= 420
    assert inside.max() <= 500
    assert inside.size == inside.max() - inside.min() + 1


@pytest.mark.parametrize(
    "values",
    [
        autoregressive(8_000, 0.0, 1.0, seed=1),
        autoregressive(8_000, 0.6, 1.0, seed=1),
        autoregressive(8_000, 0.9, 1.0, seed=1),
        np.cumsum(autoregressive(8_000, 0.0, 1.0, seed=1)),
        np.random.default_rng(0).standard_t(3, 8_000),
        np.exp(np.random.default_rng(0).standard_normal(8_000)),
        power_law(5_000),
        power_law(5_000) + autoregressive(5_000, 0.3, 0.01, seed=1),
        np.sin(np.arange(5_000) / 200.0),
        np.arange(5_000) % 8 / 8.0,
        np.full(2_000, 3.0),
        np.linspace(0.0, 1.0, 2_000),
    ],
    ids=[
        "white", "AR(0.6)", "AR(0.9)", "random walk", "t3", "lognormal", "power law",
        "noisy power law", "sine", "saw", "constant", "line",
    ],
)  # fmt: skip
def test_streams_without_a_change_are_quiet(values):
    assert feed(default("scalar"), values) == []


def test_one_wild_point_is_no_change():
    values = autoregressive(600, 0.0, 1.0, seed=2)
    values[300] += 1e4
    assert fed(values) == []


def test_a_curve_that_flattens_has_not_fallen():
    values = 1.0 - np.exp(-np.arange(400) / 60.0) + autoregressive(400, 0.0, 1e-4, seed=2)
    assert fed(values) == []


def test_a_change_below_the_effect_gates_is_quiet():
    values = autoregressive(600, 0.0, 0.01, seed=2)
    values[:5] += 10.0
    values[300:] += 1.0
    assert fed(values, effect=0.15) == []
    assert len(fed(values, effect=0.05)) == 1
    assert fed(values, effect=0.05, min_effect=2.0) == []


def test_the_search_is_ruptures_own_with_every_point_a_candidate(monkeypatch):
    seen = []

    class Spy(ruptures.KernelCPD):
        def __init__(self, **arguments):
            seen.append(arguments)
            super().__init__(**arguments)

    monkeypatch.setattr(ruptures, "KernelCPD", Spy)
    values = autoregressive(500, 0.0, 1.0, seed=3)
    values[300:] += 15.0
    fed(values)
    assert seen
    assert all(arguments["jump"] == 1 for arguments in seen)


@pytest.mark.parametrize(("search", "cost"), KINDS)
def test_every_search_and_cost_finds_a_change_of_level_once(search, cost):
    values = autoregressive(500, 0.0, 1.0, seed=3)
    values[300:] += 15.0
    (alarm,) = fed(values, search=search, cost=cost)
    assert alarm.direction is Direction.UP
    assert alarm.onset_step == pytest.approx(300, abs=5)
    assert alarm.detected_step <= 330


@pytest.mark.parametrize(("search", "cost"), KINDS)
def test_every_search_and_cost_is_quiet_without_a_change(search, cost):
    assert fed(autoregressive(1500, 0.6, 1.0, seed=1), search=search, cost=cost) == []
    assert fed(power_law(600), search=search, cost=cost) == []


@pytest.mark.parametrize(("search", "cost"), KINDS)
def test_every_point_is_a_candidate(search, cost):
    residuals = np.concatenate([np.zeros(43), np.full(37, 20.0)])
    residuals += 0.1 * np.cos(7.0 * np.arange(80))
    found = search_changes(residuals, penalty=70.0, min_size=5, search=search, cost=cost)
    near = 5 if search == "bottomup" else 0  # it joins leaves of `min_size` points
    assert min(abs(at - 43) for at in found) <= near


@pytest.mark.parametrize(("search", "cost"), KINDS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(search, cost, value):
    residuals = np.zeros(60)
    residuals[30] = value
    with pytest.raises(ValueError, match="residuals has a value that is not finite"):
        search_changes(residuals, penalty=70.0, min_size=5, search=search, cost=cost)


def test_the_weighted_cost_lets_loud_points_count_less():
    rng = np.random.default_rng(0)
    stderrs = np.where(np.arange(80) % 2 == 0, 0.2, 20.0)
    residuals = np.repeat([0.0, 1.5], 40) + stderrs * rng.standard_normal(80)
    known = {"penalty": 70.0, "min_size": 5, "search": "pelt", "cost": "weighted"}
    scaled = residuals / 0.3
    assert search_changes(scaled, **known, stderrs=stderrs) == [pytest.approx(40, abs=2)]
    assert search_changes(scaled, **known) != [pytest.approx(40, abs=2)]


def test_errors_that_only_some_points_have_do_no_harm():
    values = autoregressive(500, 0.0, 1.0, seed=3)
    values[300:] += 15.0
    detector = RupturesWindow(search="pelt", cost="weighted")
    alarms = []
    for step, value in enumerate(values):
        stderr = (1.0, None, float("nan"), 0.0)[step % 4]
        alarms.append(detector.update(step, float(value), stderr))
    (alarm,) = filter(None, alarms)
    assert alarm.onset_step == pytest.approx(300, abs=5)


@pytest.mark.parametrize("check", all_checks(), ids=lambda check: check.__name__)
@pytest.mark.parametrize(("search", "cost"), [("pelt", "weighted"), ("window", "rbf")])
def test_other_searches_and_costs_keep_the_contract(check, search, cost):
    check(lambda: RupturesWindow(search=search, cost=cost))


@settings(max_examples=8, deadline=None)
@given(factor=st.sampled_from([2.0**k for k in range(-20, 21)]))
def test_the_unit_of_the_stream_does_not_matter(factor):
    values = autoregressive(500, 0.0, 1.0, seed=3)
    values[300:] += 15.0
    (reference,), (mine,) = fed(values), fed(factor * values)
    assert mine.detected_step == reference.detected_step
    assert mine.score == reference.score
    assert mine.value_after == factor * reference.value_after


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"search": "dynp"}, "search is 'dynp', but must be one of 'kernelcpd', 'pelt', 'binseg'"),
        ({"cost": "l1"}, "cost is 'l1', but must be one of 'l2', 'rbf', 'linear', 'weighted'"),
        ({"cost": "weighted"}, "cost is 'weighted', but must be 'l2' or 'rbf' with search="),
        ({"penalty": 0.0}, r"penalty is 0\.0, but must be above 0"),
        ({"effect": 0.0}, r"effect is 0\.0, but must be above 0"),
        ({"min_effect": -1.0}, r"min_effect is -1\.0, but must be at least 0"),
        ({"trend": 2}, r"trend is 2, but must be at least 3"),
        ({"min_size": 1}, r"min_size is 1, but must be at least 2"),
        ({"window": 10}, r"window is 10, but must be at least 4 × min_size = 20"),
    ],
)
def test_a_parameter_out_of_range_is_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        RupturesWindow(**parameters)
