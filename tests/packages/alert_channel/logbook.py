"""An alert channel of one's own: one class, one entry point; its targets are logbook:///PATH."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from phasewatch.monitor.alerts.delivery import DeliveryError
from phasewatch.monitor.alerts.message import Alert


class Logbook:
    """Writes each alert as a line of a file."""

    def check(self, url: str) -> str:
        return "" if urlsplit(url).path else "it names no file; give logbook:///PATH"

    def send(self, url: str, alert: Alert) -> None:
        try:
            with Path(urlsplit(url).path).open("a", encoding="utf-8") as file:
                file.write(alert.title + "\n")
        except OSError as error:
            raise DeliveryError(error.strerror or "it cannot be written") from None
