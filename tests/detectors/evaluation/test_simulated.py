"""Streams with transitions that are known because they were put there."""

import numpy as np
import pytest

from phasewatch.detectors import create
from phasewatch.detectors.evaluation import null_streams, simulated
from phasewatch.detectors.evaluation.scoring import always_alarm, evaluate


def test_a_fall_starts_and_ends_where_its_speed_says():
    speed = -np.diff(simulated.fall(2000, start=800, width=400, dex=1.0))
    share = speed / speed.max()
    assert share[800] == pytest.approx(0.20, abs=0.01)
    assert share[1200] == pytest.approx(0.35, abs=0.01)


def test_a_fall_is_of_the_stated_size():
    drop = simulated.fall(2000, start=800, width=200, dex=0.7)
    assert drop[0] == pytest.approx(0.0, abs=1e-6)
    assert drop[-1] == pytest.approx(-0.7, abs=1e-6)


def test_a_transition_lies_where_it_was_put_and_leaves_the_rest_alone():
    null = null_streams.curve("white", 1000, seed=1)
    curve = simulated.with_transition(null, start=500, width=50, dex=1.0)
    assert [(one.start, one.end) for one in curve.transitions] == [(500, 550)]
    assert curve.values[:300] == pytest.approx(null.values[:300], rel=1e-3)
    assert curve.values[700:] == pytest.approx([0.1 * x for x in null.values[700:]], rel=1e-3)
    assert null.transitions == ()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"start": 960, "width": 50, "dex": 1.0}, "start is 960"),
        ({"start": -1, "width": 50, "dex": 1.0}, "start is -1"),
        ({"start": 500, "width": 0, "dex": 1.0}, "width is 0"),
        ({"start": 500, "width": 50, "dex": 0.0}, "dex is 0.0"),
    ],
)
def test_a_transition_outside_the_curve_is_refused(given, named):
    with pytest.raises(ValueError, match=named):
        simulated.with_transition(null_streams.curve("white", 1000), **given)


def test_the_curves_hold_transitions_of_several_sources_and_curves_without():
    curves = simulated.curves(seed=0)
    assert len({curve.source for curve in curves}) == len(simulated.SOURCES)
    assert sum(len(curve.transitions) for curve in curves) == 4 * len(simulated.SOURCES)
    assert any(not curve.transitions for curve in curves)
    assert {curve.noisy for curve in curves} == {True, False}
    assert simulated.curves(seed=0) == curves
    assert simulated.curves(seed=1) != curves


def test_a_detector_finds_most_of_them_and_beats_an_alarm_at_every_point():
    curves = simulated.curves(400)
    score = evaluate(curves, lambda: create("cusum"))
    assert score.recall > 0.5
    assert score.f1 > 10 * always_alarm(curves).f1
