"""What Alertmanager's API is sent."""

from dataclasses import replace

import pytest

from phasewatch.monitor.alerts.alertmanager import (
    HOLD_SECONDS,
    check_alertmanager,
    payload,
    send_to_alertmanager,
)
from phasewatch.monitor.alerts.delivery import DeliveryError, retry_after_seconds
from phasewatch.monitor.core.metrics import label_value
from phasewatch.monitor.core.transitions import TransitionKind, TransitionStatus
from support import records
from support.targets import Answer, free_port, http_target

DETECTED = 1_700_000_090.5
RUN = 'odd "run"\n' + "x" * 500


def make_alert(state=TransitionStatus.CONFIRMED, *, told_as=(), **changes):
    alert = records.make_alert(RUN, state=state, **changes)
    return replace(alert, told_as=told_as, link="u")


def test_labels_are_those_of_the_rule():
    (content,) = payload(make_alert(), DETECTED + 10)
    assert content["labels"] == {
        "alertname": "PhasewatchTransition",
        "run": label_value(RUN),
        "run_id": "demo",
        "kind": "generalisation",
        "severity": "info",
        "transition": "t1",
        "via": "direct",
    }
    assert content["annotations"] == {"summary": "T", "description": "B"}
    assert content["startsAt"] == "2023-11-14T22:14:50.500000+00:00"
    assert "endsAt" not in content


def test_an_instability_has_the_name_and_severity_of_its_rule():
    labels = payload(make_alert(kind=TransitionKind.INSTABILITY), DETECTED)[0]["labels"]
    assert (labels["alertname"], labels["severity"]) == ("PhasewatchInstability", "warning")


def test_an_end_is_told_no_sooner_than_the_rule_ends():
    ended = make_alert(TransitionStatus.ENDED)
    ((soon,), (late,)) = (payload(ended, DETECTED + s) for s in (1, 2 * HOLD_SECONDS))
    assert soon["endsAt"] == "2023-11-14T22:19:50.500000+00:00"
    assert late["endsAt"] == "2023-11-14T22:24:50.500000+00:00"
    assert soon["labels"] == late["labels"] == payload(make_alert(), DETECTED)[0]["labels"]


def test_a_correction_ends_the_alert_of_the_kind_that_was_told():
    kinds = (TransitionKind.SIMPLIFICATION, TransitionKind.GENERALISATION)
    wrong, right = payload(make_alert(told_as=kinds), DETECTED + 10)
    assert wrong["endsAt"] == "2023-11-14T22:19:50.500000+00:00"  # as long as it mutes the rule
    assert "endsAt" not in right
    assert right["labels"] == payload(make_alert(), DETECTED)[0]["labels"]
    assert wrong["labels"] == right["labels"] | {"kind": "simplification"}


def test_it_is_posted_as_one_alert():
    with http_target() as target:
        send_to_alertmanager(f"alertmanager://127.0.0.1:{target.port}/prefix/", make_alert())
        ((_, path, body),) = target.seen
    assert path == "/prefix/api/v2/alerts"
    assert [item["labels"]["run"] for item in body] == [label_value(RUN)]


def test_a_refusal_says_its_status_and_when_to_come_back():
    with http_target() as target:
        url = f"alertmanager://u:p4ssw0rd@127.0.0.1:{target.port}"
        target.answers.append(Answer(503, {"Retry-After": "30"}))
        with pytest.raises(DeliveryError, match="HTTP 503") as caught:
            send_to_alertmanager(url, make_alert())
        assert caught.value.retry_after == 30
        target.answers.append(Answer(drop=True))
        with pytest.raises(DeliveryError) as caught:
            send_to_alertmanager(url, make_alert())
        assert "p4ssw0rd" not in str(caught.value)


def test_nobody_there_is_a_failed_delivery():
    with pytest.raises(DeliveryError, match="connection refused"):
        send_to_alertmanager(f"alertmanager://127.0.0.1:{free_port()}", make_alert())


def test_an_address_is_checked():
    assert check_alertmanager("alertmanager://host:9093") == ""
    assert check_alertmanager("alertmanagers://[::1]") == ""
    assert "no host" in check_alertmanager("alertmanager://")
    assert "cannot be read" in check_alertmanager("alertmanager://host:port")


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("5", 5), ("-3", 0), ("99999999", 3600), (None, None), ("nan", None), ("x", None)],
)
def test_retry_after_is_read_as_seconds(header, seconds):
    assert retry_after_seconds(header) == seconds


def test_retry_after_may_be_a_date():
    assert retry_after_seconds("Fri, 01 Jan 2100 00:00:00 GMT") == 3600
    assert retry_after_seconds("Fri, 01 Jan 1999 00:00:00 GMT") == 0
