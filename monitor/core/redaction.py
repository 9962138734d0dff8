"""What is secret leaves no text: the one exit of logs, errors, the store, alerts and pages.

Two things are taken out: what looks like a secret wherever it stands (user and password in a URL,
parameters named like a password or token), and the secrets that this process was told of.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

MASK = "***"

_MIN_SECRET = 4
"""Shorter ones are not searched for: they would stand in every text."""

_MAX_KNOWN = 1000

_LOGIN = re.compile(r"(?:(?<=//)|(?<=[A-Za-z+]{2}:/)(?!/))[^\s'\"<>|]*@")
"""User and password: all up to the last @, for a password may hold any other letter. One slash is
what is left of a URL that was taken for a path."""

_WORDS = (
    r"[\w.-]*(?:passw(?:or)?d|passwd|passphrase|pwd|secret|token|api[_-]?key|access[_-]?key|"
    r"credential|signature|authorization|auth|sig|key)[\w.-]*"
)
_PARAMETER = re.compile(rf"(?i)([?&;]{_WORDS}=)[^&\s'\"<>#]+")
_BEARER = re.compile(r"(?i)\b(bearer|authorization\W+\w+)\s+(?=\S*\d)[\w.~+/=-]{8,}")

_known: dict[str, None] = {}
_adding = threading.Lock()


def add_secret(*secrets: str) -> None:
    """Have a secret taken out of every text from now on, also where it is encoded for a URL."""
    with _adding:
        for secret in secrets:
            for form in {secret, unquote(secret)}:
                if len(form) >= _MIN_SECRET:
                    _known.pop(form, None)
                    _known[form] = None
        while len(_known) > _MAX_KNOWN:
            del _known[next(iter(_known))]


def redact(text: str) -> str:
    """The text without secrets.

    Example:
        >>> redact("postgresql://me:pw@host/db?password=x&sslmode=require")
        'postgresql://***@host/db?password=***&sslmode=require'
        >>> redact("see http://host/path")
        'see http://host/path'
    """
    for secret in sorted(_known.copy(), key=len, reverse=True):
        if secret in text:
            text = text.replace(secret, MASK)
    if "@" in text:
        text = _LOGIN.sub(f"{MASK}@", text)
    if "=" in text:
        text = _PARAMETER.sub(rf"\1{MASK}", text)
    return _BEARER.sub(rf"\1 {MASK}", text)


def redacted(content: Any) -> Any:
    """Plain content with every text in it redacted; what a key calls a secret, whole."""
    if isinstance(content, str):
        return redact(content)
    if isinstance(content, Mapping):
        return {redacted(key): redacted(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [redacted(item) for item in content]
    return content


class _Filter(logging.Filter):
    """Redacts a record before any handler sees it."""

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            said = record.getMessage()
        except Exception:  # logging says so itself
            return True
        if (clean := redact(said)) != said:
            record.msg, record.args = clean, ()
        if record.exc_info:
            trace = logging.Formatter().formatException(record.exc_info)
            if (clean := redact(trace)) != trace:
                record.exc_info, record.exc_text = None, clean
        return True


_filter = _Filter()


def get_logger(name: str) -> logging.Logger:
    """A logger whose records hold no secrets."""
    logger = logging.getLogger(name)
    logger.addFilter(_filter)
    return logger


for _name in ("phasewatch", "phasewatch.monitor.sampling"):
    get_logger(_name)  # which modules take by these names
