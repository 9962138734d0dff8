"""Addresses of web servers, checked before anything is done with them or written down."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlsplit

_SECRET_WORDS = re.compile(r"(?i)pass|pwd|secret|token|api.?key|auth|signature|^key$|^sig$")


def web_address(url: str, like: str = "https://host/path") -> str:
    """An http(s) address that holds no secret, as it was given.

    Args:
        url: The address.
        like: An example, for whoever gave something else.

    Raises:
        ValueError: It is none, or holds a user, a password or a token; says what to do, without
            showing it.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValueError(f"it cannot be read as a URL; give one such as {like}") from None
    if "@" in parts.netloc or re.search(r"//[^/?#]*:[^/?#]*@", url):
        raise ValueError(
            "it holds a user or a password, and would be stored and sent to others; leave them out"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"give a URL, as {like}")
    for name, _value in parse_qsl(parts.query, keep_blank_values=True):
        if _SECRET_WORDS.search(name):
            raise ValueError(
                f"its parameter {name!r} looks like a secret, and would be stored and sent to "
                "others; leave it out"
            )
    return url
