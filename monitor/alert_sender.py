"""The process that sends alerts: `python -m phasewatch.monitor.alert_sender`.

It is a process of its own, for what sends mail and HTTP draws from global generators, and because
nothing it does may hold up training. It reads one line of JSON from standard input: the store, the
targets with their secrets, the settings. It then works through the outbox, one thread for each
target, and says on standard output how it is doing. The line "close", the end of the input, or the
death of the process that started it give it `grace_seconds` more. What is not sent then waits in
the store.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from phasewatch.monitor.alert_text import Alert, write_alert
from phasewatch.monitor.alerts import AlertsConfig, Target, masked, quiet_seconds
from phasewatch.monitor.outbox import Message, Outbox
from phasewatch.monitor.sinks.alertmanager import (
    REFRESH_SECONDS,
    check_alertmanager,
    send_to_alertmanager,
)
from phasewatch.monitor.sinks.delivery import DeliveryError
from phasewatch.monitor.store import Store

POLL_SECONDS = 0.5
"""How often a sender looks for messages, and for what it is told."""

REPORT_SECONDS = 5.0
"""How often a sender says how it is doing though nothing has changed."""

REFUSALS = {"HTTP 400", "HTTP 413", "HTTP 415", "HTTP 422"}
"""Answers that may be about the picture: the next try goes without."""

FIRST_RETRY_SECONDS = 1.0
MAX_RETRY_SECONDS = 300.0
HOUR = 3600.0


def check(target: Target) -> str:
    """Why a target cannot be used; empty if it can."""
    if target.is_alertmanager:
        return check_alertmanager(target.url)
    from phasewatch.monitor.sinks.apprise import check_apprise  # slow to import

    return check_apprise(target.url)


def deliver(target: Target, alert: Alert) -> None:
    """Send one alert to one target.

    Raises:
        DeliveryError: The target has not taken it; says why, without secrets.
    """
    try:
        if target.is_alertmanager:
            send_to_alertmanager(target.url, alert)
        else:
            from phasewatch.monitor.sinks.apprise import send_by_apprise

            send_by_apprise(target.url, alert)
    except DeliveryError:
        raise
    except Exception as error:  # a plugin of Apprise may raise anything
        said = masked(f"{type(error).__name__}: {error}", target.url)
        raise DeliveryError(said[:200]) from None


class Desk:
    """Turns messages of the outbox into alerts.

    Args:
        store: The run history.
        config: Links, and whether to draw.
        folder: Where pictures are kept while they are needed.
    """

    def __init__(self, store: Store, config: AlertsConfig, folder: Path) -> None:
        self._store = store
        self._config = config
        self._folder = folder
        self._drawing = threading.Lock()

    def write(self, message: Message, *, drawn: bool) -> Alert:
        """Write the alert of a message; with its picture if `drawn`."""
        transition = message.transition
        run = self._store.run(transition.run).name
        return write_alert(
            transition,
            key=message.key,
            first=message.first,
            state=message.state,
            run=run,
            units=self._store.units(transition.run),
            store=self._store.where,
            config=self._config,
            picture=self._picture(message) if drawn and self._config.picture else None,
        )

    def _picture(self, message: Message) -> Path | None:
        """The run's curves; None where they cannot be drawn: an alert does not wait for that."""
        transition = message.transition
        path = self._folder / f"{transition.id}-{message.state}.png"
        with self._drawing:
            if path.exists():
                return path
            try:
                from phasewatch.monitor.picture import write_picture  # slow to import

                return write_picture(self._store, transition.run, path)
            except Exception:
                return None


@dataclass(slots=True)
class Account:
    """What one courier has done."""

    sent: int = 0
    failed: int = 0


