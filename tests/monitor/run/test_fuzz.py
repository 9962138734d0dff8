"""Whatever comes in, what comes out is an answer or an error of ours that says what to do."""

import contextlib
import http.client
import socket
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from phasewatch.monitor.alerts.delivery import retry_after_seconds
from phasewatch.monitor.config.alerts import AlertsConfig, resolve_targets
from phasewatch.monitor.config.exports import ExporterConfig
from phasewatch.monitor.config.monitor import MonitorConfig
from phasewatch.monitor.core.bounded_http import NoAnswerError, fetch
from phasewatch.monitor.core.errors import PhasewatchError
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.health import Health
from phasewatch.monitor.core.metrics import label_value
from phasewatch.monitor.core.redaction import redact
from phasewatch.monitor.core.urls import web_address
from phasewatch.monitor.operations.doctor_routes import receivers, relabelled
from phasewatch.monitor.prometheus.sink import PrometheusSink
from phasewatch.monitor.store.database import _parse
from phasewatch.monitor.store.store import Store
from support.strangers import stranger

pytestmark = pytest.mark.slow

MANY = settings(max_examples=300, deadline=None, suppress_health_check=[*HealthCheck])
FEW = settings(max_examples=60, deadline=None, suppress_health_check=[*HealthCheck])

TEXT = st.text(max_size=60)
SCHEMES = st.sampled_from(["http", "https", "postgresql", "sqlite", "slack", "json", "file", ""])
URLS = st.one_of(
    TEXT,
    st.builds(
        lambda s, a, u, b, h, c, p: f"{s}{a}{u}{b}{h}{c}{p}",
        SCHEMES,
        st.sampled_from(["://", "//", ":/", ":", ""]),
        TEXT,
        st.sampled_from(["@", ":", "/", ""]),
        TEXT,
        st.sampled_from([":", "/", "?", "#", "[", "]"]),
        TEXT,
    ),
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@MANY
@given(URLS)
def test_any_store_is_taken_or_refused_in_our_words(url):
    try:
        _parse(url)
    except PhasewatchError as error:
        assert "store" in str(error)  # noqa: PT017


@MANY
@given(URLS)
def test_any_address_is_taken_or_refused(url):
    try:
        assert web_address(url) == url
    except ValueError as error:
        assert str(error)  # noqa: PT017
    with contextlib.suppress(PhasewatchError, ValueError):
        resolve_targets(AlertsConfig(targets=[url]))


@MANY
@given(URLS, st.text(alphabet="abcdefgh0123", min_size=8, max_size=12))
def test_no_password_in_a_url_outlives_redaction(rest, password):
    secret = f"Zq{password}Zq"
    for text in (f"x://user:{secret}@{rest}", f"see //{secret}@{rest}", f"h?token={secret}&{rest}"):
        assert secret not in redact(text)


@MANY
@given(st.dictionaries(st.sampled_from([*MonitorConfig.model_fields]) | TEXT, VALUES, max_size=4))
def test_any_configuration_is_taken_or_refused_in_our_words(content):
    try:
        MonitorConfig.load(content)
    except PhasewatchError as error:
        assert "wrong" in str(error)  # noqa: PT017


@FEW
@given(st.binary(max_size=200) | TEXT.map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_configuration_file_is_taken_or_refused(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.yaml"
        path.write_bytes(content)
        try:
            MonitorConfig.load(path)
        except PhasewatchError as error:
            assert str(path) in str(error) or "wrong" in str(error)  # noqa: PT017


@MANY
@given(st.text(max_size=400))
def test_any_name_becomes_a_label_that_parsers_read(name):
    from phasewatch.monitor.prometheus.collector import RunCollector

    collector = RunCollector(name, Health(), run_id="a1")
    collector.keep(Observation(name=name, step=1, value=1.0, unit="1"))
    page = collector.text(openmetrics=False).decode()
    samples = [s for f in text_string_to_metric_families(page) for s in f.samples]
    assert {s.labels["run"] for s in samples if "run" in s.labels} == {label_value(name)}


@FEW
@given(st.text(min_size=1, max_size=50), st.integers(-(2**62), 2**62), st.floats())
def test_any_name_step_and_value_is_kept_as_it_is(name, step, value):
    with Store(":memory:") as store:
        run, attempt = store.begin_run(name="r")
        store.add_observation(
            run, attempt, Observation(name=name, step=step, value=value, unit="1")
        )
        store.flush()
        if store.num_dropped:  # what no database takes is counted: half a surrogate pair
            assert name != name.encode("utf-8", "replace").decode()
            return
        steps, values, _ = store.history(run, name, include_unconverged=True)
        assert steps.tolist() == [step]
        # SQLite does not tell -0.0 from 0.0.
        assert repr(float(values[0]) + 0.0) == repr(float(value) + 0.0)


@MANY
@given(TEXT)
def test_any_retry_after_is_a_wait_within_bounds(header):
    seconds = retry_after_seconds(header)
    assert seconds is None or 0 <= seconds <= 3600


@MANY
@given(
    st.dictionaries(TEXT, TEXT, max_size=3),
    st.recursive(
        st.fixed_dictionaries({"receiver": TEXT}, optional={"matchers": st.just(['a="b"'])}),
        lambda inner: st.fixed_dictionaries(
            {"receiver": TEXT, "routes": st.lists(inner, max_size=3)}
        ),
        max_leaves=6,
    ),
)
def test_every_alert_has_a_receiver(labels, route):
    assert receivers(labels, route)
    assert relabelled(labels, []) == labels


@pytest.fixture(scope="module")
def exporter():
    sink = PrometheusSink("demo", ExporterConfig(port=0), Health())
    yield sink
    sink.close()


@settings(max_examples=150, deadline=None, suppress_health_check=[*HealthCheck])
@given(
    st.one_of(
        st.binary(max_size=300),
        st.builds(
            lambda method, path, headers: f"{method} /{path} HTTP/1.1\r\n{headers}\r\n\r\n".encode(
                "utf-8", "replace"
            ),
            st.sampled_from(["GET", "HEAD", "POST", "BREW", ""]) | TEXT,
            TEXT,
            TEXT,
        ),
    )
)
def test_the_exporter_answers_the_next_one_whatever_the_last_one_sent(capfd, exporter, content):
    with socket.create_connection(("127.0.0.1", exporter.port), timeout=10) as client:
        client.sendall(content)
        client.shutdown(socket.SHUT_WR)
        client.settimeout(10)
        try:
            while client.recv(65536):
                pass
        except OSError:
            pass
    connection = http.client.HTTPConnection("127.0.0.1", exporter.port, timeout=10)
    connection.request("GET", "/metrics")
    assert connection.getresponse().status == 200
    connection.close()
    assert "Traceback" not in capfd.readouterr().err


@settings(max_examples=60, deadline=None, suppress_health_check=[*HealthCheck])
@given(st.binary(max_size=300))
def test_any_answer_is_read_or_is_none(content):
    def behave(connection):
        connection.sendall(content)

    with stranger(behave) as (port, _):
        try:
            answer = fetch(f"http://127.0.0.1:{port}/", seconds=5.0)
            assert isinstance(answer.status, int)
        except NoAnswerError as error:
            assert str(error)  # noqa: PT017
