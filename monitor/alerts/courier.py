"""How messages of the outbox become alerts and reach their targets, one after the other."""

from __future__ import annotations

import contextvars
import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from phasewatch.monitor.alerts.alertmanager import REFRESH_SECONDS
from phasewatch.monitor.alerts.channels import channel_of
from phasewatch.monitor.alerts.delivery import TOTAL_SECONDS, DeliveryError
from phasewatch.monitor.alerts.message import Alert, write_alert
from phasewatch.monitor.config.alerts import AlertsConfig, Target, masked, quiet_seconds
from phasewatch.monitor.store.outbox import Mailbox, Message, Outbox
from phasewatch.monitor.store.schema import reason_of
from phasewatch.monitor.store.store import Store

log = logging.getLogger("phasewatch")

REFUSALS = {"HTTP 400", "HTTP 413", "HTTP 415", "HTTP 422"}
"""Answers that may be about the picture: the next try goes without."""

FIRST_RETRY_SECONDS = 1.0
MAX_RETRY_SECONDS = 300.0
HOUR = 3600.0


def check(target: Target) -> str:
    """Why a target cannot be used; empty if it can."""
    return channel_of(target.url).check(target.url)


def deliver(target: Target, alert: Alert) -> None:
    """Send one alert to one target, in bounded time.

    Raises:
        DeliveryError: The target has not taken it; says why, without secrets.
    """
    found: list[DeliveryError | None] = []
    context = contextvars.copy_context()

    def work() -> None:
        found.append(context.run(_deliver, target, alert))

    # A service that drips, by whatever protocol, keeps its thread and not the courier.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(TOTAL_SECONDS)
    if not found:
        raise DeliveryError(f"no full answer in {TOTAL_SECONDS:g} s")
    if found[0] is not None:
        raise found[0]


def _deliver(target: Target, alert: Alert) -> DeliveryError | None:
    try:
        channel_of(target.url).send(target.url, alert)
    except DeliveryError as error:
        return error
    except BaseException as error:  # a channel may raise anything
        said = masked(f"{type(error).__name__}: {error}", target.url)
        return DeliveryError(said[:200])
    return None


