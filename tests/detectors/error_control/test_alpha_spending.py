"""A number of false alarms that is kept at any length of the stream."""

import json

import numpy as np
import pytest

from phasewatch.detectors import StateError, checks, create
from phasewatch.detectors.error_control import alpha_spending as module
from phasewatch.detectors.error_control.alpha_spending import Budgeted
from phasewatch.detectors.error_control.false_alarms import threshold_for


@pytest.mark.parametrize("check", checks.all_checks(), ids=lambda check: check.__name__)
def test_a_budgeted_detector_passes_every_check(check):
    check(lambda: Budgeted("slope_shift", 0.01, 1e5))


@pytest.mark.parametrize(
    "check",
    [check for check in checks.all_checks() if check is not checks.check_parameters_are_frozen],
    ids=lambda check: check.__name__,
)
def test_one_that_turns_its_knob_on_the_way_passes_all_but_that(check):
    check(lambda: Budgeted("cusum", 1e-5, 100.0))


def test_the_shares_of_all_stretches_never_pass_the_budget(monkeypatch):
    asked = []

    def note(name, expected, points):
        asked.append((expected, points))
        return 13.0

    monkeypatch.setattr(module, "threshold_for", note)
    detector = Budgeted("cusum", 0.1, 10.0)
    for step in range(1000):
        detector.update(step, 1.0)
    shares, lengths = zip(*asked, strict=True)
    assert lengths == (10.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)
    assert shares[0] == 0.05
    assert sum(shares) < 0.1


def test_turning_the_knob_keeps_what_was_seen():
    plain, budgeted = create("cusum", threshold=20.0), Budgeted("cusum", 1e-5, 130.0)
    stream = [(step, value) for step, value, _ in checks.changing_stream()]
    early = budgeted.threshold
    told = [budgeted.update(*point) for point in stream]
    assert budgeted.threshold > early
    onsets = [alarm.onset_step for alarm in told if alarm]
    expected = [alarm.onset_step for alarm in (plain.update(*p) for p in stream) if alarm]
    assert onsets == expected


def test_a_saved_budget_goes_on_with_its_own_settings():
    saved = Budgeted("cusum", 0.01, 50.0)
    for step, value, _ in checks.changing_stream(120):
        saved.update(step, value)
    other = Budgeted("cusum", 0.5, 1e4)
    other.load_state_dict(json.loads(json.dumps(saved.state_dict())))
    assert other.threshold == saved.threshold
    assert other.state_dict() == saved.state_dict()


def test_a_state_of_another_detector_is_refused():
    budgeted = Budgeted("cusum", 0.01, 50.0)
    for state in (create("cusum").state_dict(), Budgeted("focus", 0.01, 50.0).state_dict()):
        with pytest.raises(StateError, match="'cusum'"):
            budgeted.load_state_dict(state)


def test_it_shows_the_parameters_of_the_detector_as_it_is_now():
    budgeted = Budgeted("slope_shift", 0.01, 1e5, gate=0.2)
    assert budgeted.parameters["gate"] == 0.2
    assert budgeted.parameters["strictness"] == threshold_for("slope_shift", 0.005, 1e5)
    assert np.isfinite(budgeted.statistic)
