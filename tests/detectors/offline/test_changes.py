"""A history in hindsight: which abrupt changes it shows."""

import numpy as np
import pytest

from phasewatch.detectors import Direction
from phasewatch.detectors.evaluation.scoring import Score, load_curves, match
from phasewatch.detectors.offline.changes import Change, find_changes
from support.curves import autoregressive, grokking_val_loss, power_law, sigmoid_fall, spiky
from support.needs import need_test_data


def falls(values, steps=None, **settings):
    steps = np.arange(len(values)) if steps is None else steps
    return find_changes(steps, values, direction=Direction.DOWN, **settings)


@pytest.mark.parametrize("name", ["gate", "abrupt"])
def test_a_threshold_out_of_range_is_refused(name):
    with pytest.raises(ValueError, match=rf"{name} is 0\.0"):
        find_changes([1, 2], [1.0, 2.0], **{name: 0.0})


def test_a_fall_has_its_onset_end_and_size():
    (fall,) = falls(sigmoid_fall(1000, 0.1) * 10.0 ** autoregressive(1000, 0.0, 0.01, seed=1))
    # 80 % of the fall lie within ±0.055 of the middle.
    assert fall.onset_step == pytest.approx(440, abs=25)
    assert fall.end_step == pytest.approx(560, abs=25)
    assert fall.size == pytest.approx(0.9, abs=0.15)
    assert fall.direction is Direction.DOWN
    assert not fall.open


def test_grokking_is_one_fall():
    steps, losses = grokking_val_loss(1000)
    (fall,) = falls(losses, steps)
    assert fall.onset_step == pytest.approx(5500, abs=400)
    assert fall.size > 2.5


def test_both_directions_are_found_in_a_series_of_any_sign():
    values = np.repeat([0.0, 3.0, -3.0], 100) + autoregressive(300, 0.0, 0.2, seed=2)
    up, down = find_changes(np.arange(300), values)
    assert (up.direction, down.direction) == (Direction.UP, Direction.DOWN)
    assert (up.onset_step, up.end_step) == (99, 100)
    assert (down.onset_step, down.end_step) == (199, 200)
    assert down.size == pytest.approx(6.0, abs=0.3)


def test_a_history_that_ends_within_a_fall_says_so():
    values = sigmoid_fall(1000, 0.2)[:510] * 10.0 ** autoregressive(510, 0.0, 0.003, seed=1)
    (fall,) = falls(values)
    assert fall.open


@pytest.mark.parametrize(
    "values",
    [
        power_law(2000),
        power_law(2000) * 10.0 ** autoregressive(2000, 0.3, 0.03, seed=1),
        4.0 * np.exp(-np.arange(2000) / 30.0) + 1e-6,
        10.0 ** autoregressive(2000, 0.6, 0.1, seed=1),
        10.0 ** autoregressive(2000, 0.9, 0.1, seed=1),
        10.0 ** (0.05 * np.random.default_rng(0).standard_t(3, 2000)),
        2.0 + 0.2 * (np.arange(2000) % 8) / 8.0,
        spiky(2000, 400),
        np.full(2000, 0.5),
    ],
    ids=["decay", "noisy decay", "flat tail", "AR(0.6)", "AR(0.9)", "t3", "saw", "spikes", "flat"],
)
def test_a_loss_without_a_transition_has_none(values):
    assert falls(values) == []


@pytest.mark.parametrize("every", [1, 4, 16])
def test_how_often_was_logged_does_not_matter(every):
    values = sigmoid_fall(1600, 0.1) * 10.0 ** autoregressive(1600, 0.0, 0.005, seed=3)
    steps = np.arange(1600)
    (fall,) = falls(values[::every], steps[::every])
    assert fall.onset_step == pytest.approx(700, abs=50)
    assert fall.end_step == pytest.approx(900, abs=50)


def test_a_step_of_a_measured_stream_is_found_by_its_errors():
    rng = np.random.default_rng(0)
    level = np.repeat([20.0, 12.0], 20)
    stderr = rng.uniform(0.03, 0.06, 40) * level
    values = level + stderr * rng.standard_normal(40)
    (fall,) = find_changes(10 * np.arange(40), values, stderr, scale="linear", gate=0.15)
    assert (fall.onset_step, fall.end_step) == (190, 200)


# ---- recorded curves


@pytest.fixture(scope="module")
def curves():
    return load_curves(need_test_data("training_curves.json"))


def found_in(curve) -> list[Change]:
    return find_changes(curve.steps, curve.values, scale="log", direction=Direction.DOWN)


@pytest.mark.parametrize(("every", "floor"), [(1, 0.93), (2, 0.93), (4, 0.9), (8, 0.8)])
def test_the_recorded_transitions_are_found(curves, every, floor):
    total = Score()
    for curve in (curve.every(every) for curve in curves):
        middles = [(c.onset_step + c.end_step) / 2 for c in found_in(curve)]
        total += match(np.searchsorted(curve.steps, middles).tolist(), curve)
    assert total.f1 >= floor
    assert total.strict_f1 >= floor


def test_onset_and_end_lie_near_those_of_the_annotation(curves):
    onsets, ends = [], []
    for curve in curves:
        for known in curve.transitions:
            start, end = curve.steps[known.start], curve.steps[known.end]
            for change in found_in(curve):
                if change.onset_step <= end and start <= change.end_step:
                    onsets.append(abs(change.onset_step - start) / (end - start))
                    ends.append(abs(change.end_step - end) / (end - start))
    assert len(onsets) >= 28
    assert np.median(onsets) <= 0.2
    assert np.median(ends) <= 0.1
