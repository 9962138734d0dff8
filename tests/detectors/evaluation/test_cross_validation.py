"""Held-out settings, intervals over sources, and noise."""

import math

import numpy as np
import pytest

from phasewatch.detectors.evaluation import cross_validation, null_streams
from phasewatch.detectors.evaluation.scoring import Curve, Interval, Score


def score(found: int, of: int, false: int = 0) -> Score:
    ones = (1.0,) * found
    return Score(
        num_transitions=of, num_false=false, num_null_points=100, delays=ones, relative_delays=ones
    )


def test_scores_are_added_by_source():
    known = (Interval(start=10, end=12),)
    curves = [
        Curve(name=name, steps=tuple(range(100)), values=(1.0,) * 100, transitions=known, source=s)
        for name, s in (("a", "x"), ("b", "x"), ("c", "y"))
    ]
    by_source = cross_validation.score_by_source(
        curves, lambda curve: [11] if curve.name != "b" else []
    )
    assert {name: (s.num_detected, s.num_transitions) for name, s in by_source.items()} == {
        "x": (1, 2),
        "y": (1, 1),
    }


def test_a_source_is_judged_by_the_setting_that_is_best_without_it():
    # "b" is best on x alone, and must not be chosen by looking at x.
    scores = {
        "a": {"x": score(0, 4), "y": score(4, 4), "z": score(4, 4)},
        "b": {"x": score(2, 4), "y": score(1, 4), "z": score(1, 4)},
    }
    held_out = cross_validation.leave_one_source_out(scores)
    assert held_out.num_detected == 0 + 4 + 4


def test_of_equal_settings_the_first_is_taken():
    scores = {
        "default": {"x": score(1, 2), "y": score(2, 2)},
        "other": {"x": score(2, 2), "y": score(2, 2)},
    }
    assert cross_validation.leave_one_source_out(scores).num_detected == 1 + 2


def test_with_one_source_nothing_can_be_left_out():
    with pytest.raises(ValueError, match="sources"):
        cross_validation.leave_one_source_out({"a": {"x": score(1, 1)}})


def test_the_interval_holds_the_figure_and_is_a_point_where_sources_agree():
    mixed = {"x": score(4, 4), "y": score(1, 4), "z": score(3, 4, false=2)}
    low, high = cross_validation.bootstrap(mixed, lambda one: one.f1)
    assert low < cross_validation.total(mixed.values()).f1 < high
    same = {"x": score(3, 4), "y": score(3, 4)}
    assert cross_validation.bootstrap(same, lambda one: one.recall) == (0.75, 0.75)
    assert cross_validation.bootstrap(mixed, lambda one: one.f1) == (low, high)


def test_a_figure_that_no_draw_has_gives_no_interval():
    low, high = cross_validation.bootstrap({"x": Score()}, lambda one: one.f1)
    assert math.isnan(low)
    assert math.isnan(high)


def test_the_poisson_bound_is_the_textbook_one():
    assert cross_validation.poisson_upper(0) == pytest.approx(2.996, abs=1e-3)
    assert cross_validation.poisson_upper(10) == pytest.approx(16.96, abs=1e-2)


def test_noise_is_of_the_stated_size_and_leaves_the_labels():
    curve = null_streams.curve("power law, no noise", 5000)
    noisy = cross_validation.with_noise(curve, 0.1)
    assert np.std(np.log10(noisy.values) - np.log10(curve.values)) == pytest.approx(0.1, rel=0.05)
    assert noisy.steps == curve.steps
    assert noisy.noisy
    assert cross_validation.with_noise(curve, 0.1) == noisy
