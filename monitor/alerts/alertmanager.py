"""Sends to Alertmanager's API v2.

An alert has the labels of the shipped Prometheus rule, and `via="direct"`, by which the shipped
Alertmanager configuration inhibits the rule's. As Prometheus does, it is sent again while it
lasts: without news for its `resolve_timeout`, Alertmanager takes it for over.
"""

from __future__ import annotations

import base64
import json
import time
from datetime import UTC, datetime
from urllib.parse import unquote, urlsplit

from phasewatch.monitor.alerts.delivery import (
    MAX_ANSWER_BYTES,
    TIMEOUT_SECONDS,
    DeliveryError,
    refused,
)
from phasewatch.monitor.alerts.message import Alert, severity_of
from phasewatch.monitor.core.bounded_http import NoAnswerError, fetch
from phasewatch.monitor.core.metrics import label_value
from phasewatch.monitor.core.transitions import TransitionKind

DEFAULT_PORT = 9093

HOLD_SECONDS = 300.0
"""Time an alert stays at least: longer than the Prometheus rule fires for the same transition."""

REFRESH_SECONDS = 60.0
"""How often an alert that lasts is sent again."""

ALERT_NAMES = {TransitionKind.INSTABILITY: "PhasewatchInstability"}
DEFAULT_ALERT_NAME = "PhasewatchTransition"


def check_alertmanager(url: str) -> str:
    """Why a URL cannot be used; empty if it can."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return "its address cannot be read; give alertmanager://host:9093"
    return "" if parts.hostname else "it names no host; give alertmanager://host:9093"


def send_to_alertmanager(url: str, alert: Alert) -> None:
    """Send an alert, or news of it.

    Raises:
        DeliveryError: Alertmanager has not taken it.
    """
    body = json.dumps(payload(alert, time.time())).encode()
    address, headers = _address(url)
    try:
        answer = fetch(
            address,
            data=body,
            headers=headers,
            seconds=TIMEOUT_SECONDS,
            max_bytes=MAX_ANSWER_BYTES,
        )
    except NoAnswerError as error:
        raise DeliveryError(str(error)) from None
    if not 200 <= answer.status < 300:
        raise refused(answer.status, answer.headers.get("Retry-After"))


def payload(alert: Alert, now: float) -> list[dict[str, object]]:
    """The alert as API v2 wants it, after the ends of those that it corrects.

    What marks an alert are its labels. The kind is one, for people choose by it what they are told:
    a transition that turns out to be of another kind is another alert, and the first is over. Over
    or not, an alert is held until the rule no longer fires for its kind: it is what mutes the rule.
    """
    kind = alert.transition.kind
    wrong = [told for told in dict.fromkeys(alert.told_as) if told is not kind]
    held = {"endsAt": _time(max(now, alert.transition.detected_at + HOLD_SECONDS))}
    content = _content(alert, kind, now) | (held if alert.is_over else {})
    return [*(_content(alert, told, now) | held for told in wrong), content]


def _content(alert: Alert, kind: TransitionKind, now: float) -> dict[str, object]:
    transition = alert.transition
    return {
        "labels": {
            "alertname": ALERT_NAMES.get(kind, DEFAULT_ALERT_NAME),
            "run": label_value(alert.run),
            "run_id": transition.run,
            "kind": kind.value,
            "severity": severity_of(kind),
            "transition": transition.id,
            "via": "direct",
        },
        "annotations": {"summary": alert.title, "description": alert.body},
        "startsAt": _time(min(transition.detected_at, now)),
        "generatorURL": alert.link,
    }


def _address(url: str) -> tuple[str, dict[str, str]]:
    """Where to post, and with what headers."""
    parts = urlsplit(url)
    secure = parts.scheme.lower() == "alertmanagers"
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    address = f"{'https' if secure else 'http'}://{host}:{parts.port or DEFAULT_PORT}"
    headers = {"Content-Type": "application/json"}
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        headers["Authorization"] = "Basic " + base64.b64encode(login).decode()
    return f"{address}{parts.path.rstrip('/')}/api/v2/alerts", headers


def _time(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp, UTC).isoformat()
