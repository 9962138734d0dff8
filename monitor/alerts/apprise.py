"""Sends through Apprise, which speaks to a hundred services.

Only for processes that do not train: Apprise and what it uses draw from global generators.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import apprise
import requests

from phasewatch.monitor.alerts.delivery import (
    MAX_ANSWER_BYTES,
    DeliveryError,
    refused,
)
from phasewatch.monitor.alerts.message import Alert
from phasewatch.monitor.config.alerts import masked
from phasewatch.monitor.core.bounded_http import why
from phasewatch.monitor.core.transitions import TransitionKind

MAX_REASON = 200

SEND_SECONDS = 30.0
"""How long one message may take, its picture included: mail servers take their time."""

_SETTINGS = apprise.AppriseAsset(
    app_id="phasewatch", app_desc="phasewatch", app_url="", async_mode=False
)


@dataclass(slots=True)
class _Trace:
    """What is learnt of one call: lines logged, the last answer of a web server, its sockets."""

    lines: list[str] = field(default_factory=list)
    answer: requests.Response | None = None
    failure: Exception | None = None
    sockets: list[socket.socket] = field(default_factory=list)
    was_cut: bool = False

    def cut(self) -> None:
        """End what has taken too long, whatever protocol it speaks."""
        self.was_cut = True
        for open_socket in [*self.sockets]:
            with contextlib.suppress(OSError):
                open_socket.shutdown(socket.SHUT_RDWR)


# Apprise may work in threads of its own; it gives them the context of the caller.
_current: ContextVar[_Trace | None] = ContextVar("phasewatch_trace", default=None)


def check_apprise(url: str) -> str:
    """Why a URL cannot be used; empty if it can."""
    with _listening() as trace:
        if apprise.Apprise.instantiate(url, asset=_SETTINGS) is not None:
            return ""
    said = _said(trace, url)
    return f"Apprise cannot use it{f' ({said})' if said else ''}"


def send_by_apprise(url: str, alert: Alert) -> None:
    """Send an alert; its picture goes along where the service takes files.

    Raises:
        DeliveryError: The service has not taken it.
    """
    with _listening() as trace, _in_time(trace):
        service = apprise.Apprise(asset=_SETTINGS)
        if not service.add(url):
            raise DeliveryError(check_apprise(url))
        taken = service.notify(
            title=alert.title,
            body=alert.body,
            notify_type=_type(alert),
            body_format=apprise.NotifyFormat.TEXT,
            attach=str(alert.picture) if alert.picture is not None else None,
        )
    answer = trace.answer
    if answer is not None and answer.status_code >= 300:
        # A redirect is no yes, also where a plugin takes it for one.
        raise refused(answer.status_code, answer.headers.get("Retry-After"))
    if taken:
        return
    if trace.was_cut:
        raise DeliveryError(f"no full answer in {SEND_SECONDS:g} s")
    if trace.failure is not None:
        raise DeliveryError(why(trace.failure))
    raise DeliveryError(_said(trace, url) or "not taken, for a reason that Apprise does not tell")


@contextmanager
def _in_time(trace: _Trace) -> Iterator[None]:
    timer = threading.Timer(SEND_SECONDS, trace.cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        for open_socket in trace.sockets:
            open_socket.close()


def _said(trace: _Trace, url: str) -> str:
    """What Apprise logged; no line with the URL, for its mask leaves first and last letters."""
    return masked("; ".join(line for line in trace.lines if "://" not in line), url)[:MAX_REASON]


def _type(alert: Alert) -> apprise.NotifyType:
    if alert.is_over:
        return apprise.NotifyType.SUCCESS
    is_bad = alert.transition.kind is TransitionKind.INSTABILITY
    return apprise.NotifyType.WARNING if is_bad else apprise.NotifyType.INFO


@contextmanager
def _listening() -> Iterator[_Trace]:
    trace = _Trace()
    token = _current.set(trace)
    try:
        yield trace
    finally:
        _current.reset(token)


class _Listener(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if (trace := _current.get()) is not None:
            trace.lines.append(record.getMessage())


_logger = logging.getLogger("apprise")
_logger.propagate = False  # its lines may hold secrets
_logger.addHandler(_Listener(logging.WARNING))

_send = requests.Session.send
_connect = socket.socket.connect


def _send_once(self: requests.Session, request: Any, **settings: Any) -> requests.Response:
    """Send without following redirects, and read a bounded part of the answer."""
    trace = _current.get() or _Trace()
    trace.answer = None
    try:
        answer = _send(self, request, **settings | {"allow_redirects": False, "stream": True})
    except Exception as error:
        trace.failure = error
        raise
    trace.answer = answer
    body = b""
    with contextlib.suppress(Exception):  # what it said it has said: the status stands
        for part in answer.iter_content(4096):
            body += part
            if len(body) >= MAX_ANSWER_BYTES:
                break
    answer._content, answer._content_consumed = body, True
    answer.close()  # the rest, if any, is not waited for
    return answer


def _connect_known(self: socket.socket, address: Any) -> None:
    """Connect, and keep a second handle by which the connection can be ended in time."""
    _connect(self, address)
    if (trace := _current.get()) is not None:
        with contextlib.suppress(OSError):
            trace.sockets.append(self.dup())


# Apprise says yes or no; when to come back stands in the answer, which it keeps to itself. It
# follows redirects, and takes what it is sent as long as it comes. This is a process of its own.
requests.Session.send = _send_once  # type: ignore[method-assign]
socket.socket.connect = _connect_known  # type: ignore[method-assign,assignment]
