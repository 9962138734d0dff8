"""Sends through Apprise, which speaks to a hundred services.

Only for processes that do not train: Apprise and what it uses draw from global generators.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import apprise
import requests

from phasewatch.monitor.alerts.delivery import DeliveryError, retry_after_seconds
from phasewatch.monitor.alerts.message import Alert
from phasewatch.monitor.config.alerts import masked
from phasewatch.monitor.core.types import TransitionKind

MAX_REASON = 200

_SETTINGS = apprise.AppriseAsset(
    app_id="phasewatch", app_desc="phasewatch", app_url="", async_mode=False
)


@dataclass(slots=True)
class _Trace:
    """What is learnt of one call: the lines logged, and the last answer of a web server."""

    lines: list[str] = field(default_factory=list)
    answer: requests.Response | None = None


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
    with _listening() as trace:
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
    if taken:
        return
    answer = trace.answer
    if answer is not None and not answer.ok:
        wait = retry_after_seconds(answer.headers.get("Retry-After"))
        raise DeliveryError(f"HTTP {answer.status_code}", wait)
    raise DeliveryError(_said(trace, url) or "not taken, for a reason that Apprise does not tell")


def _said(trace: _Trace, url: str) -> str:
    """What Apprise logged; no line with the URL, for its mask leaves first and last letters."""
    return masked("; ".join(line for line in trace.lines if "://" not in line), url)[:MAX_REASON]


def _type(alert: Alert) -> apprise.NotifyType:
    if alert.is_over:
        return apprise.NotifyType.SUCCESS
    is_bad = alert.first.kind is TransitionKind.INSTABILITY
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


def _remember(self: requests.Session, request: Any, **settings: Any) -> requests.Response:
    trace = _current.get() or _Trace()
    trace.answer = None
    trace.answer = answer = _send(self, request, **settings)
    return answer


# Apprise says yes or no; when to come back stands in the answer, which it keeps to itself.
requests.Session.send = _remember  # type: ignore[method-assign]
