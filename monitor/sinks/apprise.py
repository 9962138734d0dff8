"""Sends through Apprise, which speaks to a hundred services.

Only for processes that do not train: Apprise and what it uses draw from global generators.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import apprise
import requests

from phasewatch.monitor.alert_text import Alert
from phasewatch.monitor.alerts import masked
from phasewatch.monitor.sinks.delivery import DeliveryError, retry_after_seconds
from phasewatch.monitor.types import TransitionKind

MAX_REASON = 200

_SETTINGS = apprise.AppriseAsset(
    app_id="phasewatch", app_desc="phasewatch", app_url="", async_mode=False
)
_seen = threading.local()


def check_apprise(url: str) -> str:
    """Why a URL cannot be used; empty if it can."""
    with _listening() as heard:
        if apprise.Apprise.instantiate(url, asset=_SETTINGS) is not None:
            return ""
    said = "; ".join(masked(line, url) for line in heard)[:MAX_REASON]
    return f"Apprise cannot use it{f' ({said})' if said else ''}"


def send_by_apprise(url: str, alert: Alert) -> None:
    """Send an alert; its picture goes along where the service takes files.

    Raises:
        DeliveryError: The service has not taken it.
    """
    with _listening() as heard:
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
    answer: requests.Response | None = _seen.answer
    if answer is not None and not answer.ok:
        wait = retry_after_seconds(answer.headers.get("Retry-After"))
        raise DeliveryError(f"HTTP {answer.status_code}", wait)
    reason = masked("; ".join(heard), url)[:MAX_REASON]
    raise DeliveryError(reason or "not taken, for a reason that Apprise does not tell")


def _type(alert: Alert) -> apprise.NotifyType:
    if alert.is_over:
        return apprise.NotifyType.SUCCESS
    is_bad = alert.first.kind is TransitionKind.INSTABILITY
    return apprise.NotifyType.WARNING if is_bad else apprise.NotifyType.INFO


@contextmanager
def _listening() -> Iterator[list[str]]:
    """What Apprise logs in this thread, and in `_seen.answer` the last answer it got."""
    heard: list[str] = []
    thread = threading.get_ident()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == thread:
                heard.append(record.getMessage())

    logger = logging.getLogger("apprise")
    logger.propagate = False  # its lines may hold secrets
    listener = Listener(logging.WARNING)
    logger.addHandler(listener)
    _seen.answer = None
    try:
        yield heard
    finally:
        logger.removeHandler(listener)


_send = requests.Session.send


def _remember(self: requests.Session, request: Any, **settings: Any) -> requests.Response:
    _seen.answer = None
    answer = _seen.answer = _send(self, request, **settings)
    return answer


# Apprise says yes or no; when to come back stands in the answer, which it keeps to itself.
requests.Session.send = _remember  # type: ignore[method-assign]
