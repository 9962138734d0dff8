"""Where a Grafana is, and with what token: checked the same way for all who talk to it."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from phasewatch.monitor.core.errors import ConfigError

TOKEN_VARIABLE = "PHASEWATCH_GRAFANA_TOKEN"  # noqa: S105 - the name of a variable
HOW_TO_TOKEN = "make one in Grafana under Administration, Service accounts"  # noqa: S105 - a hint


def base_url(url: str) -> str:
    """The address of a Grafana without a slash at its end.

    Raises:
        ConfigError: It is not an http(s) address, or holds a user, a query or a fragment.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise ConfigError(f"Grafana's URL is {url!r}: {error}; {_LIKE}") from None
    if "@" in parts.netloc:
        raise ConfigError(
            f"Grafana's URL holds a user or a password; leave them out and give a token by "
            f"{TOKEN_VARIABLE} or a file"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"Grafana's URL is {url!r}; {_LIKE}")
    if parts.query or parts.fragment:
        raise ConfigError(f"Grafana's URL is {url!r}; leave out what follows the path; {_LIKE}")
    return url.rstrip("/")


_LIKE = "it must be like http://localhost:3000 or https://host/grafana"


def find_token(given: str | None, file: Path | None) -> str:
    """The token: as given, else from a file, else from PHASEWATCH_GRAFANA_TOKEN.

    Raises:
        ConfigError: There is none, the file cannot be read, or it cannot be a token.
    """
    if given is None and file is not None:
        try:
            given = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise ConfigError(
                f"Grafana's token file {str(file)!r} cannot be read ({reason}); it must hold a "
                "service account's token"
            ) from None
    token = (os.environ.get(TOKEN_VARIABLE, "") if given is None else given).strip()
    if not token:
        raise ConfigError(
            f"no token for Grafana; set {TOKEN_VARIABLE} or name a file that holds it. "
            f"To get one: {HOW_TO_TOKEN}"
        )
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise ConfigError(
            "Grafana's token holds spaces or characters that no token has (it is not shown here); "
            "copy it again"
        )
    return token
