import pickle

import pytest

from phasewatch.callbacks import TransitionMonitor
from phasewatch.monitor.config.exports import ExporterConfig
from phasewatch.monitor.config.monitor import DEFAULT_OBSERVABLES, MonitorConfig
from phasewatch.monitor.config.schedule import EveryNSteps, LogSpaced
from phasewatch.monitor.core.errors import ConfigError


class Own:
    name, unit = "own", "1"

    def measure(self, context):
        raise NotImplementedError


def test_the_defaults_are_those_of_the_configuration():
    assert TransitionMonitor().config == MonitorConfig()


def test_what_is_given_wins_over_the_file(tmp_path):
    path = tmp_path / "monitor.yaml"
    path.write_text("run_name: filed\nschedule: {kind: log, per_decade: 5}\noverhead: 0.2\n")
    config = TransitionMonitor(path, run_name="given", every_n_steps=7).config
    assert config.run_name == "given"
    assert config.cadence == EveryNSteps(n=7)
    assert config.overhead == 0.2
    config = TransitionMonitor(str(path), schedule=LogSpaced(per_decade=9)).config
    assert config.cadence == LogSpaced(per_decade=9)


@pytest.mark.parametrize(
    ("given", "enabled", "port"),
    [
        (False, False, 9877),
        (True, True, 9877),
        (9999, True, 9999),
        (ExporterConfig(port=1), True, 1),
    ],
)
def test_the_exporter_takes_a_switch_a_port_or_settings(given, enabled, port):
    exporter = TransitionMonitor(exporter=given).config.exporter
    assert (exporter.enabled, exporter.port) == (enabled, port)


def test_observables_are_names_settings_or_objects():
    assert list(TransitionMonitor(observables=["llc"]).config.observables) == ["llc"]
    settings = {"llc": {"every_n_steps": 3}}
    assert TransitionMonitor(observables=settings).config.observables["llc"].every_n_steps == 3
    own = Own()
    monitor = TransitionMonitor(observables=["weight_norm", own])
    assert monitor._observables == ["weight_norm", own]
    assert list(TransitionMonitor().config.observables) == list(DEFAULT_OBSERVABLES)


def test_detectors_are_names_or_objects():
    detector = object()
    monitor = TransitionMonitor(detectors={"val_loss": "none", "llc": detector})
    assert monitor.config.detectors["val_loss"].name == "none"
    assert monitor._detectors == {"llc": detector}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_fn": 3}, "loss_fn: got 3"),
        ({"n_samples": 0}, "n_samples: got 0"),
        ({"observables": "llc"}, "give a list of names"),
        ({"observables": ["llc", "llc"]}, "given twice"),
        ({"every_n_steps": 0}, "every_n_steps: got 0"),
        ({"overhead": 2.0}, "overhead: got 2.0"),
        ({"config": "/no/such/file.yaml"}, "cannot be read"),
    ],
)
def test_a_wrong_value_is_named_when_the_monitor_is_made(options, message):
    with pytest.raises(ConfigError, match=message):
        TransitionMonitor(**options)


def test_a_monitor_can_be_sent_to_another_process():
    monitor = TransitionMonitor(run_name="x", every_n_steps=3)
    sent = pickle.loads(pickle.dumps(monitor))
    assert sent.config == monitor.config
