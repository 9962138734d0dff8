"""Which process writes a run, and whether it is still there."""

from __future__ import annotations

import functools
import os
import platform
from dataclasses import dataclass
from pathlib import Path

HEARTBEAT_SECONDS = 10.0
"""How often a run that has nothing to write says that it lives."""

STALE_SECONDS = 120.0
"""Silence after which a run on another machine counts as interrupted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessIdentity:
    """A process, told apart from a later one that was given the same pid.

    Attributes:
        host: Name of the machine, for people.
        machine: Boot of the machine and pid namespace; pids compare only within one.
        pid: Process id.
        start: Start time in clock ticks since boot; empty where the system does not tell.
    """

    host: str
    machine: str
    pid: int
    start: str

    @classmethod
    def current(cls) -> ProcessIdentity:
        """The calling process."""
        pid = os.getpid()
        return cls(host=platform.node(), machine=_machine(), pid=pid, start=_start(pid) or "")

    def is_alive(self, *, heartbeat: float, now: float) -> bool:
        """Whether the process still runs: seen directly here, by its heartbeat elsewhere.

        Args:
            heartbeat: When it was last heard of, in Unix seconds.
            now: The time, in Unix seconds.
        """
        if self.machine != _machine():
            return now - heartbeat < STALE_SECONDS
        if not self.start:
            return _exists(self.pid) and now - heartbeat < STALE_SECONDS
        return _start(self.pid) == self.start


@functools.cache
def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")
    try:
        # Containers of one machine share its boot, but not the numbering of processes.
        return f"{boot.read_text().strip()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()


def _start(pid: int) -> str | None:
    """Start time of a living process, or None. A zombie has ended: it writes no more."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The command's name may hold spaces and brackets: count the fields after its last bracket.
    fields = stat[stat.rindex(")") + 1 :].split()
    return None if fields[0] in "ZX" else fields[19]


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # there, but somebody else's
        return True
    return True
