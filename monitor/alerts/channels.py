"""Ways of sending an alert, by the service that a target's URL names.

Alertmanager has a channel of its own; whatever else is sent by Apprise. A package adds one with the
entry-point group `phasewatch.alert_channels`: the entry point's name is the scheme of the URLs, and
it names a class or function that returns a `Channel`. Channels work in a process that does not
train.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Protocol

from phasewatch.monitor.alerts.alertmanager import check_alertmanager, send_to_alertmanager
from phasewatch.monitor.alerts.message import Alert
from phasewatch.monitor.config.alerts import ALERTMANAGER_SCHEMES, scheme_of

ENTRY_POINT_GROUP = "phasewatch.alert_channels"


class Channel(Protocol):
    """One way of sending alerts. Its URLs hold secrets: they belong in no message and no log."""

    def check(self, url: str) -> str:
        """Why a URL cannot be used; empty if it can."""

    def send(self, url: str, alert: Alert) -> None:
        """Send one alert, within some seconds.

        Raises:
            DeliveryError: The target has not taken it; says why, and when to come back if it said.
        """


class Alertmanager:
    """Alertmanager's own API, by which an alert can be ended."""

    def check(self, url: str) -> str:
        """Why a URL cannot be used; empty if it can."""
        return check_alertmanager(url)

    def send(self, url: str, alert: Alert) -> None:
        """Send an alert, or news of it.

        Raises:
            DeliveryError: Alertmanager has not taken it.
        """
        send_to_alertmanager(url, alert)


class Apprise:
    """The services that Apprise speaks to."""

    def check(self, url: str) -> str:
        """Why a URL cannot be used; empty if it can."""
        from phasewatch.monitor.alerts.apprise import check_apprise  # slow to import

        return check_apprise(url)

    def send(self, url: str, alert: Alert) -> None:
        """Send an alert; its picture goes along where the service takes files.

        Raises:
            DeliveryError: The service has not taken it.
        """
        from phasewatch.monitor.alerts.apprise import send_by_apprise

        send_by_apprise(url, alert)


def channel_of(url: str) -> Channel:
    """The channel that sends to a target.

    Args:
        url: The target's URL.

    Example:
        >>> type(channel_of("alertmanager://localhost:9093")).__name__
        'Alertmanager'
        >>> type(channel_of("slack://a/b/c")).__name__
        'Apprise'
    """
    scheme = scheme_of(url)
    if scheme in ALERTMANAGER_SCHEMES:
        return Alertmanager()
    for entry_point in entry_points(group=ENTRY_POINT_GROUP, name=scheme):
        installed: Channel = entry_point.load()()
        return installed
    return Apprise()
