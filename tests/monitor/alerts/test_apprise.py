"""Apprise is told what to send, and asked why it was not taken."""

import base64
from dataclasses import replace

import pytest

from phasewatch.monitor.alerts.apprise import check_apprise, send_by_apprise
from phasewatch.monitor.alerts.delivery import DeliveryError
from phasewatch.monitor.core.transitions import TransitionKind, TransitionStatus
from support import records
from support.targets import Answer, free_port, http_target

# Of a package that a plugin of Apprise looks for.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")


def make_alert(state=TransitionStatus.CONFIRMED, picture=None, **changes):
    alert = records.make_alert(state=state, **changes)
    return replace(alert, title="T <b>", body="line *one*\nline two", picture=picture)


def test_title_text_and_picture_arrive_as_they_are(tmp_path):
    picture = tmp_path / "p.png"
    picture.write_bytes(b"\x89PNG")
    with http_target() as target:
        send_by_apprise(target.url, make_alert(picture=picture))
        (body,) = target.taken
    assert (body["title"], body["message"]) == ("T <b>", "line *one*\nline two")
    assert body["type"] == "info"
    (attached,) = body["attachments"]
    assert base64.b64decode(attached["base64"]) == b"\x89PNG"
    assert attached["mimetype"] == "image/png"


def test_the_type_tells_good_news_from_bad():
    with http_target() as target:
        send_by_apprise(target.url, make_alert(kind=TransitionKind.INSTABILITY))
        send_by_apprise(target.url, make_alert(TransitionStatus.ENDED))
        assert [body["type"] for body in target.taken] == ["warning", "success"]


def test_a_refusal_says_its_status_and_when_to_come_back():
    with http_target() as target:
        target.answers.append(Answer(429, {"Retry-After": "17"}))
        with pytest.raises(DeliveryError, match="HTTP 429") as caught:
            send_by_apprise(target.url, make_alert())
        assert caught.value.retry_after == 17
        target.answers.append(Answer(500))
        with pytest.raises(DeliveryError, match="HTTP 500") as caught:
            send_by_apprise(target.url, make_alert())
        assert caught.value.retry_after is None


def test_no_answer_is_told_without_secrets():
    with http_target() as target:
        target.answers.append(Answer(drop=True))
        with pytest.raises(DeliveryError) as caught:
            send_by_apprise(target.url + "/T0PSECRET?pass=AND_THIS", make_alert())
    with pytest.raises(DeliveryError) as refused:
        send_by_apprise(f"json://me:T0PSECRET@127.0.0.1:{free_port()}", make_alert())
    for error in (caught, refused):
        assert str(error.value)
        assert "T0PSECRET" not in str(error.value)
        assert "AND_THIS" not in str(error.value)


def test_a_url_is_checked_without_showing_it():
    assert check_apprise("json://localhost") == ""
    for wrong in ("slack://T0PSECRET", "nosuch://T0PSECRET", "mailto://me:T0PSECRET@h?from=x"):
        reason = check_apprise(wrong)
        assert reason.startswith("Apprise cannot use it")
        assert "T0PSECRET" not in reason
