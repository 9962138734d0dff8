"""The shipped Alertmanager configuration is valid, names alerts that exist, and holds no secret."""

from __future__ import annotations

import re
import subprocess

import pytest
import yaml

from phasewatch.monitor.operations.doctor_servers import shipped_alerts
from support.needs import need_binary
from support.promtool import DEPLOY

FILE = DEPLOY / "alertmanager" / "alertmanager.yml"
CONFIG = yaml.safe_load(FILE.read_text(encoding="utf-8"))


def routed(file, **labels):
    """Receiver of an alert, as amtool says."""
    done = subprocess.run(
        [need_binary("amtool"), "config", "routes", "test", f"--config.file={file}",
         *(f"{name}={value}" for name, value in labels.items())],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def test_amtool_accepts_it():
    check = subprocess.run(
        [need_binary("amtool"), "check-config", str(FILE)], capture_output=True, text=True
    )
    assert check.returncode == 0, check.stdout + check.stderr


def matchers():
    for route in CONFIG["route"]["routes"]:
        yield from route["matchers"]
    for rule in CONFIG["inhibit_rules"]:
        yield from rule["source_matchers"]
        yield from rule["target_matchers"]


def test_every_alert_it_names_exists():
    named = {name for text in matchers() for name in re.findall(r"Phasewatch\w+", text)}
    assert named <= set(shipped_alerts())
    assert len(named) >= 10


def test_what_is_silenced_is_silenced_for_one_run_only():
    for rule in CONFIG["inhibit_rules"]:
        assert "run" in rule["equal"]


@pytest.mark.parametrize("receiver", ["slack", "email", "webhook"])
def test_a_receiver_takes_its_secret_from_a_file(receiver):
    (found,) = [one for one in CONFIG["receivers"] if one["name"] == receiver]
    text = yaml.safe_dump([found, CONFIG["global"]])
    secrets = re.findall(r"^\W*(\w*(?:password|api_url|credentials|token)\w*):", text, re.MULTILINE)
    assert secrets
    assert all(name.endswith("_file") for name in secrets)


def test_naming_a_receiver_once_is_enough_to_be_told_everything(tmp_path):
    file = tmp_path / "alertmanager.yml"
    text = FILE.read_text(encoding="utf-8")
    assert text.count("receiver: nobody") == 1
    file.write_text(text.replace("receiver: nobody", "receiver: slack"), encoding="utf-8")
    for alert in shipped_alerts():
        assert routed(file, alertname=alert, run="a") == "slack"
