"""What strangers answer takes bounded time and space, and nobody is followed anywhere."""

import pytest

from phasewatch.monitor.bounded_http import NoAnswerError, fetch
from phasewatch.monitor.sinks import alertmanager
from phasewatch.monitor.sinks import apprise as apprise_sink
from phasewatch.monitor.sinks.delivery import DeliveryError
from support.records import make_alert
from support.strangers import babble, cut, drip_body, drip_head, flood, hang, redirect_to, stranger
from support.targets import free_port

pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")

SECRET = "pw-S3CRET"


@pytest.mark.parametrize("behave", [drip_head, drip_body, hang])
def test_what_never_ends_ends_at_the_deadline(behave):
    with (
        stranger(behave) as (port, _),
        pytest.raises(NoAnswerError, match=r"no full answer in 0\.5"),
    ):
        fetch(f"http://127.0.0.1:{port}/", seconds=0.5)


def test_a_flood_is_read_up_to_its_bound():
    with stranger(flood) as (port, _):
        answer = fetch(f"http://127.0.0.1:{port}/", seconds=30.0, max_bytes=100_000)
    assert (answer.status, len(answer.body)) == (200, 100_000)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_an_answer_and_is_not_followed(status):
    with stranger(drip_head) as (elsewhere, asked):
        there = redirect_to(f"http://127.0.0.1:{elsewhere}/", status)
        with stranger(there) as (port, _):
            answer = fetch(
                f"http://127.0.0.1:{port}/", data=b"x", headers={"Authorization": SECRET}
            )
    assert answer.status == status
    assert asked == []


@pytest.mark.parametrize(("behave", "said"), [(cut, "not by HTTP"), (babble, "not by HTTP")])
def test_what_is_no_http_is_named(behave, said):
    with stranger(behave) as (port, _), pytest.raises(NoAnswerError, match=said):
        fetch(f"http://127.0.0.1:{port}/")


def test_refusal_name_and_tls_are_told_apart():
    with pytest.raises(NoAnswerError, match="connection refused"):
        fetch(f"http://127.0.0.1:{free_port()}/")
    with pytest.raises(NoAnswerError, match="DNS"):
        fetch("http://no-such-host.invalid/")
    with stranger(babble) as (port, _), pytest.raises(NoAnswerError, match="TLS"):
        fetch(f"https://127.0.0.1:{port}/")


# Targets ----------------------------------------------------------------------------------------


def by_alertmanager(port):
    alertmanager.send_to_alertmanager(f"alertmanager://me:{SECRET}@127.0.0.1:{port}", make_alert())


def by_apprise(port):
    apprise_sink.send_by_apprise(f"json://me:{SECRET}@127.0.0.1:{port}/hook", make_alert())


@pytest.fixture(params=["alertmanager", "apprise"])
def send(request, monkeypatch):
    monkeypatch.setattr(alertmanager, "TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(apprise_sink, "SEND_SECONDS", 0.5)
    return by_alertmanager if request.param == "alertmanager" else by_apprise


def test_a_target_that_redirects_has_not_taken_it_and_gets_nothing_elsewhere(send):
    with stranger(drip_head) as (elsewhere, asked):
        there = redirect_to(f"http://127.0.0.1:{elsewhere}/", 307)
        with stranger(there) as (port, _), pytest.raises(DeliveryError, match="HTTP 307") as caught:
            send(port)
    assert caught.value.has_answered
    assert asked == []


@pytest.mark.parametrize("behave", [drip_head, hang])
def test_a_target_that_never_answers_is_left_in_time(send, behave):
    with stranger(behave) as (port, _), pytest.raises(DeliveryError, match="no full answer"):
        send(port)


def test_a_yes_stands_however_long_its_body_is(monkeypatch):
    monkeypatch.setattr(apprise_sink, "SEND_SECONDS", 0.5)
    for behave in (drip_body, flood):
        with stranger(behave) as (port, asked):
            apprise_sink.send_by_apprise(f"json://127.0.0.1:{port}/hook", make_alert())
        assert len(asked) == 1


def test_nobody_there_is_told_apart_from_a_name_that_is_wrong(send):
    with pytest.raises(DeliveryError, match="connection refused"):
        send(free_port())
