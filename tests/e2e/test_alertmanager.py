"""What a real Alertmanager with the shipped routes tells, and what it keeps to itself."""

import json
import time
import urllib.request
from functools import partial

import pytest

from phasewatch.monitor.operations.doctor_links import BrokenError
from phasewatch.monitor.operations.doctor_servers import Alertmanager
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


def test_the_doctor_sees_that_nobody_can_be_told(tmp_path):
    need_servers()
    nobody = Inbox(url="http://127.0.0.1:1/")
    with quick_stack(tmp_path / "stack", nobody) as stack:
        send(stack, "PhasewatchRunCrashed/a")
        alertmanager = Alertmanager(stack.alertmanager_url)
        assert alertmanager.receiver() == "webhook (webhook)"

        def fails():
            try:
                alertmanager.receiver()
            except BrokenError as error:
                return error.found == "every notification so far has failed: webhook"
            return False

        wait_until(fails, seconds=90, what="a failed notification")


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
