"""How a run's false alarms are shared among its streams."""

import pytest

from phasewatch.detectors.error_control.alpha_spending import Budgeted
from phasewatch.monitor.config.monitor import MonitorConfig
from phasewatch.monitor.config.streams import DetectorConfig
from phasewatch.monitor.core.columns import Column
from phasewatch.monitor.core.health import Health
from phasewatch.monitor.core.meaning import guess
from phasewatch.monitor.transitions.pipeline import Detection
from phasewatch.monitor.transitions.streams import (
    MEASURED_POINTS,
    SCORE_EFFECT,
    SHARES,
    Streams,
    kind_of,
)


@pytest.fixture
def asked(monkeypatch):
    """Every (detector, false alarms, points) that a stream was budgeted with."""
    made = []

    def note(name, false_alarms, points):
        made.append((name, false_alarms, points))
        return Budgeted(name, false_alarms, points)

    monkeypatch.setattr("phasewatch.monitor.transitions.streams.Budgeted", note)
    return made


@pytest.mark.parametrize(
    ("name", "stderr", "kind"),
    [
        ("val_loss", None, "loss"),
        ("restricted_loss", None, "loss"),
        ("excluded_loss", None, "measured"),  # its rise tells, as much as its fall
        ("llc", 0.3, "measured"),
        ("gradient_norm", None, "scalar"),
    ],
)
def test_the_default_detector_goes_by_error_and_name(name, stderr, kind):
    assert kind_of(guess(name), stderr) == kind


def test_all_measured_streams_share_equally_and_never_pass_the_budget(asked):
    streams = Streams({}, false_alarms=0.4)
    for index in range(3 * SHARES):
        streams.get(f"llc_{index}", 0.1)
    shares = [share for _, share, _ in asked]
    assert shares[:SHARES] == [0.2 / SHARES] * SHARES
    assert sum(shares) < 0.4
    assert {points for _, _, points in asked} == {MEASURED_POINTS}


@pytest.mark.parametrize("name", ["train_loss", "val/accuracy", "metric_x", "return"])
def test_every_logged_stream_has_the_same_detector_whatever_its_name(name):
    assert Streams({}).get(name).detector.name == "abrupt_change"


@pytest.mark.parametrize(("name", "effect"), [("val/accuracy", SCORE_EFFECT), ("metric_x", 0.0)])
def test_only_of_scores_between_0_and_1_small_changes_do_not_count(name, effect):
    assert Streams({}).get(name).detector.parameters["min_effect"] == effect


def test_what_was_chosen_has_no_share(asked):
    streams = Streams({"a": DetectorConfig(name="cusum")}, {"b": "focus"})
    streams.get("a")
    streams.get("b")
    streams.get("lr")
    assert asked == []


def test_the_false_alarms_of_the_run_reach_the_detector():
    detection = Detection(MonitorConfig(false_alarms_per_run=0.01), None, "run", Health())
    detection.take_columns({"loss": Column(steps=[1], values=[1.0], epochs=[0], timestamps=[0.0])})
    assert detection.streams.get("loss").detector.parameters["false_alarms"] == 0.01


def test_a_resumed_run_keeps_its_horizon_and_its_settings():
    def column(step):
        return {"loss": Column(steps=[step], values=[1.0], epochs=[0], timestamps=[float(step)])}

    first = Detection(MonitorConfig(), None, "run", Health())
    first.expect(0, 5e4)
    first.take_columns(column(1))
    second = Detection(MonitorConfig(), None, "run", Health())
    second.load_state_dict(first.state_dict())
    second.take_columns(column(2))
    one, two = (d.streams.get("loss").detector.state_dict() for d in (first, second))
    assert second.streams.horizon == (0, 5e4)
    assert two["parameters"] == one["parameters"]
