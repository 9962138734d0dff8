"""A marked alert through the real Alertmanager, and whether it came out at the other end."""

from __future__ import annotations

import json
import os
import re
import time
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

from phasewatch.monitor.bounded_http import NoAnswerError, fetch
from phasewatch.monitor.doctor_links import TIMEOUT_SECONDS, BrokenError, get

ALERT_NAME = "PhasewatchTransition"
WAIT_SECONDS = 60.0
"""Longest wait for a notification: `group_wait` of the shipped routes is 2 s, of many others 30."""


class EndToEnd:
    """Sends a test alert, waits until somebody was told, and ends it again.

    Args:
        url: Base URL of Alertmanager.
        wait_seconds: Longest wait for the notification.
    """

    def __init__(self, url: str, wait_seconds: float = WAIT_SECONDS) -> None:
        self._url = url
        self._wait = wait_seconds
        self._started = datetime.now(UTC) - timedelta(seconds=1)
        self._labels = {
            "alertname": ALERT_NAME,
            "severity": "info",
            "kind": "test",
            "run": "a test by phasewatch doctor",
            "run_id": f"doctor-{os.urandom(6).hex()}",
        }

    def run(self) -> str:
        """What came of it.

        Raises:
            BrokenError: It was not taken, is muted, or nobody could be told.
        """
        before = self._counts()
        self._post(time.time() + 300)
        try:
            self._read_back(patience=5.0)
            return self._notified(before)
        finally:
            self._post(time.time())

    def _post(self, ends_at: float) -> None:
        alert = {
            "labels": self._labels,
            "annotations": {
                "summary": "A test by phasewatch doctor: nothing has happened",
                "description": "Sent by `phasewatch doctor --end-to-end` to see if it arrives.",
            },
            "startsAt": self._started.isoformat(),
            "endsAt": datetime.fromtimestamp(ends_at, UTC).isoformat(),
        }
        try:
            answer = fetch(
                f"{self._url}/api/v2/alerts",
                data=json.dumps([alert]).encode(),
                headers={"Content-Type": "application/json"},
                seconds=TIMEOUT_SECONDS,
            )
        except NoAnswerError as error:
            raise BrokenError(str(error), "see that Alertmanager runs") from None
        if not 200 <= answer.status < 300:
            raise BrokenError(
                f"it answers HTTP {answer.status} to an alert: {answer.text[:200]}",
                "look into Alertmanager's log",
            )

    def _read_back(self, patience: float = 0.0) -> None:
        """Whether Alertmanager shows the alert, and mutes it: it says so when it would tell."""
        wanted = quote(f'run_id="{self._labels["run_id"]}"')
        deadline = time.monotonic() + patience
        while True:
            found = json.loads(get(f"{self._url}/api/v2/alerts?filter={wanted}"))
            if found or time.monotonic() > deadline:
                break
            time.sleep(0.2)
        if not found:
            raise BrokenError(
                "Alertmanager took the test alert and does not show it",
                "see that its clock is right: an alert that has ended by its clock is dropped",
            )
        status = found[0]["status"]
        if silences := status["silencedBy"]:
            raise BrokenError(
                f"the test alert is silenced by {', '.join(silences)}",
                f"amtool silence expire {silences[0]} --alertmanager.url={self._url}",
            )
        if status["inhibitedBy"]:
            raise BrokenError(
                "the test alert is inhibited by another one",
                "look at `inhibit_rules` in alertmanager.yml",
            )

    def _notified(self, before: dict[str, tuple[float, float]]) -> str:
        deadline = time.monotonic() + self._wait
        failed: list[str] = []
        while time.monotonic() < deadline:
            time.sleep(0.5)
            told, failed = [], []
            for name, (tried, failures) in self._counts().items():
                old_tried, old_failures = before.get(name, (0.0, 0.0))
                if tried - failures > old_tried - old_failures:
                    told.append(name)
                elif failures > old_failures:
                    failed.append(name)
            if told:
                return f"a marked test alert was taken by {', '.join(told)}"
            self._read_back()
        if failed:
            raise BrokenError(
                f"{', '.join(failed)} did not take the test alert",
                "look into Alertmanager's log for why; mend the receiver's address or secret",
            )
        raise BrokenError(
            f"no receiver was told of the test alert within {self._wait:.0f} s",
            "look at the route that alerts of phasewatch take, its group_wait and mute times",
        )

    def _counts(self) -> dict[str, tuple[float, float]]:
        """Requests to each integration, and those that failed."""
        return notification_counts(get(f"{self._url}/metrics"))


def notification_counts(page: str) -> dict[str, tuple[float, float]]:
    """By integration, from Alertmanager's metrics: requests tried, requests failed."""

    def totals(metric: str) -> dict[str, float]:
        summed: dict[str, float] = {}
        pattern = rf'^{metric}\{{[^}}]*?integration="(\w+)"[^}}]*\}} (\S+)$'
        for integration, value in re.findall(pattern, page, re.MULTILINE):
            summed[integration] = summed.get(integration, 0.0) + float(value)
        return summed

    tried = totals("alertmanager_notification_requests_total")
    failed = totals("alertmanager_notification_requests_failed_total")
    return {name: (count, failed.get(name, 0.0)) for name, count in tried.items()}
