"""Asking a Grafana, so that every failure says what was asked and what to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from phasewatch.monitor.core.errors import GrafanaError
from phasewatch.monitor.grafana.access import HOW_TO_TOKEN, base_url


class ForbiddenError(GrafanaError):
    """The token may not do that."""


class Asking:
    """Calls of one Grafana.

    Args:
        url: Its address, with the path under which it is served, if any.
        token: Token of a service account.
        dry_run: Only look.
        timeout_seconds: How long one answer may take.

    Attributes:
        url: The address, without a slash at the end.
        api: grafana-client's interface.

    Raises:
        ConfigError: The address cannot be one.
        GrafanaError: grafana-client is not installed.
    """

    def __init__(self, url: str, token: str, *, dry_run: bool, timeout_seconds: float) -> None:
        try:
            from grafana_client.api import GrafanaApi
        except ModuleNotFoundError:
            raise GrafanaError(
                "grafana-client is not installed; run: pip install 'phasewatch[grafana]'"
            ) from None

        self.url = base_url(url)
        self._token = token
        self._dry_run = dry_run
        self.api = GrafanaApi.from_url(f"{self.url}/", credential=token, timeout=timeout_seconds)

    def check(self) -> None:
        """Is there a Grafana at all? A wrong path often leads to a page for people."""
        health = self("say how it is", lambda: self.api.client.GET("/health"))
        if not isinstance(health, Mapping) or "database" not in health:
            raise GrafanaError(
                f"what answers at {self.url} is not the API of a Grafana; give the address of its "
                "start page, without the path of a page within it"
            )

    def find(self, what: str, get: Callable[[str], Any], uid: str) -> dict[str, Any] | None:
        """One thing by its uid; None where it does not exist.

        Args:
            what: What it is, for messages.
            get: Asks Grafana for the thing of a uid.
            uid: Its uid.
        """
        found = self(f"show the {what} {uid!r}", lambda: get(uid), absent=True)
        return None if found is None else dict(found)

    def write(self, what: str, call: Callable[[], Any]) -> None:
        """Change something, unless this is a dry run."""
        if not self._dry_run:
            self(what, call)

    def __call__(self, what: str, call: Callable[[], Any], *, absent: bool = False) -> Any:
        """Call Grafana; every failure says what was asked and what to do."""
        from grafana_client.client import GrafanaException, GrafanaTimeoutError

        kind = GrafanaError
        try:
            return call()
        except GrafanaTimeoutError:
            reason = "it does not answer in time; is it overloaded, or is a firewall in between?"
        except GrafanaException as error:
            if error.status_code == 404 and absent:
                return None
            if error.status_code == 403:
                kind = ForbiddenError
            reason = _reason(error.status_code, str(error.message), self.url)
        except OSError as error:  # what the HTTP library raises
            reason = f"it cannot be reached ({error}); is it running, and is the address right?"
        except ValueError:
            reason = "its answer is not JSON; is the address that of a Grafana's start page?"
        text = f"Grafana at {self.url} did not {what}: {reason}"
        raise kind(text.replace(self._token, "***")) from None


def _reason(status: int, message: str, url: str) -> str:
    if status == 401:
        return f"it does not know the token (401): mistyped, expired or revoked; {HOW_TO_TOKEN}"
    if status == 403:
        return (
            f"the token may not do that (403: {message}); give its service account the role Admin, "
            "or Editor and a data source that is there already (--datasource)"
        )
    if status == 404:
        return f"there is no such page (404); is {url} the address of a Grafana's start page?"
    return f"{message} ({status})"
