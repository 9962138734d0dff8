"""Alerts and faults: a run, its sender and targets that fail; nothing is lost, training goes on.

Each test has a process of its own that sends; most take seconds.
"""

import json
import os
import signal
import threading
import time

import pytest

from phasewatch.monitor.config.monitor import MonitorConfig
from phasewatch.monitor.core.errors import ConfigError
from phasewatch.monitor.core.transitions import TransitionStatus
from phasewatch.monitor.run.watch import Watch
from phasewatch.monitor.store.store import Store
from support.records import make_transition, start_python, wait_until
from support.targets import Answer, FailingSmtp, HttpTarget, free_port, http_target, notify

PATIENCE = {"seconds": 60.0}
SECRET = "T0PSECRET"


def settings(folder, *urls, **alerts):
    return {
        "store": str(folder / "runs.db"),
        "run_name": "demo",
        "observables": [],
        "exporter": {"enabled": False},
        "alerts": {"targets": urls, "grace_seconds": 5.0, "picture": False} | alerts,
    }


def confirm(watch, *names, status=TransitionStatus.CONFIRMED):
    for name in names:
        notify(watch, make_transition(watch.run_id, status=status, transition_id=name))
    watch.store.flush()


def hear(watch):
    """Let the watch hear from its sender, as each drain does."""
    watch._sinks.refresh()
    return watch.health


@pytest.fixture
def target():
    with http_target() as target:
        yield target


@pytest.mark.slow
def test_a_transition_arrives_with_its_picture_and_is_counted(tmp_path, target):
    with Watch(settings(tmp_path, target.url, picture=True)) as watch:
        for step in range(50):
            watch.observe(step, {"val_loss": 2.0})
        watch.drain()
        threads = threading.active_count()
        confirm(watch, "t1")
        wait_until(lambda: target.taken, what="the alert", **PATIENCE)
        assert threading.active_count() == threads, "alerts need no thread in training"
        wait_until(lambda: hear(watch).alert_sent == 1, what="the count", **PATIENCE)
        assert (watch.health.alert_queue, watch.health.alert_failures) == (0, 0)
    (body,) = target.taken
    assert body["title"] == "demo: generalisation, from step 80"
    assert "val_loss: 2 → nan nats" in body["message"]
    (picture,) = body["attachments"]
    assert picture["mimetype"] == "image/png"


def test_no_process_is_started_before_there_is_something_to_send(tmp_path, target):
    with Watch(settings(tmp_path, target.url)) as watch:
        confirm(watch, "t1", status=TransitionStatus.SUSPECTED)
        assert watch._sinks._alerts._process is None
    assert target.seen == []


@pytest.mark.slow
def test_the_end_of_a_run_waits_for_its_last_alert(tmp_path, target):
    with Watch(settings(tmp_path, target.url, grace_seconds=30.0)) as watch:
        confirm(watch, "t1")
    assert target.ids == ["t1"]
    assert (watch.health.alert_queue, watch.health.alert_sent) == (0, 1)


@pytest.mark.slow
def test_what_a_down_target_missed_is_sent_by_the_next_run_in_order_and_once(tmp_path, caplog):
    port = free_port()
    config = settings(tmp_path, f"json://127.0.0.1:{port}/hook", grace_seconds=2.0)
    names = [f"t{number}" for number in range(5)]
    with Watch(config) as watch:
        confirm(watch, *names)
        wait_until(lambda: hear(watch).alert_failures, what="a failed try", **PATIENCE)
        assert watch.health.alert_queue == 5
    assert "5 alerts are not delivered yet" in caplog.text
    with http_target(port) as target, Watch(config) as watch:
        wait_until(lambda: len(target.taken) == 5, what="the alerts", **PATIENCE)
        wait_until(lambda: hear(watch).alert_queue == 0, what="an empty queue", **PATIENCE)
        confirm(watch, "t5")
        wait_until(lambda: len(target.taken) == 6, what="its own alert", **PATIENCE)
    assert target.ids == [*names, "t5"]
    assert len(target.seen) == 6


