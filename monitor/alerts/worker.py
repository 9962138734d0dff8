"""The process that sends alerts: `python -m phasewatch.monitor.alerts.worker`.

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
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from phasewatch.monitor.alerts.courier import Courier, check, couriers
from phasewatch.monitor.alerts.delivery import NOTE_SECONDS
from phasewatch.monitor.config.alerts import AlertsConfig, Target
from phasewatch.monitor.store.outbox import Mailbox, Outbox
from phasewatch.monitor.store.store import Store

POLL_SECONDS = 0.5
"""How often a sender looks for messages, and for what it is told."""

REPORT_SECONDS = 5.0
"""How often a sender says how it is doing though nothing has changed."""


class Worker:
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
        boxes = [courier.box for courier in crew]
        busy_at = time.monotonic()
        deadline: float | None = None
        while True:
            waiting = _or_none(lambda: outbox.num_waiting(boxes))
            self._report(crew, waiting)
            now = time.monotonic()
            if waiting or any(courier.has_lasting for courier in crew):
                busy_at = now
            if os.getppid() != self._parent:
                self._closing.set()
            if deadline is None and self._closing.is_set():
                deadline = now + self._config.grace_seconds
                for courier in crew:
                    courier.retry_now()
            is_noting = any(courier.num_unnoted for courier in crew)
            is_over = deadline is not None and (
                now >= deadline + (NOTE_SECONDS if is_noting else 0.0)
                or not (is_noting or _or_none(lambda: outbox.num_waiting(_to_send(crew))))
            )
            if is_over or now - busy_at > self._order["idle_seconds"]:
                return
            time.sleep(POLL_SECONDS if deadline is None else POLL_SECONDS / 5)

    def _work(self, courier: Courier) -> None:
        while True:
            try:
                while courier.step():
                    pass
                courier.refresh_lasting()
            except Exception as error:
                courier.record_failure(error)
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
            "sent": sum(courier.counts.sent for courier in crew),
            "failed": sum(courier.counts.failed for courier in crew),
            "unnoted": sum(courier.num_unnoted for courier in crew),
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


def _to_send(crew: Sequence[Courier]) -> list[Mailbox]:
    """Those of the targets that may be told something now."""
    return [courier.box for courier in crew if not courier.is_held]


def _or_none(read: Callable[[], int]) -> int | None:
    """A count from the store; None where it cannot be read, which the couriers count and tell."""
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
    Worker(order).run()
    sys.stdout.flush()
    os._exit(0)  # a target that never answers must not keep the process


if __name__ == "__main__":
    main()
