"""The HTTP server of the metrics.

That of prometheus_client does the TLS handshake where it accepts connections: one client that
connects and says nothing stops it for everybody. Here each connection has its own thread, its
own handshake, a time-out and a deadline, and their number is bounded: the oldest gives way. A
scrape takes milliseconds, so who is still there after a hundred others have come is no scraper.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import choose_encoder

from phasewatch.monitor.config.exports import ExporterConfig
from phasewatch.monitor.core.redaction import get_logger
from phasewatch.monitor.prometheus.collector import RunCollector

logger = get_logger(__name__)

IDLE_SECONDS = 5.0
"""How long a connection may say nothing."""

REQUEST_SECONDS = 10.0
"""How long a connection may take in all: one that drips a byte a second says something too."""

POLL_SECONDS = 0.1
"""How soon the server notices that it is to stop: the end of a run waits for it."""

MAX_CONNECTIONS = 32
"""Connections served at once; the oldest gives way to one that comes beyond."""

MAX_PATIENCE = 75.0
"""Longest wait for a scrape after the end of a run, in seconds: more than the usual minute."""

FIRST_INTERVAL = 15.0
"""Scrape interval taken for that of a Prometheus that has come once, in seconds."""

_SCRAPER = "HTTP_X_PROMETHEUS_SCRAPE_TIMEOUT_SECONDS"
"""A header that Prometheus sends, and what scrapes like it, but no browser."""


class Scrapes:
    """Whether a Prometheus comes, how often, and whether it has seen the end of the run.

    Args:
        ended: Whether the run has ended.
    """

    def __init__(self, ended: Callable[[], bool]) -> None:
        self._ended = ended
        self._last: float | None = None
        self._interval = FIRST_INTERVAL
        self.end_seen = threading.Event()

    def watching(self, app: Any) -> Any:
        """The application, observed."""

        def observed(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            ended = self._ended()  # before the page is made: the page then says so too
            if _SCRAPER in environ:
                self._came()
            page: list[bytes] = app(environ, start_response)
            if ended and _SCRAPER in environ:
                return _Page(page, self.end_seen.set)
            return page

        return observed

    def _came(self) -> None:
        now = time.monotonic()
        if self._last is not None:
            self._interval = now - self._last
        self._last = now

    @property
    def patience_seconds(self) -> float:
        """How long the next scrape is worth waiting for; 0 if none is to be expected."""
        if self._last is None:
            return 0.0
        due = self._last + 2 * self._interval + IDLE_SECONDS - time.monotonic()
        return min(max(due, 0.0), MAX_PATIENCE)


RUNBOOK_PATH = "/runbook"
RUNBOOK = Path(__file__).resolve().parents[2] / "deploy" / "prometheus" / "runbook.html"
"""In a checkout as in an installed package, `deploy` lies beside `monitor`."""


def application(collector: RunCollector) -> Any:
    """The pages of one run as a WSGI application; what is unusual is left to prometheus_client."""
    registry = CollectorRegistry()
    registry.register(collector)
    usual = make_wsgi_app(registry)

    def answer(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if (
            environ["REQUEST_METHOD"] != "GET"
            or "name" in environ.get("QUERY_STRING", "")
            or environ["PATH_INFO"] == "/favicon.ico"
        ):
            other: list[bytes] = usual(environ, start_response)
            return other
        if environ["PATH_INFO"].rstrip("/") == RUNBOOK_PATH:
            start_response("200 OK", [("Content-Type", "text/html; charset=utf-8")])
            return [RUNBOOK.read_bytes()]
        _, content_type = choose_encoder(environ.get("HTTP_ACCEPT", ""))
        page = collector.text(openmetrics=content_type.startswith("application/openmetrics"))
        headers = [("Content-Type", content_type)]
        if "gzip" in environ.get("HTTP_ACCEPT_ENCODING", ""):
            page = gzip.compress(page, compresslevel=1)
            headers.append(("Content-Encoding", "gzip"))
        start_response("200 OK", headers)
        return [page]

    return answer


class _Page(list[bytes]):
    """A response that tells when it has been sent."""

    def __init__(self, chunks: Iterable[bytes], sent: Callable[[], None]) -> None:
        super().__init__(chunks)
        self.close = sent


class _Handler(WSGIRequestHandler):
    """Says nothing on the terminal."""

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


class MetricsServer(ThreadingMixIn, WSGIServer):
    """Serves on a thread per connection.

    Args:
        host: Address to bind.
        port: Port; 0 takes any that is free.
        app: The WSGI application.
        context: For TLS; None serves plain HTTP.

    Raises:
        OSError: The address cannot be bound.
    """

    daemon_threads = True
    request_queue_size = 2 * MAX_CONNECTIONS

    def __init__(self, host: str, port: int, app: Any, context: ssl.SSLContext | None) -> None:
        family, *_, bound = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        self.address_family = family
        self._context = context
        self._open: dict[socket.socket, float] = {}  # since when, the oldest first
        self._opening = threading.Lock()
        super().__init__((str(bound[0]), port), _Handler)
        self.set_app(app)

    def server_bind(self) -> None:
        """Bind, without asking for the host's full name: that may take a DNS time-out."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the connection a thread; the oldest is cut where there are too many."""
        with self._opening:
            self._open[request] = time.monotonic()
            surplus = [*self._open][: max(0, len(self._open) - MAX_CONNECTIONS)]
        for old in surplus:
            self._cut(old)
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._opening:
                self._open.pop(request, None)

    def service_actions(self) -> None:
        """Cut what has taken too long. The server calls this several times a second."""
        late = time.monotonic() - REQUEST_SECONDS
        with self._opening:
            stale = [request for request, since in self._open.items() if since < late]
        for request in stale:
            self._cut(request)

    def _cut(self, request: socket.socket) -> None:
        """End a connection; its thread then sees the end and goes."""
        with self._opening:
            self._open.pop(request, None)
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Shake hands and answer; a silent client is left after `IDLE_SECONDS`."""
        request.settimeout(IDLE_SECONDS)
        if self._context is None:
            super().finish_request(request, client_address)
            return
        # The handle that is kept stays valid: wrapping takes the descriptor away from `request`.
        handle = request.dup()
        with self._opening:
            if (since := self._open.pop(request, None)) is not None:
                self._open[handle] = since
        try:
            with self._context.wrap_socket(request, server_side=True) as encrypted:
                super().finish_request(encrypted, client_address)
        finally:
            with self._opening:
                self._open.pop(handle, None)
            handle.close()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """A client that went away, kept silent or has no certificate is no news."""
        logger.debug("connection from %s failed", client_address, exc_info=True)


def serve(
    config: ExporterConfig, collector: RunCollector, scrapes: Scrapes
) -> tuple[MetricsServer, threading.Thread]:
    """Listen on the first free port, in the end on any.

    Args:
        config: Address, ports, certificate.
        collector: What is served.
        scrapes: Notes who has asked.

    Raises:
        OSError: No port can be bound, or a certificate cannot be read: names the setting.
    """
    context = _tls(config)
    app = scrapes.watching(application(collector))
    last = min(config.port + config.num_ports, 65536)
    ports = [*range(config.port, last), 0] if config.port else [0]
    for port in ports:
        try:
            server = MetricsServer(config.host, port, app, context)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or port == 0:
                raise OSError(
                    f"exporter cannot listen on {config.host}:{port}: {error.strerror}; set "
                    "exporter.host and exporter.port to an address of this machine"
                ) from error
            logger.info("port %d is in use, trying another for the metrics", port)
        else:
            thread = threading.Thread(
                target=server.serve_forever,
                args=(POLL_SECONDS,),
                name="phasewatch-metrics",
                daemon=True,
            )
            thread.start()
            return server, thread
    raise AssertionError("the last port tried is 0, which returns or raises")


def _tls(config: ExporterConfig) -> ssl.SSLContext | None:
    if config.certfile is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # An encrypted key would be asked about on the terminal, and training would wait.
        context.load_cert_chain(config.certfile, config.keyfile, password=lambda: b"")
    except OSError as error:
        raise OSError(
            f"exporter.certfile {str(config.certfile)!r} with exporter.keyfile "
            f"{str(config.keyfile)!r} cannot be used: {error.strerror or error}; name a "
            "certificate chain and its key, not encrypted, as PEM files"
        ) from error
    if config.client_cafile is not None:
        try:
            context.load_verify_locations(config.client_cafile)
        except OSError as error:
            raise OSError(
                f"exporter.client_cafile {str(config.client_cafile)!r} cannot be used: "
                f"{error.strerror or error}; name a PEM file of certificates"
            ) from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context
