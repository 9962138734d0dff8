"""How a run's false alarms are shared among its streams."""

import pytest

from phasewatch.detectors.error_control.alpha_spending import Budgeted
from phasewatch.detectors.error_control.false_alarms import threshold_for
from phasewatch.monitor.config.monitor import DetectorConfig, MonitorConfig
from phasewatch.monitor.core.columns import Column
from phasewatch.monitor.core.health import Health
from phasewatch.monitor.core.meaning import guess
from phasewatch.monitor.transitions.pipeline import Detection
from phasewatch.monitor.transitions.streams import (
    HORIZON,
    MEASURED_POINTS,
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


def test_all_streams_share_equally_and_never_pass_the_budget(asked):
    streams = Streams({}, false_alarms=0.4)
    for index in range(3 * SHARES):
        streams.get(f"loss_{index}")
    shares = [share for _, share, _ in asked]
    assert shares[:SHARES] == [0.2 / SHARES] * SHARES
    assert sum(shares) < 0.4


def test_the_horizon_is_the_trainers_at_the_streams_cadence(asked):
    streams = Streams({})
    streams.horizon = (0, 10_000.0)
    streams.get("train_loss", step=1)
    streams.get("val_loss", step=500)
    streams.get("llc", 0.1, step=1)
    assert [points for _, _, points in asked] == [10_000.0, 20.0, MEASURED_POINTS]


def test_without_a_known_end_the_horizon_is_a_fixed_number_of_points(asked):
    Streams({}).get("train_loss", step=7)
    assert [points for _, _, points in asked] == [HORIZON]


def test_what_was_chosen_has_no_share(asked):
    streams = Streams({"a": DetectorConfig(name="cusum")}, {"b": "focus"})
    streams.get("a")
    streams.get("b")
    streams.get("lr")
    assert asked == []


def test_the_setting_of_the_run_reaches_the_detector():
    strict, lax = (
        Detection(MonitorConfig(false_alarms_per_run=number), None, "run", Health())
        for number in (1e-6, 100.0)
    )
    for detection in (strict, lax):
        detection.expect(0, 1e4)
        detection.take_columns(
            {"loss": Column(steps=[1], values=[1.0], epochs=[0], timestamps=[0.0])}
        )
    first, second = (
        detection.streams.get("loss").detector.parameters["strictness"]
        for detection in (strict, lax)
    )
    share = 1e-6 / 2 / SHARES / 2
    assert first == threshold_for("slope_shift", share, 1e4)
    assert first > second >= 1.0


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
    assert two["budget"][:2] == one["budget"][:2]
    assert two["parameters"] == one["parameters"]
