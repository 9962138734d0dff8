"""Who is told of a transition: the settings of direct alerts, and the targets they name.

The URL of a target holds its secret. It goes from the settings to the process that sends, through
a pipe, and nowhere else: the store, logs and pages know a target by its name.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field
from datetime import datetime, time, timedelta
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeFloat,
    PositiveInt,
    SecretStr,
    field_validator,
)

from phasewatch.monitor.core.errors import ConfigError
from phasewatch.monitor.core.redaction import add_secret
from phasewatch.monitor.core.transitions import Recipient
from phasewatch.monitor.core.urls import web_address

ALERTMANAGER_SCHEMES = ("alertmanager", "alertmanagers")

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*(?=://)", re.IGNORECASE)
_QUIET = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")
_MIN_SECRET = 4
_MIN_TOKEN = 9
_MASK = "…"


class AlertsConfig(BaseModel):
    """Direct alerts. A list of URLs is short for `targets`.

    Attributes:
        targets: URLs of Apprise (`slack://…`, `mailto://…`), or `alertmanager://host:port`
            (`alertmanagers://` for TLS). `env:NAME` and `file:PATH` stand for the URLs, one a line,
            that an environment variable or a file holds.
        at: State of a transition at which it is told.
        updates: Tell every target how a transition goes on and when it ends. Alertmanager always
            is; a withdrawal is always told to whom the alert was sent.
        max_per_hour: Messages to one target in an hour; what comes on top waits. Not for
            Alertmanager, which groups by itself.
        quiet_hours: Local time at which messages wait, for example "22:00-07:00". Not for
            Alertmanager, which has mute times of its own.
        grace_seconds: How long the end of a run waits for its last messages. What is not sent by
            then is sent by the next run, or by `phasewatch outbox --flush`.
        picture: Attach a picture of the run's curves, where the service can.
        report_url: Link to the run's report; `{run}` stands for the run's name.
        grafana_url: Address of a Grafana that has our dashboards, for a link to the run's.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, hide_input_in_errors=True
    )

    targets: tuple[SecretStr, ...] = ()
    at: Literal["confirmed", "suspected"] = "confirmed"
    updates: bool = False
    max_per_hour: PositiveInt = 30
    quiet_hours: str | None = None
    grace_seconds: NonNegativeFloat = 10.0
    picture: bool = True
    report_url: str | None = None
    grafana_url: str | None = None

    @field_validator("targets", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, (str, SecretStr)) else value

    @field_validator("report_url", "grafana_url")
    @classmethod
    def _no_secret(cls, value: str | None) -> str | None:
        return value if value is None else web_address(value)

    @field_validator("quiet_hours")
    @classmethod
    def _span(cls, value: str | None) -> str | None:
        if value is not None and not _QUIET.fullmatch(value):
            raise ValueError('give two times of day, for example "22:00-07:00"')
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One place that alerts go to.

    Attributes:
        name: Position, service and digest, for example "1-slack-3f2a9c1d".
        url: Its URL, secrets and all.
    """

    name: str
    url: str = field(repr=False)

    @property
    def is_alertmanager(self) -> bool:
        """Whether Alertmanager's own API is spoken, by which an alert can be ended."""
        return scheme_of(self.url) in ALERTMANAGER_SCHEMES

    def recipient(self, config: AlertsConfig) -> Recipient:
        """What the store is told of the target."""
        return Recipient(
            target=self.name,
            updates=config.updates or self.is_alertmanager,
            from_suspected=config.at == "suspected",
        )


def scheme_of(url: str) -> str:
    """Service that a URL names; empty if it is no URL."""
    found = _SCHEME.match(url)
    return found[0].lower() if found else ""


def resolve_targets(config: AlertsConfig) -> tuple[Target, ...]:
    """The targets that the settings name, with what environment and files hold.

    Raises:
        ConfigError: A variable or file is missing or empty, or something is no URL; names the
            target by position, never by its content.
    """
    urls = [url for secret in config.targets for url in _urls_of(secret.get_secret_value())]
    unique = dict.fromkeys(urls)
    return tuple(_target(position, url) for position, url in enumerate(unique, start=1))


def _urls_of(text: str) -> list[str]:
    kind, _, where = text.partition(":")
    if kind == "env":
        if not (content := os.environ.get(where, "").strip()):
            raise ConfigError(
                f"alerts: environment variable {where!r} is not set, or empty; put the URL of a "
                "target in it"
            )
    elif kind == "file":
        try:
            content = Path(where.removeprefix("//")).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or "not text"
            raise ConfigError(
                f"alerts: file {where!r} cannot be read ({reason}); put the URLs of targets in "
                "it, one a line"
            ) from None
    else:
        content = text
    lines = [line.strip() for line in content.splitlines()]
    urls = [line for line in lines if line and not line.startswith("#")]
    if not urls:
        raise ConfigError(f"alerts: {kind}:{where} names no target; put a URL in it")
    return urls


def _target(position: int, url: str) -> Target:
    scheme = scheme_of(url)
    if not scheme:
        raise ConfigError(
            f"alerts: target {position} is no URL; give one such as slack://…, mailto://…, "
            "json://… or alertmanager://host:9093, or env:NAME or file:PATH"
        )
    # Slow on purpose: the digest gets into the store, and a password must not be guessed from it.
    is_more = len(url.partition("://")[2]) > _MIN_SECRET  # a scheme alone stands in many a remedy
    add_secret(*([url] if is_more else []), *secrets_of(url))
    digest = hashlib.scrypt(url.encode(), salt=b"phasewatch", n=2**13, r=8, p=1, dklen=4).hex()
    return Target(name=f"{position}-{scheme[:40]}-{digest}", url=url)


def secrets_of(url: str) -> list[str]:
    """Parts of a target's URL that can only be secrets: logins, and what no word looks like."""
    _, _, rest = url.partition("://")
    login, has_login, place = rest.rpartition("@")
    secret = [part for part in re.split(r"[:/]", login) if has_login and len(part) > _MIN_SECRET]
    for part in re.split(r"[/:?&=,;#\s]+", place):
        is_name = "." in part and len(part) < 2 * _MIN_TOKEN  # a host, or an address
        if len(part) >= _MIN_TOKEN and re.search(r"\d", part) and not is_name:
            secret.append(part)
    return secret


def masked(text: str, url: str) -> str:
    """The text, without any part of a target's URL but the service."""
    parts = {part for form in (url, unquote(url)) for part in re.split(r"[/:@?&=,;#\s]+", form)}
    secrets = {part for part in parts - {scheme_of(url)} if len(part) >= _MIN_SECRET}
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, _MASK)
    return text


def quiet_seconds(quiet_hours: str | None, now: datetime) -> float:
    """How long the quiet hours still last; 0 outside of them.

    Args:
        quiet_hours: Their span in local time; it may go over midnight.
        now: Local time.

    Example:
        >>> quiet_seconds("22:00-07:00", datetime(2024, 1, 1, 6, 30))
        1800.0
        >>> quiet_seconds("22:00-07:00", datetime(2024, 1, 1, 12, 0))
        0.0
    """
    if quiet_hours is None:
        return 0.0
    found = _QUIET.fullmatch(quiet_hours)
    assert found is not None  # noqa: S101 - the settings were checked
    start, end = time(int(found[1]), int(found[2])), time(int(found[3]), int(found[4]))
    at = now.time()
    is_quiet = start <= at < end if start <= end else at >= start or at < end
    if not is_quiet:
        return 0.0
    over = datetime.combine(now.date(), end, tzinfo=now.tzinfo)
    return (over - now if over > now else over + timedelta(days=1) - now).total_seconds()
