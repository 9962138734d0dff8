"""How a run's false alarms are shared among its streams."""

import math

import pytest

from phasewatch.detectors.budgeted import Budgeted
from phasewatch.monitor.config import DetectorConfig, MonitorConfig
from phasewatch.monitor.detection import Detection
from phasewatch.monitor.health import Health
from phasewatch.monitor.scalars import Column
from phasewatch.monitor.streams import MEASURED_POINTS, SHARES, Streams, kind_of


@pytest.fixture
def asked(monkeypatch):
    """Every (detector, false alarms, points) that a stream was budgeted with."""
    made = []

    def note(name, false_alarms, points):
        made.append((name, false_alarms, points))
        return Budgeted(name, false_alarms, points)

    monkeypatch.setattr("phasewatch.monitor.streams.Budgeted", note)
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
    assert kind_of(name, stderr) == kind


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
    detector = Streams({}).get(name).detector
    assert detector.name == "local_change"
    assert detector.parameters == Streams({}).get("another").detector.parameters


def test_what_was_chosen_has_no_share(asked):
    streams = Streams({"a": DetectorConfig(name="cusum")}, {"b": "focus"})
    streams.get("a")
    streams.get("b")
    streams.get("lr")
    assert asked == []


def test_a_run_that_allows_a_tenth_of_the_false_alarms_asks_for_tenfold_odds():
    usual, strict = (
        Streams({}, false_alarms=number).get("loss").detector.required for number in (0.1, 0.01)
    )
    assert strict == pytest.approx(usual + math.log(10.0))


def test_a_longer_stream_needs_more_certain_alarms():
    detector = Streams({}).get("loss").detector
    needed = []
    for step in range(4000):
        detector.update(step, 1.0)
        needed.append(detector.required)
    assert needed[999] == needed[0]
    assert needed == sorted(needed)
    assert needed[-1] > needed[0]


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