@pytest.mark.slow
def test_a_target_that_comes_back_gets_what_waited(tmp_path):
    port = free_port()
    with Watch(settings(tmp_path, f"json://127.0.0.1:{port}/hook", grace_seconds=30.0)) as watch:
        confirm(watch, "a", "b")
        wait_until(lambda: hear(watch).alert_failures, what="a failed try", **PATIENCE)
        with http_target(port) as target:
            wait_until(lambda: len(target.taken) == 2, what="the alerts", **PATIENCE)
    assert target.ids == ["a", "b"]


KILLED = """
import sys, json, os, signal, time
from phasewatch.monitor.run.watch import Watch
from support.records import make_transition
from support.targets import notify
from phasewatch.monitor.core.transitions import TransitionStatus
watch = Watch(json.loads(sys.argv[1]))
watch.start()
for name in ("a", "b"):
    notify(watch, make_transition(
        watch.run_id, status=TransitionStatus.CONFIRMED, transition_id=name))
watch.store.flush()
sender = watch._sinks._alerts._process.pid
if sys.argv[2] == "both":  # as when the machine fails
    os.kill(sender, signal.SIGKILL)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_what_was_stored_before_a_kill_is_sent_by_the_next_process(tmp_path, target):
    config = settings(tmp_path, target.url)
    child = start_python(KILLED, json.dumps(config), "both")
    _, err = child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL, err
    assert target.taken == []
    with Watch(config):
        wait_until(lambda: len(target.taken) == 2, what="the alerts", **PATIENCE)
    assert target.ids == ["a", "b"]
    assert len(target.seen) == 2


@pytest.mark.slow
def test_a_sender_outlives_a_killed_training_for_what_is_left_and_then_ends(tmp_path, target):
    target.answers.append(Answer(500))
    child = start_python(KILLED, json.dumps(settings(tmp_path, target.url)), "training")
    child.communicate(timeout=60)
    wait_until(lambda: len(target.taken) == 2, what="the alerts", **PATIENCE)
    assert sorted(target.ids) == ["a", "b"]  # one that is refused holds up no other


FAULTS = {
    "500": [Answer(500)] * 2,
    "429": [Answer(429, {"Retry-After": "2"})],
    "closes": [Answer(drop=True)] * 2,
    "hangs": [Answer(hang=30.0, drop=True)],
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_lost_where_a_target_fails_for_a_while(tmp_path, target, fault):
    target.answers.extend(FAULTS[fault])
    num_faults = len(FAULTS[fault])
    with Watch(settings(tmp_path, target.url, grace_seconds=40.0)) as watch:
        confirm(watch, "a", "b", "c")
        wait_until(lambda: len(target.taken) == 3, what="the alerts", **PATIENCE)
    assert sorted(target.ids) == ["a", "b", "c"]
    assert len(target.seen) == 3 + num_faults  # tried again only where no answer came, or a no
    assert watch.health.alert_failures == num_faults
    if fault == "429":
        assert target.seen[1][0] - target.seen[0][0] >= 2.0


@pytest.mark.slow
def test_a_repeat_follows_only_a_lost_acknowledgement(tmp_path, target):
    """The target takes the message, and its answer is lost: only then does it come twice."""

    target.answers.append(Answer(drop=True))
    with Watch(settings(tmp_path, target.url, grace_seconds=30.0)) as watch:
        confirm(watch, "a", "b")
    bodies = [body["message"].rsplit("Id: ", 1)[1] for _, _, body in target.seen]
    assert bodies == ["a", "a", "b"]


@pytest.mark.slow
def test_a_store_that_somebody_removes_loses_and_doubles_no_alert(tmp_path, target):
    """One alert was delivered before, one waits, and one comes after it; nobody resumes."""
    with Watch(settings(tmp_path, target.url, grace_seconds=40.0)) as watch:
        confirm(watch, "told")
        wait_until(lambda: target.taken, what="the first alert", **PATIENCE)
        target.answers.extend([Answer(503)] * 3)
        confirm(watch, "waiting")
        wait_until(lambda: len(target.seen) > 1, what="a refusal", **PATIENCE)
        for file in tmp_path.glob("runs.db*"):
            file.unlink()
        confirm(watch, "later")
        wait_until(lambda: len(target.taken) >= 3, what="the other alerts", **PATIENCE)
    assert sorted(target.ids) == ["later", "told", "waiting"]


@pytest.mark.slow
def test_one_target_that_hangs_holds_up_no_other(tmp_path, target):
    with http_target() as hanging:
        hanging.always = Answer(hang=60.0, drop=True)
        with Watch(settings(tmp_path, hanging.url, target.url, grace_seconds=0.0)) as watch:
            confirm(watch, "a", "b")
            wait_until(lambda: hanging.seen, what="the hanging try", **PATIENCE)
            wait_until(lambda: len(target.taken) == 2, what="the alerts", **PATIENCE)
            started = time.monotonic()
        assert time.monotonic() - started < 20.0, "the end of a run waits no longer than it may"
        assert watch.health.alert_queue == 2
    assert target.ids == ["a", "b"]


@pytest.mark.slow
def test_a_killed_sender_is_replaced(tmp_path, target, monkeypatch, caplog):
    monkeypatch.setattr("phasewatch.monitor.alerts.launcher.RESTART_SECONDS", 0.0)
    target.always = Answer(500)
    with Watch(settings(tmp_path, target.url, grace_seconds=30.0)) as watch:
        confirm(watch, "a")
        wait_until(lambda: target.seen, what="a try", **PATIENCE)
        process = watch._sinks._alerts._process
        process.kill()
        process.wait()
        target.always = None
        wait_until(lambda: hear(watch) and target.taken, what="the alert", **PATIENCE)
    assert target.ids == ["a"]
    assert "the process that sends alerts ended" in caplog.text


@pytest.mark.slow
def test_a_mail_with_a_picture_waits_for_a_server_that_refuses(tmp_path):
    smtp = FailingSmtp()
    try:
        with Watch(settings(tmp_path, smtp.url, picture=True, grace_seconds=0.0)) as watch:
            watch.observe(1, {"val_loss": 2.0})
            confirm(watch, "a")
            wait_until(lambda: hear(watch).alert_failures, what="a failed try", **PATIENCE)
        assert smtp.num_mails >= 1
        assert smtp.largest > 10_000, "the picture went along"
        assert watch.health.alert_queue == 1
    finally:
        smtp.close()


@pytest.mark.slow
def test_a_changed_secret_gets_what_waited_for_the_old_one(tmp_path):
    port = free_port()
    with Watch(settings(tmp_path, f"json://127.0.0.1:{port}/old", grace_seconds=0.0)) as watch:
        confirm(watch, "a")
        state = watch.state_dict()
    changed = settings(tmp_path, f"json://127.0.0.1:{port}/new", grace_seconds=1.0)
    with http_target(port) as target:
        with Watch(changed):  # another run, perhaps another team's
            time.sleep(2.0)
        assert target.seen == []
        resumed = Watch(changed | {"alerts": changed["alerts"] | {"grace_seconds": 30.0}})
        resumed.load_state_dict(state)
        with resumed:
            wait_until(lambda: target.taken, what="the alert", **PATIENCE)
    assert target.ids == ["a"]


@pytest.mark.slow
def test_secrets_are_in_no_file_log_or_argument(tmp_path, target, caplog):
    caplog.set_level("DEBUG")
    target.always = Answer(500)
    url = f"json://me:{SECRET}@127.0.0.1:{target.port}/{SECRET}/x"
    with Watch(settings(tmp_path, url, grace_seconds=0.0)) as watch:
        confirm(watch, "a")
        wait_until(lambda: hear(watch).alert_failures, what="a failed try", **PATIENCE)
        pid = watch._sinks._alerts._process.pid
        if os.path.exists("/proc/self/cmdline"):
            with open(f"/proc/{pid}/cmdline", "rb") as arguments:
                assert SECRET.encode() not in arguments.read()
            with open(f"/proc/{pid}/environ", "rb") as environment:
                assert SECRET.encode() not in environment.read()
    assert SECRET not in caplog.text
    assert "HTTP 500" in caplog.text
    for path in tmp_path.iterdir():
        assert SECRET.encode() not in path.read_bytes()


@pytest.mark.slow
def test_a_target_that_cannot_be_used_is_refused_before_the_first_step(tmp_path):
    watch = Watch(settings(tmp_path, f"slack://{SECRET}"))
    with pytest.raises(ConfigError, match=r"1-slack-.*Apprise cannot use it") as caught:
        watch.start()
    assert SECRET not in str(caught.value)
    with Store(tmp_path / "runs.db") as store:
        assert store.run("demo").state == "failed"


def test_a_store_in_memory_cannot_keep_alerts(tmp_path):
    config = settings(tmp_path, "json://127.0.0.1") | {"store": "sqlite://"}
    with pytest.raises(ConfigError, match="kept in memory"):
        Watch(config).start()


def test_a_variable_that_is_not_set_is_told_at_once(tmp_path, monkeypatch):
    monkeypatch.delenv("NO_SUCH_ALERTS", raising=False)
    with pytest.raises(ConfigError, match="NO_SUCH_ALERTS"):
        Watch(settings(tmp_path, "env:NO_SUCH_ALERTS"))


@pytest.mark.slow
def test_the_stored_configuration_holds_no_url(tmp_path, target):
    url = target.url + "/" + SECRET
    with Watch(settings(tmp_path, url)):
        pass
    with Store(tmp_path / "runs.db") as store:
        assert SECRET not in json.dumps(store.run("demo").config)
    assert isinstance(target, HttpTarget)
    assert MonitorConfig.load({"alerts": [url]}).alerts.targets


@pytest.mark.slow
def test_a_sender_without_work_ends_and_the_next_message_starts_another(
    tmp_path, target, monkeypatch
):
    monkeypatch.setattr("phasewatch.monitor.alerts.launcher.IDLE_SECONDS", 0.5)
    monkeypatch.setattr("phasewatch.monitor.alerts.launcher.RESTART_SECONDS", 0.0)
    with Watch(settings(tmp_path, target.url)) as watch:
        confirm(watch, "a")
        wait_until(lambda: target.taken, what="the alert", **PATIENCE)
        first = watch._sinks._alerts._process
        wait_until(lambda: first.poll() is not None, what="the end of the sender", **PATIENCE)
        assert first.returncode == 0
        hear(watch)
        confirm(watch, "b")
        wait_until(lambda: hear(watch) and len(target.taken) == 2, what="the next", **PATIENCE)
        wait_until(lambda: hear(watch).alert_queue == 0, what="an empty queue", **PATIENCE)
        assert watch.health.alert_sent == 2
    assert target.ids == ["a", "b"]


def test_a_run_goes_on_where_no_sender_can_be_started(tmp_path, target, monkeypatch, caplog):
    def fail(*_, **__):
        raise OSError(12, "Cannot allocate memory")

    with Watch(settings(tmp_path, target.url)) as watch:
        monkeypatch.setattr("phasewatch.monitor.alerts.launcher.subprocess.Popen", fail)
        confirm(watch, "a")
        assert hear(watch).alert_queue == 1
    assert "no process can be started" in caplog.text
    assert "1 alerts are not delivered yet" in caplog.text
    with Store(tmp_path / "runs.db") as store:
        assert [m.delivery for m in store.outbox.messages()] == ["waiting"]
