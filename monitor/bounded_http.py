"""HTTP to strangers: one deadline for the whole exchange, a bound on what is read, no redirects.

A time-out of a socket is for each wait alone: a server that sends a byte a second never meets it.
Here every read has only what is left of the whole. Nothing follows a redirect: it would take what
was sent, credentials too, to a place that nobody named.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

MAX_BYTES = 8 << 20
"""Bytes of an answer that are read."""


class Answer(NamedTuple):
    """What a server has said.

    Attributes:
        status: HTTP status.
        headers: Its headers.
        body: Its body, at most so long as was asked for.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode("utf-8", "replace")


class NoAnswerError(OSError):
    """There is no answer; the message says why: DNS, refusal, TLS, time."""


class _DeadlineFile(socket.SocketIO):
    """Reads a socket, and waits in all no longer than until a deadline."""

    def __init__(self, sock: Any, deadline: float) -> None:
        super().__init__(sock, "r")
        self._socket, self._deadline = sock, deadline
        sock._io_refs += 1

    def readinto(self, buffer: Any) -> int | None:
        self._socket.settimeout(_left(self._deadline))
        return super().readinto(buffer)


class DeadlineSocket:
    """A connected socket whose reads end at a deadline, also where bytes keep dripping in.

    Args:
        sock: The socket.
        deadline: On the monotonic clock.
    """

    def __init__(self, sock: Any, deadline: float) -> None:
        self._sock, self._deadline = sock, deadline

    def makefile(self, *_: Any, **__: Any) -> io.BufferedReader:
        """What an HTTP response reads from."""
        return io.BufferedReader(_DeadlineFile(self._sock, self._deadline))

    def sendall(self, content: Any) -> None:
        """Send everything before the deadline."""
        self._sock.settimeout(_left(self._deadline))
        self._sock.sendall(content)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the answer takes too long")
    return left


class _Connection(http.client.HTTPConnection):
    def connect(self) -> None:
        deadline = time.monotonic() + cast(float, self.timeout)
        super().connect()
        self.sock = cast(Any, DeadlineSocket(self.sock, deadline))


class _SecureConnection(http.client.HTTPSConnection):
    def connect(self) -> None:
        deadline = time.monotonic() + cast(float, self.timeout)
        super().connect()
        self.sock = cast(Any, DeadlineSocket(self.sock, deadline))


class _Plain(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(cast(Any, _Connection), req)


class _Secure(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> Any:
        context: Any = getattr(self, "_context", None)
        return self.do_open(cast(Any, _SecureConnection), req, context=context)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def fetch(
    url: str,
    *,
    data: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    method: str | None = None,
    seconds: float = 5.0,
    max_bytes: int = MAX_BYTES,
    context: ssl.SSLContext | None = None,
) -> Answer:
    """Ask a server, in bounded time and space; an answer of any status is one.

    Args:
        url: http or https.
        data: Body of the request.
        headers: Headers of the request.
        method: GET, or POST with a body, if not given.
        seconds: For the whole exchange.
        max_bytes: What is read of the answer; the rest is left.
        context: For TLS; None checks certificates as usual.

    Raises:
        NoAnswerError: There was none, or none in time; says why.
    """
    handlers: list[Any] = [_Plain(), _Secure(context=context), _NoRedirect()]
    if is_loopback(url):  # a proxy of the environment does not know this machine's loopback
        handlers.append(urllib.request.ProxyHandler({}))
    opener = urllib.request.build_opener(*handlers)
    try:
        request = urllib.request.Request(  # noqa: S310 - the opener knows http and https alone
            url, data=data, headers=dict(headers or {}), method=method
        )
        try:
            response = opener.open(request, timeout=seconds)
        except urllib.error.HTTPError as error:
            response = error
        with response:
            return Answer(
                response.status, dict(response.headers.items()), _body(response, max_bytes)
            )
    except NoAnswerError:
        raise
    except Exception as error:
        raise NoAnswerError(why(error, seconds)) from None


def _body(response: Any, max_bytes: int) -> bytes:
    body = b""
    try:
        while len(body) < max_bytes and (part := response.read(min(65536, max_bytes - len(body)))):
            body += part
    except http.client.IncompleteRead as error:
        body += error.partial
    return body


def why(error: BaseException, seconds: float | None = None) -> str:
    """Why there is no answer, in words: DNS, refusal, TLS, time, or what the system says."""
    for cause in _causes(error):
        if isinstance(cause, socket.gaierror):
            return f"DNS: the host's name is not known ({cause.strerror})"
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"TLS: the certificate is not trusted ({cause.verify_message})"
        if isinstance(cause, ssl.SSLError):
            return f"TLS: {cause.reason or 'no encrypted connection'}"
        if isinstance(cause, ConnectionRefusedError):
            return "connection refused"
        if isinstance(cause, ConnectionResetError | BrokenPipeError):
            return "the connection was cut"
        if isinstance(cause, TimeoutError) or type(cause).__name__.endswith("Timeout"):
            return "no full answer" + (f" in {seconds:g} s" if seconds is not None else " in time")
        if isinstance(cause, http.client.HTTPException):
            return f"answers, but not by HTTP ({type(cause).__name__})"
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
    return type(error).__name__


def _causes(error: BaseException) -> list[BaseException]:
    """An error and everything it was made of."""
    found: list[BaseException] = []
    queue: list[Any] = [error]
    while queue and len(found) < 20:
        item = queue.pop(0)
        if isinstance(item, BaseException) and item not in found:
            found.append(item)
            queue += [getattr(item, "reason", None), item.__cause__, item.__context__, *item.args]
    return found


def is_loopback(url: str) -> bool:
    """Whether a URL leads to this machine's loopback."""
    try:
        host = urllib.parse.urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
