"""What other packages add: each kind as one file and one entry point, in `tests/packages`."""

from __future__ import annotations

import json
import shutil
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from phasewatch import Watch, detect, detectors
from phasewatch.detectors import checks
from phasewatch.monitor import MonitorConfig, observables
from phasewatch.monitor.alerts import courier
from phasewatch.monitor.alerts.delivery import DeliveryError
from phasewatch.monitor.config.alerts import Target
from phasewatch.monitor.core.contracts import Observable
from phasewatch.monitor.core.errors import ConfigError, UnknownNameError

PACKAGES = Path(__file__).parent / "packages"
SETTINGS = {"store": "sqlite://", "exporter": {"enabled": False}, "observables": []}


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs a package as pip would: its module and its entry points, where Python looks."""

    def installed(kind: str) -> None:
        source = PACKAGES / kind
        project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
        site = tmp_path / "site"
        info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        )
        (info / "entry_points.txt").write_text(
            "\n".join(
                f"[{group}]\n" + "\n".join(f"{name} = {where}" for name, where in entries.items())
                for group, entries in project["entry-points"].items()
            )
        )
        for module in source.glob("*.py"):
            shutil.copy(module, site)
            monkeypatch.delitem(sys.modules, module.stem, raising=False)
        monkeypatch.syspath_prepend(site)

    return installed


def train(settings: dict, steps: int = 3, losses=None) -> Watch:
    """A plain loop of a few steps on a model of eight weights, three of them zero."""
    model = torch.nn.Linear(8, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]]))
    with Watch(SETTINGS | settings, probe=[torch.zeros(4, 8)], loss_fn=None) as watch:
        for step in range(1, steps + 1):
            watch.observe(step, {"train_loss": losses[step - 1] if losses else 1.0})
            if watch.due(step):
                watch.probe(step, model)
    return watch


def test_an_observable(install):
    install("observable")
    assert "weight_sparsity" in observables.names()
    made = observables.create("weight_sparsity", MonitorConfig())
    assert isinstance(made, Observable)
    watch = train({"every_n_steps": 1, "observables": ["weight_sparsity"]})
    steps, values, _ = watch.history("weight_sparsity")
    assert list(steps) == [1, 2, 3]
    assert list(values) == [0.375] * 3


CHECKS = [check for check in checks.all_checks() if check is not checks.check_one_alarm_per_episode]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_detector_against_the_contract(install, check):
    install("detector")
    check(lambda: detectors.create("crossing"))


def test_a_detector(install):
    install("detector")
    assert "crossing" in detectors.names()
    curve = [1.0] * 50 + [0.5] * 50
    outcome = detect({"my_metric": curve}, detector="crossing", parameters={"ratio": 0.2})
    assert [(w.detector, w.parameters) for w in outcome.watched] == [("crossing", {"ratio": 0.2})]
    (found,) = outcome.transitions
    assert found.detected_step == 51
    watch = train({"detectors": {"train_loss": "crossing"}}, len(curve), curve)
    assert [t.detected_step for t in watch.transitions] == [51]


def test_a_detector_that_nobody_has_is_told_with_the_way_to_bring_one():
    assert "crossing" not in detectors.names()
    with pytest.raises(detectors.UnknownDetectorError, match=r"'phasewatch\.detectors'"):
        detectors.create("crossing")


def test_a_sink(install, tmp_path):
    install("sink")
    settings = {"run_name": "first", "sinks": {"jsonl": {"parameters": {"folder": str(tmp_path)}}}}
    watch = train(settings)
    lines = [json.loads(line) for line in (tmp_path / "first.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["name"] == "train_loss"] == [1, 2, 3]
    assert watch.health.sink_failures["JsonLines"] == 0


def test_a_sink_that_cannot_be_made_says_so_before_the_first_step(install):
    install("sink")
    with pytest.raises(ConfigError, match=r"sink 'jsonl' cannot be made: .*'folder'.*sinks\.jsonl"):
        Watch(SETTINGS | {"sinks": ["jsonl"]}).start()


def test_a_sink_that_nobody_has_is_told_with_the_way_to_bring_one():
    with pytest.raises(UnknownNameError, match=r"unknown sink 'jsonl'.*'phasewatch\.sinks'"):
        Watch(SETTINGS | {"sinks": ["jsonl"]}).start()


def test_an_alert_channel(install, tmp_path, monkeypatch):
    install("alert_channel")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))  # the process that sends finds it too
    book = tmp_path / "book.txt"
    curve = [1.0 + 0.001 * (i % 5) for i in range(150)] + [100.0] * 50
    settings = {
        "run_name": "first",
        "store": str(tmp_path / "runs.db"),
        "alerts": {"targets": [f"logbook://{book}"], "picture": False},
    }
    watch = train(settings, len(curve), curve)
    (found,) = watch.transitions
    told = f"first: instability, from step {found.onset_step:,}"
    assert book.read_text().splitlines() == [told]
    assert watch.health.alert_sent == 1


def test_an_alert_channel_says_what_is_wrong_with_a_target_before_the_first_step(
    install, tmp_path, monkeypatch
):
    install("alert_channel")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    settings = SETTINGS | {"store": str(tmp_path / "runs.db"), "alerts": ["logbook://"]}
    with pytest.raises(ConfigError, match="it names no file; give logbook:///PATH"):
        Watch(settings).start()


def test_an_alert_channel_that_fails_leaves_the_alert_in_the_outbox(install, tmp_path):
    install("alert_channel")
    target = Target(name="1-logbook-aa", url=f"logbook://{tmp_path}/no/such/folder")
    assert courier.check(target) == ""
    with pytest.raises(DeliveryError, match="No such file or directory"):
        courier.deliver(target, SimpleNamespace(title="x"))