class Courier:
    """Sends the messages of one target, one after the other.

    Args:
        target: The target.
        names: Names under which its messages wait.
        outbox: Where they wait.
        desk: Writes them.
        config: Rate limit and quiet hours.
        run_id: The run whose alerts are kept up, where the target needs that.
        say: Takes what people should know.
    """

    def __init__(
        self,
        target: Target,
        names: Sequence[str],
        outbox: Outbox,
        desk: Desk,
        config: AlertsConfig,
        *,
        run_id: str | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.target = target
        self.names = tuple(names)
        self.account = Account()
        self.is_held = False
        self.is_keeping_up = False
        self._outbox = outbox
        self._desk = desk
        self._config = config
        self._run_id = run_id
        self._say = say
        self._num_failures = 0
        self._retry_at = 0.0
        self._refresh_at = time.monotonic() + REFRESH_SECONDS

    def hurry(self) -> None:
        """Try again at once: the end is near."""
        self._retry_at = 0.0

    def step(self, *, is_urgent: bool = False) -> bool:
        """Send the next message, if there is one and now is the time.

        Args:
            is_urgent: Heed neither quiet hours nor the rate limit: a person asked for it.

        Returns:
            Whether there may be more to do at once.
        """
        self.is_held = not (is_urgent or self._is_allowed())
        if self.is_held or time.monotonic() < self._retry_at:
            return False
        message = self._outbox.first(self.names)
        if message is None:
            return False
        drawn = not self.target.is_alertmanager and message.last_error not in REFUSALS
        alert = self._desk.write(message, drawn=drawn)
        if not self._outbox.claim(message):
            return False
        try:
            deliver(self.target, alert)
        except DeliveryError as error:
            self._failed(message, str(error), error.retry_after)
            return False
        self._outbox.delivered(message)
        self.account.sent += 1
        if self._num_failures:
            self._say(f"{self.target.name} takes alerts again")
        self._num_failures = 0
        return True

    def keep_up(self) -> None:
        """Send again what lasts, to a target that would else take it for over."""
        if not self.target.is_alertmanager or self._run_id is None:
            return
        if time.monotonic() < self._refresh_at:
            return
        self._refresh_at = time.monotonic() + REFRESH_SECONDS
        lasting = self._outbox.open_alerts(self.target.name, self._run_id)
        self.is_keeping_up = bool(lasting)
        for message in lasting:
            deliver(self.target, self._desk.write(message, drawn=False))

    def _is_allowed(self) -> bool:
        if self.target.is_alertmanager:
            return True
        if quiet_seconds(self._config.quiet_hours, datetime.now().astimezone()):
            return False
        sent = self._outbox.num_sent_since(self.target.name, time.time() - HOUR)
        return sent < self._config.max_per_hour

    def _failed(self, message: Message, reason: str, retry_after: float | None) -> None:
        self.account.failed += 1
        wait = min(FIRST_RETRY_SECONDS * 2**self._num_failures, MAX_RETRY_SECONDS)
        self._retry_at = time.monotonic() + wait * random.uniform(0.5, 1.5)  # noqa: S311 - jitter
        if not self._num_failures:
            self._say(
                f"{self.target.name} did not take an alert: {reason}; it waits in the outbox and "
                "is tried again"
            )
        self._num_failures += 1
        not_before = None if retry_after is None else time.time() + retry_after
        self._outbox.failed(message, reason, not_before)


def couriers(
    store: Store,
    targets: Sequence[Target],
    config: AlertsConfig,
    folder: Path,
    **more: Any,
) -> list[Courier]:
    """A courier for each target."""
    outbox = store.outbox
    desk = Desk(store, config, folder)
    waiting, names = outbox.waiting_targets(), {target.name for target in targets}
    return [
        Courier(target, target.goes_by(waiting, names), outbox, desk, config, **more)
        for target in targets
    ]


class Office:
    """The whole process: its couriers, what it is told, what it tells.

    Args:
        order: What the first line of standard input said.
    """

    def __init__(self, order: Mapping[str, Any]) -> None:
        self._config = AlertsConfig.model_validate(order["config"])
        self._targets = [Target(**target) for target in order["targets"]]
        self._order = order
        self._parent = os.getppid()
        self._closing = threading.Event()
        self._notes: list[str] = []
        self._last_report = b""
        self._reported_at = 0.0

    def run(self) -> None:
        """Work until told to close, or until there has been nothing to do for a while."""
        threading.Thread(target=self._listen, daemon=True).start()
        with (
            Store(self._order["store"], create=False) as store,
            tempfile.TemporaryDirectory(prefix="phasewatch-", ignore_cleanup_errors=True) as folder,
        ):
            crew = couriers(
                store,
                self._targets,
                self._config,
                Path(folder),
                run_id=self._order["run_id"],
                say=self._notes.append,
            )
            for courier in crew:
                threading.Thread(target=self._work, args=(courier,), daemon=True).start()
            self._watch(crew, store.outbox)

    def _watch(self, crew: Sequence[Courier], outbox: Outbox) -> None:
        names = {name for courier in crew for name in courier.names}
        busy_at = time.monotonic()
        deadline: float | None = None
        while True:
            waiting = _or_none(lambda: outbox.num_waiting(names))
            self._report(crew, waiting)
            now = time.monotonic()
            if waiting or any(courier.is_keeping_up for courier in crew):
                busy_at = now
            if os.getppid() != self._parent:
                self._closing.set()
            if deadline is None and self._closing.is_set():
                deadline = now + self._config.grace_seconds
                for courier in crew:
                    courier.hurry()
            is_over = deadline is not None and (
                now >= deadline or not _or_none(lambda: outbox.num_waiting(_to_send(crew)))
            )
            if is_over or now - busy_at > self._order["idle_seconds"]:
                return
            time.sleep(POLL_SECONDS if deadline is None else POLL_SECONDS / 5)

    def _work(self, courier: Courier) -> None:
        while True:
            try:
                while courier.step():
                    pass
                courier.keep_up()
            except Exception:  # noqa: S110 - the store is busy or gone: tried again
                pass
            time.sleep(POLL_SECONDS)

    def _listen(self) -> None:
        for line in sys.stdin:
            if line.strip() == "close":
                break
        self._closing.set()

    def _report(self, crew: Sequence[Courier], waiting: int | None) -> None:
        """Say how it goes; never wait for somebody to read it."""
        notes, self._notes[:] = list(self._notes), []
        content = {
            "waiting": waiting,
            "sent": sum(courier.account.sent for courier in crew),
            "failed": sum(courier.account.failed for courier in crew),
            "say": notes[:10],
        }
        line = json.dumps(content).encode() + b"\n"
        now = time.monotonic()
        if line == self._last_report and now < self._reported_at + REPORT_SECONDS:
            return
        self._reported_at = now
        try:
            os.write(sys.stdout.fileno(), line)
            self._last_report = line
        except BlockingIOError:
            self._notes[:0] = notes
        except OSError:  # nobody is there any more
            self._last_report = line


def _to_send(crew: Sequence[Courier]) -> list[str]:
    """Names of the targets that may be told something now."""
    return [name for courier in crew if not courier.is_held for name in courier.names]


def _or_none(read: Callable[[], int]) -> int | None:
    try:
        return read()
    except Exception:
        return None


def main() -> None:
    """Read what to do from standard input, and do it."""
    order = json.loads(sys.stdin.readline())
    if "check" in order:
        found = {name: check(Target(name=name, url=url)) for name, url in order["check"].items()}
        print(json.dumps(found))  # noqa: T201 - this is what the parent waits for
        return
    if hasattr(os, "set_blocking"):
        os.set_blocking(sys.stdout.fileno(), False)
    Office(order).run()
    sys.stdout.flush()
    os._exit(0)  # a target that never answers must not keep the process


if __name__ == "__main__":
    main()
