"""The HTTP server: TLS, client certificates, and clients that say nothing."""

import contextlib
import gzip
import re
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, contextmanager

import pytest
from prometheus_client import CollectorRegistry, make_wsgi_app

from phasewatch.monitor.config.exports import ExporterConfig
from phasewatch.monitor.config.monitor import MonitorConfig
from phasewatch.monitor.core.errors import ConfigError
from phasewatch.monitor.core.health import Health
from phasewatch.monitor.prometheus import server
from phasewatch.monitor.prometheus.collector import RunCollector
from phasewatch.monitor.prometheus.sink import PrometheusSink
from support.needs import need_binary
from support.records import wait_until
from support.scraping import scrape


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A folder with two self-signed certificates and their keys, and an encrypted key."""
    openssl = need_binary("openssl")
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("server", "client"):
        command = (
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
            f"-subj /CN={name} -addext subjectAltName=IP:127.0.0.1 "
            f"-keyout {name}.key -out {name}.pem"
        )
        subprocess.run([openssl, *command.split()], cwd=folder, check=True, capture_output=True)
    command = "ec -in server.key -aes256 -passout pass:secret -out locked.key"
    subprocess.run([openssl, *command.split()], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture
def serve():
    sinks = []

    def start(**config):
        sinks.append(PrometheusSink("demo", ExporterConfig(port=0, **config), Health()))
        return sinks[-1]

    yield start
    for sink in sinks:
        sink.close()


def fetch(url, folder, *, client=None):
    context = ssl.create_default_context(cafile=folder / "server.pem")
    if client is not None:
        context.load_cert_chain(folder / f"{client}.pem", folder / f"{client}.key")
    with urllib.request.urlopen(url, timeout=10, context=context) as response:
        return response.read().decode()


@contextmanager
def connections(sink, number):
    """That many clients which connect and say nothing."""
    address = ("127.0.0.1", sink.port)
    with ExitStack() as stack:
        yield [
            stack.enter_context(socket.create_connection(address, timeout=10))
            for _ in range(number)
        ]


def test_metrics_are_served_over_tls(serve, certificates):
    sink = serve(certfile=certificates / "server.pem", keyfile=certificates / "server.key")
    assert sink.url.startswith("https://127.0.0.1:")
    assert "phasewatch_run_step" in fetch(sink.url, certificates)
    with pytest.raises(OSError, match=r"(?i)reset|closed|empty|without response"):
        scrape(sink.url.replace("https", "http"))


def test_the_target_file_says_https(serve, certificates, tmp_path):
    serve(
        certfile=certificates / "server.pem",
        keyfile=certificates / "server.key",
        targets_dir=tmp_path,
    )
    (file,) = tmp_path.iterdir()
    assert '"__scheme__": "https"' in file.read_text()


def test_a_client_without_a_certificate_is_refused(serve, certificates, capfd):
    sink = serve(
        certfile=certificates / "server.pem",
        keyfile=certificates / "server.key",
        client_cafile=certificates / "client.pem",
    )
    for wrong in (None, "server"):
        with pytest.raises(OSError, match=r"(?i)urlopen|certificate|alert|reset"):
            fetch(sink.url, certificates, client=wrong)
    assert "phasewatch_run_step" in fetch(sink.url, certificates, client="client")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("tls", [True, False])
def test_clients_that_say_nothing_stop_nobody(serve, certificates, tls):
    names = {"certfile": "server.pem", "keyfile": "server.key"} if tls else {}
    sink = serve(**{key: certificates / name for key, name in names.items()})
    with connections(sink, server.MAX_CONNECTIONS // 2):
        page = fetch(sink.url, certificates) if tls else scrape(sink.url)
    assert "phasewatch_run_step" in page


def test_silent_clients_are_left_and_their_number_is_bounded(serve, monkeypatch):
    monkeypatch.setattr(server, "IDLE_SECONDS", 0.5)
    sink = serve()
    with connections(sink, server.MAX_CONNECTIONS):
        with connections(sink, 1) as (beyond,):
            assert beyond.recv(1) == b""  # closed at once
        wait_until(lambda: can_scrape(sink), what="room for a new client")


def can_scrape(sink):
    try:
        return "phasewatch_run_step" in scrape(sink.url)
    except (OSError, urllib.error.URLError):
        return False


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"certfile": "missing.pem", "keyfile": "server.key"}, "missing.pem.*No such file"),
        ({"certfile": "server.pem", "keyfile": "client.key"}, "server.pem.*client.key"),
        ({"certfile": "server.pem", "keyfile": "locked.key"}, "locked.key.*not encrypted"),
        (
            {"certfile": "server.pem", "keyfile": "server.key", "client_cafile": "client.key"},
            "exporter.client_cafile.*client.key",
        ),
    ],
)
def test_a_certificate_that_cannot_be_used_is_refused(serve, certificates, settings, named):
    with pytest.raises(OSError, match=named):
        serve(**{key: certificates / name for key, name in settings.items()})


def test_a_key_without_a_certificate_is_refused():
    with pytest.raises(ConfigError, match="need certfile"):
        MonitorConfig.load({"exporter": {"keyfile": "server.key"}})


ACCEPTS = [
    "",
    "*/*",
    "text/plain;version=0.0.4",
    "application/openmetrics-text",
    "application/openmetrics-text; version=1.0.0; charset=utf-8",
    # Prometheus 2.42, and Prometheus 3
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.2",
]


@pytest.mark.parametrize("accept", ACCEPTS)
@pytest.mark.parametrize("compressed", [False, True])
def test_answers_are_those_of_prometheus_client(accept, compressed):
    collector = RunCollector('say "hi"', Health(leads={"val_loss": None}))
    registry = CollectorRegistry()
    registry.register(collector)
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/metrics", "HTTP_ACCEPT": accept}
    if compressed:
        environ["HTTP_ACCEPT_ENCODING"] = "gzip"
    ours = answer(server.application(collector), environ)
    assert ours == answer(make_wsgi_app(registry), environ)


@pytest.mark.parametrize(
    "change",
    [
        {"REQUEST_METHOD": "POST"},
        {"REQUEST_METHOD": "OPTIONS"},
        {"PATH_INFO": "/favicon.ico"},
        {"QUERY_STRING": "name[]=phasewatch_run_step"},
    ],
)
def test_unusual_requests_are_answered_as_by_prometheus_client(change):
    collector = RunCollector("demo", Health())
    registry = CollectorRegistry()
    registry.register(collector)
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/metrics"} | change
    ours = answer(server.application(collector), environ)
    assert ours == answer(make_wsgi_app(registry), environ)


def test_the_runbook_is_served_where_the_metrics_say(serve):
    sink = serve()
    (url,) = re.findall(
        r'^phasewatch_runbook_info{.*url="(.*?)".*}', scrape(sink.url), re.MULTILINE
    )
    with urllib.request.urlopen(url, timeout=10) as page:
        assert page.headers.get_content_type() == "text/html"
        assert '<h2 id="phasewatchruncrashed">' in page.read().decode()
    sink = serve(runbook_url="https://docs.example/book")
    assert 'url="https://docs.example/book"' in scrape(sink.url)


def answer(app, environ):
    told = []
    body = b"".join(app(dict(environ), lambda *head: told.append(head)))
    ((status, headers),) = told
    if ("Content-Encoding", "gzip") in headers:
        body = gzip.decompress(body)
    return status, sorted(headers), body


# Clients that drip ------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", [False, True])
def test_forty_clients_that_drip_refuse_no_scrape(serve, certificates, tls):
    names = {"certfile": "server.pem", "keyfile": "server.key"} if tls else {}
    sink = serve(**{name: certificates / file for name, file in names.items()})
    with connections(sink, 40) as dripping:
        for client in dripping:
            client.sendall(b"GET /metrics HTTP/1.1\r\nX-a: ")
        for _ in range(20):
            for client in dripping:
                with contextlib.suppress(OSError):
                    client.sendall(b"b")
            page = fetch(sink.url, certificates) if tls else scrape(sink.url)
            assert "phasewatch_run_info" in page


def test_a_request_that_drips_is_cut_at_its_deadline(serve, monkeypatch):
    monkeypatch.setattr(server, "REQUEST_SECONDS", 0.3)
    sink = serve()
    with socket.create_connection(("127.0.0.1", sink.port)) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\nX-a: ")
        client.settimeout(10.0)
        sent = 0
        with contextlib.suppress(OSError):
            while sent < 100 and client.send(b"b"):
                sent += 1
                time.sleep(0.05)
        assert sent < 100
