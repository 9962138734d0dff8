"""A link of the chain from a run to whoever is told, and how one is asked for."""

from __future__ import annotations

import time
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import StrEnum

from phasewatch.monitor.core.bounded_http import Answer, fetch

TIMEOUT_SECONDS = 5.0


class LinkState(StrEnum):
    """How a link of the chain is."""

    OK = "ok"
    BROKEN = "broken"
    NOT_CHECKED = "not checked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One link of the chain.

    Attributes:
        name: Which.
        state: How it is.
        found: What was seen.
        remedy: What to do, where it is broken.
    """

    name: str
    state: LinkState
    found: str
    remedy: str = ""


class BrokenError(Exception):
    """A link is broken.

    Args:
        found: What was seen.
        remedy: What to do.
    """

    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(found)
        self.found, self.remedy = found, remedy


def check(name: str, look: Callable[[], str | None]) -> Link:
    """A link, from a function that returns what it saw, or None where there is nothing to see.

    Args:
        name: Name of the link.
        look: Raises `BrokenError` where the link is broken.
    """
    try:
        found = look()
    except BrokenError as error:
        return Link(name=name, state=LinkState.BROKEN, found=error.found, remedy=error.remedy)
    except Exception as error:  # another program answers there, and not as we know it
        return Link(
            name=name,
            state=LinkState.BROKEN,
            found=f"an answer that is not understood: {type(error).__name__}: {error}",
            remedy="see that the address is the right one",
        )
    if found is None:
        return unchecked(name, "none are used")
    return Link(name=name, state=LinkState.OK, found=found)


def unchecked(name: str, why: str) -> Link:
    """A link that was not looked at."""
    return Link(name=name, state=LinkState.NOT_CHECKED, found=why)


def base(url: str) -> str:
    """A URL without the path that its server added: "/metrics", "/api/v2/alerts"."""
    parts = urllib.parse.urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path.split('/api/')[0].removesuffix('/metrics')}"


def names(runs: set[str]) -> str:
    """Names in quotes, sorted."""
    return ", ".join(sorted(map(repr, runs)))


def reason(error: Exception) -> str:
    """Why something could not be fetched, in few words."""
    reason = getattr(error, "reason", None) or error
    return getattr(reason, "strerror", None) or str(reason)


def get(url: str) -> str:
    """What a URL answers, in bounded time.

    Raises:
        OSError: Nothing, nothing that is HTTP, or no yes.
    """
    return get_with_headers(url).text


def get_with_headers(url: str) -> Answer:
    """The same, with what stands before it.

    Raises:
        OSError: Nothing, nothing that is HTTP, or no yes.
    """
    answer = fetch(url, seconds=TIMEOUT_SECONDS)
    if not 200 <= answer.status < 300:
        raise OSError(f"it answers HTTP {answer.status}")
    return answer


MAX_SKEW_SECONDS = 30.0


def check_clock(headers: Mapping[str, str], whose: str = "") -> None:
    """Compare the clock of a server with ours: alerts and samples from the future are dropped.

    Args:
        headers: Of its answer.
        whose: Put before what is said.

    Raises:
        BrokenError: They differ by more than `MAX_SKEW_SECONDS`.
    """
    try:
        theirs = parsedate_to_datetime(headers["Date"]).timestamp()
    except (KeyError, ValueError):
        return
    if abs(skew := theirs - time.time()) > MAX_SKEW_SECONDS:
        where = "ahead of" if skew > 0 else "behind"
        raise BrokenError(
            f"{whose}its clock is {abs(skew):.0f} s {where} this machine's",
            "let both machines keep time (chrony, systemd-timesyncd)",
        )
