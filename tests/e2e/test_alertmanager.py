"""What a real Alertmanager with the shipped routes tells, and what it keeps to itself."""

import json
import time
import urllib.request
from functools import partial

import pytest

from phasewatch.monitor.bounded_http import fetch
from phasewatch.monitor.doctor_end import EndToEnd
from phasewatch.monitor.doctor_links import BrokenError
from phasewatch.monitor.doctor_servers import Alertmanager
from support.alerting import Inbox, need_servers, quick_stack
from support.records import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def send(stack, *alerts):
    """Send alerts, as "Name/run" or such a text and further labels, all at once."""
    body = []
    for alert in alerts:
        name, further = (alert, {}) if isinstance(alert, str) else alert
        name, _, run = name.partition("/")
        body.append({"labels": {"alertname": name, "run": run, **further}})
    request = urllib.request.Request(
        f"{stack.alertmanager_url}/api/v2/alerts",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200


@pytest.fixture
def post(stack):
    """Sends alerts to the stack."""
    return partial(send, stack)


def broken(look):
    with pytest.raises(BrokenError) as caught:
        look()
    return caught.value


def test_the_doctor_sees_that_nobody_can_be_told(tmp_path):
    need_servers()
    nobody = Inbox(url="http://127.0.0.1:1/")
    with quick_stack(tmp_path / "stack", nobody) as stack:
        alertmanager = Alertmanager(stack.alertmanager_url, [])
        assert alertmanager.route() == "webhook (webhook)"
        assert "cannot be reached: 127.0.0.1:1 of webhook" in broken(alertmanager.receiver).found
        found = broken(EndToEnd(stack.alertmanager_url, 20.0).run)
        assert found.found == "webhook did not take the test alert"


def test_the_doctor_proves_delivery_and_leaves_nothing_behind(stack, inbox):
    told = EndToEnd(stack.alertmanager_url).run()
    assert told == "a marked test alert was taken by webhook"
    (alert,) = {a["fingerprint"]: a for a in inbox.alerts(kind="test")}.values()
    assert "nothing has happened" in alert["annotations"]["summary"]
    resolved = lambda: inbox.alerts("resolved", kind="test")  # noqa: E731
    wait_until(resolved, seconds=90, what="the end of the test alert")


def test_the_doctor_sees_a_silence_before_and_by_a_test_alert(stack):
    now = time.time()
    silence = {
        "matchers": [{"name": "alertname", "value": "Phasewatch.*", "isRegex": True}],
        "startsAt": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now - 5)),
        "endsAt": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now + 600)),
        "createdBy": "somebody",
        "comment": "a test",
    }
    made = fetch(
        f"{stack.alertmanager_url}/api/v2/silences",
        data=json.dumps(silence).encode(),
        headers={"Content-Type": "application/json"},
    )
    number = json.loads(made.body)["silenceID"]
    try:
        found = broken(Alertmanager(stack.alertmanager_url, []).silences)
        assert number in found.found
        assert f"amtool silence expire {number}" in found.remedy
        wait_until(
            lambda: "silenced by" in broken(EndToEnd(stack.alertmanager_url, 3.0).run).found,
            seconds=30,
            what="the silence",
        )
    finally:
        url = f"{stack.alertmanager_url}/api/v2/silence/{number}"
        assert fetch(url, method="DELETE").status == 200


def told(inbox, *expected):
    """Alerts that are told, once everything that is expected has come, and a while later."""

    def come():
        return sorted(
            f"{alert['labels']['alertname']}/{alert['labels']['run']}"
            for alert in {alert["fingerprint"]: alert for alert in inbox.alerts()}.values()
        )

    wait_until(lambda: set(expected) <= set(come()), seconds=90, what=str(expected))
    time.sleep(4)  # longer than any wait for a group here
    return come()


def test_a_crash_silences_what_follows_from_it_for_its_own_run(post, inbox):
    post(
        "PhasewatchRunCrashed/a",
        "PhasewatchRunStalled/a",
        "PhasewatchEstimatesNotConverging/a",
        "PhasewatchRunStalled/b",
    )
    expected = ["PhasewatchRunCrashed/a", "PhasewatchRunStalled/b"]
    assert told(inbox, *expected) == expected


def test_a_failure_silences_that_the_target_goes(post, inbox):
    post("PhasewatchRunFailed/a", "PhasewatchRunVanished/a", "PhasewatchNonFinite/a")
    assert told(inbox, "PhasewatchRunFailed/a") == ["PhasewatchRunFailed/a"]


def test_nan_silences_estimates_that_fail_on_it(post, inbox):
    post("PhasewatchNonFinite/a", "PhasewatchMeasurementsFailing/a", "PhasewatchStoreDropping/a")
    expected = ["PhasewatchNonFinite/a", "PhasewatchStoreDropping/a"]
    assert told(inbox, *expected) == expected


def test_a_transition_that_the_run_sends_itself_is_not_told_twice(post, inbox):
    kind = {"kind": "generalisation"}
    post(
        ("PhasewatchTransition/a", kind | {"via": "direct", "transition": "1"}),
        ("PhasewatchTransition/a", kind | {"instance": "node:9877"}),
        ("PhasewatchTransition/b", kind | {"instance": "node:9878"}),
    )
    expected = ["PhasewatchTransition/a", "PhasewatchTransition/b"]
    assert told(inbox, *expected) == expected
    (alert,) = inbox.alerts(run="a")
    assert alert["labels"]["via"] == "direct"


def test_what_happens_to_one_run_is_one_message_and_a_transition_its_own(post, inbox):
    post(
        "PhasewatchRunStalled/a",
        "PhasewatchNonFinite/a",
        "PhasewatchRunStalled/b",
        ("PhasewatchTransition/a", {"kind": "generalisation"}),
    )
    told(inbox, "PhasewatchRunStalled/a", "PhasewatchTransition/a", "PhasewatchRunStalled/b")
    groups = [
        sorted(f"{alert['labels']['alertname']}/{alert['labels']['run']}" for alert in m["alerts"])
        for _, m in inbox.messages
    ]
    assert ["PhasewatchNonFinite/a", "PhasewatchRunStalled/a"] in groups
    assert ["PhasewatchRunStalled/b"] in groups
    assert ["PhasewatchTransition/a"] in groups
