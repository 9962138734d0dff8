"""The commands about alerts, as a user's shell sees them."""

import json
import sys

import pytest

from phasewatch.monitor.cli import main
from phasewatch.monitor.config.alerts import AlertsConfig, resolve_targets
from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.transitions import TransitionStatus
from phasewatch.monitor.store.store import Store
from support.records import make_transition
from support.targets import Answer, http_target

pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")

SECRET = "T0PSECRET"


@pytest.fixture
def target():
    with http_target() as target:
        yield target


@pytest.fixture
def phasewatch(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "240")
    monkeypatch.delenv("PHASEWATCH_ALERTS", raising=False)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["phasewatch", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main.main()
        said = capsys.readouterr()
        assert SECRET not in said.out + said.err
        return ended.value.code or 0, said.out, said.err

    return call


@pytest.fixture
def path(tmp_path, target):
    """A store with two alerts that wait for `target`."""
    path = tmp_path / "runs.db"
    config = AlertsConfig(targets=(f"{target.url}/{SECRET}",))
    recipients = tuple(t.recipient(config) for t in resolve_targets(config))
    with Store(path) as store:
        store.begin_run(name="demo", run_id="demo")
        for name in ("a", "b"):
            transition = make_transition(
                "demo", status=TransitionStatus.CONFIRMED, transition_id=name
            )
            store.add_transition(transition, recipients)
        store.end_run("demo", 1, RunState.FINISHED)
    return path


def test_a_sample_goes_to_every_target_with_a_picture(phasewatch, target, monkeypatch):
    manager = f"alertmanager://127.0.0.1:{target.port}/{SECRET}"
    monkeypatch.setenv("PHASEWATCH_ALERTS", f"{target.url}\n{manager}")
    code, out, _ = phasewatch("test-alert")
    assert code == 0
    first, second = out.splitlines()
    assert first.startswith("1-json-")
    assert "delivered in" in first
    assert second.startswith("2-alertmanager-")
    message, (alert,) = target.taken
    assert message["title"] == "a test of phasewatch, not a run: generalisation, from step 1,000"
    assert message["attachments"]
    assert alert["labels"]["alertname"] == "PhasewatchTransition"


def test_what_failed_is_told_by_target_and_by_exit_code(phasewatch, target, tmp_path):
    target.answers += [Answer(403)]
    config = tmp_path / "c.yaml"
    config.write_text(
        f"alerts: ['{target.url}/{SECRET}', 'slack://{SECRET}', '{target.url}/good']\n"
    )
    code, out, _ = phasewatch("test-alert", "--config", config, "--json")
    assert code == 1
    bad, unusable, good = json.loads(out)
    assert (bad["ok"], bad["error"]) == (False, "HTTP 403")
    assert "Apprise cannot use it" in unusable["error"]
    assert good["ok"]


def test_without_targets_it_says_where_to_put_them(phasewatch):
    code, _, err = phasewatch("test-alert")
    assert code == 1
    assert "PHASEWATCH_ALERTS" in err


def test_the_outbox_lists_what_waits(phasewatch, path):
    code, out, _ = phasewatch("outbox", "--store", path)
    assert code == 0
    assert out.count("waiting") == 2
    assert out.count("1-json-") == 2
    _, out, _ = phasewatch("outbox", "--store", path, "--json")
    first, second = json.loads(out)
    assert (first["run"], first["state"], first["tries"]) == ("demo", "confirmed", 0)
    assert second["id"] > first["id"]


def test_a_flush_sends_what_waits_in_order(phasewatch, path, target, monkeypatch):
    monkeypatch.setenv("PHASEWATCH_ALERTS", f"{target.url}/{SECRET}")
    code, out, _ = phasewatch("outbox", "--flush", "--store", path)
    assert (code, target.ids) == (0, ["a", "b"])
    assert "no alerts wait" in out
    code, _, _ = phasewatch("outbox", "--flush", "--store", path)
    assert (code, len(target.seen)) == (0, 2)
    _, out, _ = phasewatch("outbox", "--all", "--store", path)
    assert out.count("sent") >= 2


def test_a_flush_that_fails_says_why_and_loses_nothing(phasewatch, path, target, monkeypatch):
    monkeypatch.setenv("PHASEWATCH_ALERTS", f"{target.url}/{SECRET}")
    target.always = Answer(500)
    code, out, _ = phasewatch("outbox", "--flush", "--store", path)
    target.always = None
    assert code == 1
    assert "HTTP 500" in out
    assert out.count("waiting") == 2
    code, _, _ = phasewatch("outbox", "--flush", "--store", path)
    assert (code, target.ids) == (0, ["a", "b"])


def test_what_waits_for_another_target_is_left_waiting(phasewatch, path, target, monkeypatch):
    with http_target() as other:
        monkeypatch.setenv("PHASEWATCH_ALERTS", f"alertmanager://127.0.0.1:{other.port}")
        code, out, _ = phasewatch("outbox", "--flush", "--store", path)
        assert other.seen == []
    assert code == 1
    assert out.count("waiting") == 2


def test_a_message_can_be_given_up(phasewatch, path, target, monkeypatch):
    monkeypatch.setenv("PHASEWATCH_ALERTS", f"{target.url}/{SECRET}")
    code, _, _ = phasewatch("outbox", "--drop", 1, "--flush", "--store", path)
    assert (code, target.ids) == (0, ["b"])
    code, _, err = phasewatch("outbox", "--drop", 1, "--store", path)
    assert code == 1
    assert "no message with this id waits" in err
