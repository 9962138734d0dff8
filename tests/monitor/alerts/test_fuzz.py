"""Whatever a target is called and whatever it answers: an alert is sent, or not, in our words."""

import gc
import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phasewatch.monitor.alerts.courier import check, deliver
from phasewatch.monitor.alerts.delivery import DeliveryError
from phasewatch.monitor.config.alerts import AlertsConfig, Target, resolve_targets
from phasewatch.monitor.core.errors import ConfigError
from support.records import make_alert
from support.strangers import stranger

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    # The library that sends leaves a socket to the garbage collector where an answer is no HTTP.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(autouse=True)
def collected():
    """What is left to the garbage collector is collected here, and not in another test."""
    yield
    gc.collect()


TEXT = st.text(max_size=60)
SERVICES = st.sampled_from(
    ["json", "slack", "mailto", "alertmanager", "alertmanagers", "tgram", ""]
)
ANSWERS = st.one_of(
    st.binary(max_size=300),
    st.builds(
        lambda status, headers, body: f"HTTP/1.1 {status}\r\n{headers}\r\n\r\n{body}".encode(
            "utf-8", "replace"
        ),
        st.sampled_from(["200 OK", "204", "301 Moved", "429 Wait", "500 No", "999", "-1"]) | TEXT,
        st.sampled_from(
            [
                "Content-Length: 2",
                "Content-Length: -1",
                "Content-Length: 99999999999",
                "Transfer-Encoding: chunked",
                "Content-Encoding: gzip",
                "Location: file:///etc/hostname",
                "Retry-After: never",
                "Set-Cookie: \x00",
            ]
        )
        | TEXT,
        TEXT,
    ),
)


@pytest.mark.parametrize("service", ["json", "alertmanager"])
@settings(max_examples=150, deadline=None, suppress_health_check=[*HealthCheck])
@given(ANSWERS)
def test_any_answer_is_a_yes_or_a_reason(service, content):
    def behave(connection):
        connection.sendall(content)
        connection.shutdown(socket.SHUT_WR)

    with stranger(behave) as (port, _):
        target = Target(name="1", url=f"{service}://me:T0PSECRET@127.0.0.1:{port}/hook")
        try:
            deliver(target, make_alert())
        except DeliveryError as error:
            assert str(error)  # noqa: PT017
            assert "T0PSECRET" not in str(error)  # noqa: PT017
            assert "Traceback" not in str(error)  # noqa: PT017
        else:
            assert content[:5] == b"HTTP/"
            assert 200 <= int(content.split(None, 2)[1]) < 300, "only a yes is one"


@settings(max_examples=300, deadline=None, suppress_health_check=[*HealthCheck])
@given(
    st.builds(lambda *parts: "".join(parts), SERVICES, st.sampled_from(["://", ":/", ""]), TEXT)
    | TEXT
)
def test_any_target_is_taken_or_refused(url):
    try:
        (target,) = resolve_targets(AlertsConfig(targets=(url,)))
    except (ConfigError, ValueError) as error:
        assert str(error)  # noqa: PT017
        return
    assert isinstance(check(target), str)
