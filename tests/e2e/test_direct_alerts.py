"""A run tells a real Alertmanager of its transitions, and the Prometheus rule does not as well."""

import base64
import io
import json
import math
import re
import subprocess
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import yaml
from matplotlib.image import imread

from phasewatch.monitor.alerts.alertmanager import HOLD_SECONDS
from phasewatch.monitor.core.transitions import TransitionKind, TransitionStatus
from phasewatch.monitor.run.watch import Watch
from support.needs import need_binary
from support.records import make_transition, wait_until
from support.targets import free_port, http_target, notify

PATIENCE = {"seconds": 60.0}
RUN = 'grok "p=53"\\'
SHIPPED = Path(__file__).parents[2] / "deploy" / "alertmanager" / "alertmanager.yml"


@pytest.fixture
def webhook():
    with http_target() as target:
        yield target


@pytest.fixture
def manager(tmp_path, webhook):
    """Address of an Alertmanager with the shipped configuration, quicker, that tells `webhook`."""
    binary = need_binary("prometheus-alertmanager")
    config = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    for route in (config["route"], *config["route"]["routes"]):
        route |= {"receiver": "webhook", "group_wait": "2s", "group_interval": "1s"}
    url = f"http://127.0.0.1:{webhook.port}/"
    config["receivers"] = [
        {"name": "webhook", "webhook_configs": [{"url": url, "send_resolved": True}]}
    ]
    (tmp_path / "alertmanager.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    server = subprocess.Popen(
        [
            binary,
            f"--config.file={tmp_path / 'alertmanager.yml'}",
            f"--storage.path={tmp_path / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--cluster.listen-address=",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"127.0.0.1:{port}"
    try:
        wait_until(lambda: ask(address, "status") is not None, what="Alertmanager", **PATIENCE)
        yield address
    finally:
        server.terminate()
        server.wait(timeout=30)


def ask(address, what):
    try:
        with urllib.request.urlopen(f"http://{address}/api/v2/{what}", timeout=10) as response:
            return json.load(response)
    except (urllib.error.URLError, ConnectionError):
        return None


def rule_fires(address, run, kind, run_id="", seconds=240):
    """What Prometheus sends when the shipped rule fires."""
    now = datetime.now(UTC)
    labels = {
        "alertname": "PhasewatchTransition",
        "run": run,
        "run_id": run_id,
        "kind": kind,
        "severity": "info",
        "job": "phasewatch",
        "instance": "127.0.0.1:9877",
    }
    alert = {
        "labels": labels,
        "startsAt": now.isoformat(),
        "endsAt": (now + timedelta(seconds=seconds)).isoformat(),
    }
    request = urllib.request.Request(
        f"http://{address}/api/v2/alerts",
        data=json.dumps([alert]).encode(),
        headers={"Content-Type": "application/json"},
    )
    urllib.request.urlopen(request, timeout=10).close()


def told(webhook):
    """Alerts in the order they were told, with their status; each message counts."""
    return [
        (alert["status"], alert["labels"].get("via", "rule"))
        for message in webhook.taken
        for alert in message["alerts"]
    ]


def open_watch(folder, manager):
    return Watch(
        {
            "store": str(folder / "runs.db"),
            "run_name": RUN,
            "observables": [],
            "exporter": {"enabled": False},
            "alerts": [f"alertmanager://{manager}"],
        }
    )


def say(watch, status, detected_at, **changes):
    transition = make_transition(
        watch.run_id, status=status, detected_at=detected_at, severity=1.5, **changes
    )
    notify(watch, transition)
    watch.store.flush()


@pytest.mark.slow
def test_a_transition_seen_by_run_and_rule_is_told_once(tmp_path, manager, webhook):
    with open_watch(tmp_path, manager) as watch:
        say(watch, TransitionStatus.CONFIRMED, time.time())
        wait_until(lambda: ask(manager, "alerts"), what="the alert", **PATIENCE)
        rule_fires(manager, RUN, "generalisation", watch.run_id)
        rule_fires(manager, "another run", "generalisation", "another")
        wait_until(lambda: len(told(webhook)) >= 2, what="the messages", **PATIENCE)
        time.sleep(4)  # longer than any group waits here
        assert sorted(told(webhook)) == [("firing", "direct"), ("firing", "rule")]
        (own,) = [m for m in webhook.taken if m["alerts"][0]["labels"].get("via") == "direct"]
        (alert,) = own["alerts"]
        assert alert["labels"]["run"] == RUN
        assert alert["labels"]["kind"] == "generalisation"
        assert "val_loss: 2 → nan" in alert["annotations"]["description"]
        inhibited = [a for a in ask(manager, "alerts") if a["status"]["inhibitedBy"]]
        assert [(a["labels"]["run"], a["labels"]["alertname"]) for a in inhibited] == [
            (RUN, "PhasewatchTransition")
        ]


@pytest.mark.slow
def test_the_end_of_a_transition_resolves_its_alert(tmp_path, manager, webhook):
    long_ago = time.time() - 3600
    with open_watch(tmp_path, manager) as watch:
        say(watch, TransitionStatus.CONFIRMED, long_ago)
        wait_until(lambda: told(webhook), what="the alert", **PATIENCE)
        say(watch, TransitionStatus.ENDED, long_ago, end_step=95)
        wait_until(lambda: len(told(webhook)) == 2, what="the end", **PATIENCE)
    assert told(webhook) == [("firing", "direct"), ("resolved", "direct")]
    assert "has ended" in webhook.taken[1]["alerts"][0]["annotations"]["summary"]


def told_kinds(webhook):
    """Status, kind and sender of every alert told, in order."""
    return [
        (alert["status"], alert["labels"]["kind"], alert["labels"].get("via", "rule"))
        for message in webhook.taken
        for alert in message["alerts"]
    ]


@pytest.mark.slow
def test_a_transition_of_another_kind_resolves_the_first_alert_and_fires_its_own(
    tmp_path, manager, webhook
):
    changed = (TransitionKind.SIMPLIFICATION, TransitionKind.GENERALISATION)
    first, second = (kind.value for kind in changed)
    since = time.time() - HOLD_SECONDS + 25  # the first is held, as long as the rule may fire
    with open_watch(tmp_path, manager) as watch:
        say(watch, TransitionStatus.CONFIRMED, since, kind=changed[0])
        wait_until(lambda: told_kinds(webhook), what="the first kind", **PATIENCE)
        rule_fires(manager, RUN, first, watch.run_id, seconds=10)  # it sees the same
        say(watch, TransitionStatus.CONFIRMED, since, kind=changed[1])
        wait_until(lambda: len(told_kinds(webhook)) == 2, what="the second", **PATIENCE)
        rule_fires(manager, RUN, second, watch.run_id)
        wait_until(lambda: len(told_kinds(webhook)) == 3, what="the end of the first", **PATIENCE)
        time.sleep(4)  # longer than any group waits here
        inhibited = {
            (alert["labels"]["kind"], alert["labels"].get("via", "rule"))
            for alert in ask(manager, "alerts")
            if alert["status"]["inhibitedBy"]
        }
    assert told_kinds(webhook) == [
        ("firing", first, "direct"),
        ("firing", second, "direct"),
        ("resolved", first, "direct"),
    ]
    assert inhibited == {(second, "rule")}
    (message,) = [
        m["alerts"][0]
        for m in webhook.taken
        if (m["alerts"][0]["status"], m["alerts"][0]["labels"]["kind"]) == ("firing", second)
    ]
    assert f"told before as {first}" in message["annotations"]["summary"]


@pytest.mark.slow
def test_what_the_detectors_find_arrives_with_its_curve(tmp_path, webhook):
    """The whole way: values, detector, transition, store, sender, Apprise, target."""
    config = {
        "store": str(tmp_path / "runs.db"),
        "run_name": RUN,
        "observables": [],
        "exporter": {"enabled": False},
        "alerts": {"targets": [webhook.url], "grace_seconds": 60.0},
    }
    with Watch(config) as watch:
        for step in range(2000):
            noise = 0.01 * math.sin(1.7 * step)
            late = 3.0 if step < 1000 else 0.02 + 2.98 * math.exp(-(step - 1000) / 30)
            watch.observe(step, {"train_loss": 0.01 + abs(noise) / 10, "val_loss": late + noise})
        watch.drain()
        found = [t for t in watch.transitions if t.status is not TransitionStatus.SUSPECTED]
    assert len(found) == 1
    (body,) = webhook.taken
    assert body["title"].startswith(f"{RUN}: generalisation, from step ")
    assert f"Id: {found[0].id}" in body["message"]
    how_much = r"^How much: .*; val_loss: (3|2\.9\d*) → [\d.]+ nats$"
    assert re.search(how_much, body["message"], re.MULTILINE)
    (picture,) = body["attachments"]
    image = imread(io.BytesIO(base64.b64decode(picture["base64"])))
    assert image.shape[1] == 1350
    assert len(np.unique(image[..., :3].reshape(-1, 3), axis=0)) > 50, "a curve, and not a blank"
