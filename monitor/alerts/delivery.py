"""What every way of sending an alert has in common."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime

TIMEOUT_SECONDS = 10.0
"""How long a target may take to answer."""

MAX_RETRY_AFTER_SECONDS = 3600.0
"""Longest wait that a target may ask for."""


class DeliveryError(Exception):
    """A target has not taken a message.

    Args:
        reason: Why, without any secret.
        retry_after: Seconds it asked to be left alone for, if it did.
    """

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


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
