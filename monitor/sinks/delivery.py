"""What every way of sending an alert has in common."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime

TIMEOUT_SECONDS = 10.0
"""How long a target may take to answer, all of its answer."""

TOTAL_SECONDS = 60.0
"""How long sending one message may take in all, whatever the service does."""

NOTE_SECONDS = 30.0
"""How long the end of a sender waits for the store to take that a message was delivered."""

MAX_ANSWER_BYTES = 1 << 16
"""Bytes of an answer that are read."""

MAX_RETRY_AFTER_SECONDS = 3600.0
"""Longest wait that a target may ask for."""


class DeliveryError(Exception):
    """A target has not taken a message.

    Args:
        reason: Why, without any secret.
        retry_after: Seconds it asked to be left alone for, if it did.
        has_answered: Whether it refused this message, and may take others.
    """

    def __init__(
        self, reason: str, retry_after: float | None = None, *, has_answered: bool = False
    ) -> None:
        super().__init__(reason)
        self.retry_after = retry_after
        self.has_answered = has_answered


def refused(status: int, retry_after: str | None) -> DeliveryError:
    """The error for an answer that is no yes. A redirect is none: it is not followed."""
    reason = f"HTTP {status}"
    if 300 <= status < 400:
        reason += " (a redirect, which is not followed: give the address it leads to)"
    return DeliveryError(reason, retry_after_seconds(retry_after), has_answered=True)


def retry_after_seconds(header: str | None) -> float | None:
    """Seconds that a `Retry-After` header asks for: a number, or a date (RFC 9110, 10.2.3).

    Example:
        >>> retry_after_seconds("120")
        120.0
        >>> retry_after_seconds("soon") is None
        True
    """
    if not header:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        except ValueError:
            return None
    if seconds != seconds:  # NaN
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_SECONDS)
