"""The training process's side of sending alerts: starts the sender, hears how it is doing.

No thread and nothing that draws from a global generator: alerts are written to the store, and
another process takes them from there.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from phasewatch.monitor.alerts.delivery import NOTE_SECONDS
from phasewatch.monitor.config.alerts import AlertsConfig, Target
from phasewatch.monitor.core.errors import ConfigError
from phasewatch.monitor.core.health import Health
from phasewatch.monitor.core.transitions import Recipient, Transition, TransitionStatus
from phasewatch.monitor.store.outbox import Mailbox, Outbox
from phasewatch.monitor.store.store import Store

log = logging.getLogger("phasewatch")

COMMAND = (sys.executable, "-P", "-m", "phasewatch.monitor.alerts.worker")
"""No fork: CUDA and threads do not survive one. `-P`: nor may a file here hide a module."""

CHECK_SECONDS = 60.0

IDLE_SECONDS = 60.0
"""A sender with nothing to do ends; the next message starts another."""

RESTART_SECONDS = 30.0
"""Pause before a sender that has ended is replaced."""

SEEN_SECONDS = 5.0
"""Time after which a sender that lives has seen a message."""

CLOSE_SLACK_SECONDS = 5.0
"""What a sender may take beyond its grace, to start and to end."""


def check_targets(targets: Sequence[Target]) -> None:
    """Ask a process that does not train whether the targets can be used.

    Raises:
        ConfigError: One cannot; names it by position and service.
    """
    order = json.dumps({"check": {target.name: target.url for target in targets}})
    try:
        done = subprocess.run(  # noqa: S603 - our own command
            COMMAND, input=order, capture_output=True, text=True, timeout=CHECK_SECONDS, check=True
        )
        wrong = {name: why for name, why in json.loads(done.stdout).items() if why}
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        log.warning("alert targets could not be checked (%s)", type(error).__name__)
        return
    if wrong:
        listed = "; ".join(f"{name}: {why}" for name, why in wrong.items())
        raise ConfigError(
            f"alerts: {listed}. Give URLs as https://appriseit.com/services/ lists them, or "
            "alertmanager://host:9093"
        )


class AlertProcess:
    """Has the transitions of one fit told to the targets.

    Args:
        targets: Whom to tell.
        config: When and how.
        store: The history that keeps the messages; not one in memory.
        run_id: Identity of the run.
        health: Where messages are counted.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        config: AlertsConfig,
        store: Store,
        run_id: str,
        health: Health,
    ) -> None:
        self._config = config
        self._health = health
        self._targets = tuple(targets)
        self._run_id = run_id
        self._recipients = tuple(target.recipient(config) for target in targets)
        self._order = {
            "store": store.url,
            "run_id": run_id,
            "targets": [{"name": target.name, "url": target.url} for target in targets],
            "config": config.model_dump(mode="json", exclude={"targets"}),
            "idle_seconds": IDLE_SECONDS,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = -RESTART_SECONDS
        self._is_expecting = False
        self._expected_at = 0.0
        self._rest = b""
        self._is_noting = False
        self._before = (health.alert_sent, health.alert_failures)

    def resume(self, outbox: Outbox) -> None:
        """Have sent what earlier attempts of this run, or runs with the same target, have left."""
        boxes = [Mailbox(target=t.name, run_id=self._run_id) for t in self._targets]
        self._health.alert_queue = outbox.num_waiting(boxes)
        if self._health.alert_queue:
            self._start()

    def recipients(self, transition: Transition) -> tuple[Recipient, ...]:
        """Whom the store is to write messages for."""
        is_early = transition.status is TransitionStatus.SUSPECTED
        return () if is_early and self._config.at != "suspected" else self._recipients

    def expect(self, transition: Transition) -> None:
        """Have messages that were just entered sent; starts the sender if it must."""
        is_end = transition.status is TransitionStatus.ENDED
        num_new = sum(recipient.updates or not is_end for recipient in self._recipients)
        if num_new:
            self._health.alert_queue += num_new  # until the sender says how many wait
            self._expected_at = time.monotonic()
            self._is_expecting = True
            self._start()

    def refresh(self) -> None:
        """Hear from the sender; put a new one in the place of one that ended too early."""
        process = self._process
        if process is not None:
            self._hear(process)
            if process.poll() is None:
                if time.monotonic() > self._expected_at + SEEN_SECONDS:
                    self._is_expecting = False
                return
            self._reap(process)
        if self._is_expecting or self._health.alert_queue:
            self._start()
            self._is_expecting = False

    def close(self) -> None:
        """Give the sender its grace for what is left, and say what stays in the outbox.

        Everything must have been stored before.
        """
        if self._process is not None and self._process.poll() is not None:
            self._reap(self._process)
        if self._process is None and (self._is_expecting or self._health.alert_queue):
            self._started_at = -RESTART_SECONDS
            self._start()
        if self._process is not None:
            self._give_grace(self._process)
        if left := self._health.alert_queue:
            log.warning(
                "%d alerts are not delivered yet; this run sends them when it is resumed, or the "
                "next run with the same targets, or `phasewatch outbox --flush`",
                left,
            )

    def _give_grace(self, process: subprocess.Popen[bytes]) -> None:
        try:
            if process.stdin is not None:
                process.stdin.write(b"close\n")
                process.stdin.flush()
            end = time.monotonic() + self._config.grace_seconds + CLOSE_SLACK_SECONDS
            # What was delivered and could not be noted yet would be sent again.
            while process.poll() is None and (
                time.monotonic() < end
                or (self._is_noting and time.monotonic() < end + NOTE_SECONDS)
            ):
                self._hear(process)
                time.sleep(0.02)
        except OSError:  # it has just ended
            pass
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            self._reap(process)

    def _start(self) -> None:
        if self._process is not None or time.monotonic() < self._started_at + RESTART_SECONDS:
            return
        self._started_at = time.monotonic()
        try:
            process = subprocess.Popen(  # noqa: S603 - our own command
                COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # a traceback may hold secrets
                start_new_session=True,  # Ctrl-C ends the training, and leaves alerts their grace
            )
        except OSError as error:
            log.warning("alerts wait: no process can be started to send them (%s)", error.strerror)
            return
        self._process = process
        assert process.stdin is not None  # noqa: S101 - asked for above
        assert process.stdout is not None  # noqa: S101
        if os.name == "posix":
            os.set_blocking(process.stdout.fileno(), False)
        with contextlib.suppress(OSError):  # it has ended at once: seen at the next refresh
            process.stdin.write(json.dumps(self._order).encode() + b"\n")
            process.stdin.flush()

    def _hear(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None  # noqa: S101 - asked for at the start
        if os.name != "posix" or process.stdout.closed:
            return
        while True:
            try:
                content = os.read(process.stdout.fileno(), 65536)
            except BlockingIOError:
                break
            if not content:
                break
            *lines, self._rest = (self._rest + content).split(b"\n")
            for line in lines:
                self._take(json.loads(line))

    def _take(self, report: Mapping[str, Any]) -> None:
        health, (sent, failed) = self._health, self._before
        health.alert_sent = sent + report["sent"]
        health.alert_failures = failed + report["failed"]
        self._is_noting = bool(report["unnoted"])
        if report["waiting"] is not None:
            health.alert_queue = report["waiting"]
        for note in report["say"]:
            log.warning("alerts: %s", note)

    def _reap(self, process: subprocess.Popen[bytes]) -> None:
        self._hear(process)
        if process.returncode:
            log.warning("the process that sends alerts ended with %d", process.returncode)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # nobody is left to read the rest
                    pipe.close()
        self._before = (self._health.alert_sent, self._health.alert_failures)
        self._rest = b""
        self._process = None
