"""What the default detector reaches on recorded, annotated training curves, with some margin."""

import math
from dataclasses import replace

import numpy as np
import pytest

from phasewatch.detectors import create, default
from phasewatch.detectors.evaluation.scoring import always_alarm, evaluate, load_curves
from support.needs import need_test_data


@pytest.fixture(scope="module")
def curves():
    return load_curves(need_test_data("training_curves.json"))


@pytest.fixture(scope="module")
def score(curves):
    return evaluate(curves, lambda: default("loss"))


def test_the_curves_are_all_there(curves):
    assert len(curves) == 41
    assert sum(len(curve.transitions) for curve in curves) == 30


def test_f1_holds(score):
    assert score.f1 >= 0.95
    assert score.strict_f1 >= 0.93
    assert score.recall >= 0.93


def test_false_alarms_are_rare(score):
    assert score.num_null_points > 25_000
    assert score.false_alarms_per_1000 <= 0.02


def test_the_delay_is_a_small_part_of_a_transition(score):
    assert score.median_relative_delay <= 0.15
    assert score.median_delay <= 15


@pytest.mark.parametrize(("every", "floor"), [(2, 0.93), (4, 0.90), (8, 0.80)])
def test_f1_holds_for_curves_logged_less_often(curves, every, floor):
    assert evaluate([c.every(every) for c in curves], lambda: default("loss")).f1 >= floor


@pytest.mark.parametrize(
    "name", ["cusum", "focus", "page_hinkley", pytest.param("bocpd", marks=pytest.mark.slow)]
)
def test_f1_of_the_detectors_on_residuals_holds(curves, name):
    score = evaluate(curves, lambda: create(name))
    assert score.f1 >= 0.85
    assert score.strict_f1 >= 0.85
    assert score.false_alarms_per_1000 <= 0.1
    assert score.median_relative_delay <= 0.35


def test_it_beats_an_alarm_at_every_point_by_far(curves, score):
    baseline = always_alarm(curves)
    assert baseline.recall == 1.0
    assert baseline.f1 < 0.01
    assert score.f1 > 50 * baseline.f1


def test_no_recorded_curve_is_called_unstable(curves):
    for curve in curves:
        detector = default("loss")
        for step, value in zip(curve.steps, curve.values, strict=True):
            alarm = detector.update(step, value)
            assert alarm is None or alarm.kind == "shift"
            assert math.isfinite(detector.statistic)


@pytest.mark.parametrize(("dex", "floor"), [(0.03, 0.90), (0.1, 0.82)])
def test_f1_holds_under_added_noise(curves, dex, floor):
    rng = np.random.default_rng(1)
    noisy = [
        replace(c, values=tuple(v * 10.0 ** (dex * rng.standard_normal()) for v in c.values))
        for c in curves
    ]
    assert evaluate(noisy, lambda: default("loss")).f1 >= floor