class AlertWriter:
    """Turns messages of the outbox into alerts.

    Args:
        store: The run history.
        config: Links, and whether to draw.
        folder: Where pictures are kept while they are needed.
        say: Takes what people should know.
    """

    def __init__(
        self,
        store: Store,
        config: AlertsConfig,
        folder: Path,
        *,
        say: Callable[[str], None] = log.warning,
    ) -> None:
        self._say = say
        self._has_told = False
        self._store = store
        self._config = config
        self._folder = folder
        self._drawing = threading.Lock()

    def write(self, message: Message, *, drawn: bool) -> Alert:
        """Write the alert of a message; with its picture if `drawn`."""
        transition = message.transition
        run = self._store.run(transition.run)
        return write_alert(
            transition,
            key=message.key,
            told_as=message.told_as,
            state=message.state,
            run=run.name,
            units=self._store.units(transition.run),
            stored=run.config,
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
                from phasewatch.monitor.reports.png import write_picture  # slow to import

                return write_picture(self._store, transition.run, path)
            except Exception as error:
                if not self._has_told:
                    self._say(
                        f"no picture of run {transition.run} can be drawn "
                        f"({type(error).__name__}: {error}); alerts go out without one"
                    )
                self._has_told = True
                return None


@dataclass(slots=True)
class DeliveryCounts:
    """What one courier has done."""

    sent: int = 0
    failed: int = 0


class Courier:
    """Sends the messages of one target, one after the other.

    Args:
        target: The target.
        outbox: Where they wait.
        writer: Writes them.
        config: Rate limit and quiet hours.
        run_id: The run that sends: its alerts are kept up where the target needs that, and its
            messages are adopted where the target's secret was changed.
        say: Takes what people should know.
    """

    def __init__(
        self,
        target: Target,
        outbox: Outbox,
        writer: AlertWriter,
        config: AlertsConfig,
        *,
        run_id: str | None = None,
        say: Callable[[str], None] = log.warning,
    ) -> None:
        self.target = target
        self.box = Mailbox(target=target.name, run_id=run_id)
        self.counts = DeliveryCounts()
        self.is_held = False
        self.has_lasting = False
        self._outbox = outbox
        self._writer = writer
        self._config = config
        self._run_id = run_id
        self._say = say
        self._num_failures = 0
        self._num_refused_in_row = 0
        self._unnoted: dict[int, Message] = {}
        self._taken: set[str] = set()
        self._put_off_until: dict[int, float] = {}
        self._retry_at = 0.0
        self._refresh_at = time.monotonic() + REFRESH_SECONDS

    @property
    def num_unnoted(self) -> int:
        """Messages that were delivered, which the store has not taken yet."""
        return len(self._unnoted)

    def retry_now(self) -> None:
        """Try again at once: the end is near."""
        self._retry_at = 0.0
        self._put_off_until.clear()

    def step(self, *, is_urgent: bool = False) -> bool:
        """Send the next message, if there is one and now is the time.

        Args:
            is_urgent: Heed neither quiet hours nor the rate limit: a person asked for it.

        Returns:
            Whether there may be more to do at once.
        """
        self._note_delivered()
        self.is_held = not (is_urgent or self._is_allowed())
        if self.is_held or time.monotonic() < self._retry_at:
            return False
        message = self._outbox.first(self.box, self._skipped())
        if message is None:
            return False
        if message.key in self._taken:  # the store is another one now, and knows nothing of it
            self._unnoted[message.id] = message
            return True
        drawn = not self.target.is_alertmanager and message.last_error not in REFUSALS
        alert = self._writer.write(message, drawn=drawn)
        if not self._outbox.claim(message):
            return False
        try:
            deliver(self.target, alert)
        except DeliveryError as error:
            return self._failed(message, error)
        self._unnoted[message.id] = message
        self._taken.add(message.key)
        self.counts.sent += 1
        if self._num_failures:
            self._say(f"{self.target.name} takes alerts again")
        self._num_failures = self._num_refused_in_row = 0
        self._note_delivered()
        return True

    def _note_delivered(self) -> None:
        """Note in the store what was delivered. Until it is noted, it is known here.

        Raises:
            Exception: The store cannot be written; it is tried again, and nothing is sent twice.
        """
        for number, message in [*self._unnoted.items()]:
            self._outbox.delivered(message)
            del self._unnoted[number]

    def _skipped(self) -> set[int]:
        """Messages that were refused and are put off, and those that only wait to be noted."""
        now = time.monotonic()
        return {n for n, until in self._put_off_until.items() if until > now} | {*self._unnoted}

    def refresh_lasting(self) -> None:
        """Send again what lasts, to a target that would else take it for over."""
        if not self.target.is_alertmanager or self._run_id is None:
            return
        if time.monotonic() < self._refresh_at:
            return
        self._refresh_at = time.monotonic() + REFRESH_SECONDS
        lasting = self._outbox.open_alerts(self.target.name, self._run_id)
        self.has_lasting = bool(lasting)
        for message in lasting:
            deliver(self.target, self._writer.write(message, drawn=False))

    def _is_allowed(self) -> bool:
        if self.target.is_alertmanager:
            return True
        if quiet_seconds(self._config.quiet_hours, datetime.now().astimezone()):
            return False
        sent = self._outbox.num_sent_since(self.target.name, time.time() - HOUR)
        return sent < self._config.max_per_hour

    def record_failure(self, error: Exception) -> None:
        """Put off what failed before it reached the target: a busy store, a faulty message."""
        said = masked(f"{type(error).__name__}: {reason_of(error)}", self.target.url)[:200]
        self._put_off(f"an alert for {self.target.name} could not be sent: {said}")

    def _put_off(self, what: str) -> None:
        """Count a failure, say the first of a row, and wait longer after each."""
        self.counts.failed += 1
        self._retry_at = time.monotonic() + _pause(self._num_failures)
        if not self._num_failures:
            self._say(f"{what}; it waits in the outbox and is tried again")
        self._num_failures += 1

    def _failed(self, message: Message, error: DeliveryError) -> bool:
        """Put off what was not taken: the message alone, or everything for this target.

        Returns:
            Whether the next message may be tried at once.
        """
        what = f"{self.target.name} did not take an alert: {error}"
        self._num_refused_in_row += 1
        # One that is refused may be at fault itself, and must not hold up the others.
        is_its_own = error.has_answered and error.retry_after is None
        if is_its_own:
            self._put_off_until[message.id] = time.monotonic() + _pause(message.tries)
        is_first = is_its_own and self._num_refused_in_row == 1
        self._put_off(what)
        if is_first:
            self._retry_at = 0.0
        not_before = None if error.retry_after is None else time.time() + error.retry_after
        self._outbox.failed(message, str(error), not_before)
        return is_first


def _pause(num_failures: int) -> float:
    wait: float = min(FIRST_RETRY_SECONDS * 2.0**num_failures, MAX_RETRY_SECONDS)
    return wait * random.uniform(0.5, 1.5)  # noqa: S311 - jitter


def couriers(
    store: Store,
    targets: Sequence[Target],
    config: AlertsConfig,
    folder: Path,
    *,
    run_id: str | None = None,
    say: Callable[[str], None] = log.warning,
) -> list[Courier]:
    """A courier for each target.

    Args:
        store: The run history, with its outbox.
        targets: Whom to tell.
        config: When and how.
        folder: Where pictures are kept while they are needed.
        run_id: The run whose alerts are kept up; None keeps up none.
        say: Takes what people should know.
    """
    outbox = store.outbox
    writer = AlertWriter(store, config, folder, say=say)
    return [Courier(target, outbox, writer, config, run_id=run_id, say=say) for target in targets]
