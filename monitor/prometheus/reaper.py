"""The target files of a folder: who answers behind each, and which of them may go.

A file whose run is dead is evidence: Prometheus sees its target down, which is what an alert is
for. It may go when it has been dead for `STALE_SECONDS`, or for `RESUMED_SECONDS` and its run goes
on at another address. When a target was first seen dead is kept beside its file, so that calls
minutes apart see how long.
"""

from __future__ import annotations

import ipaddress
import json
import platform
import re
import socket
import ssl
import time
import urllib.parse
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from phasewatch.monitor.core.bounded_http import NoAnswerError, fetch
from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.prometheus.target_files import PREFIX, remove_unchanged, write_whole

STALE_SECONDS = 15 * 60.0
"""A target that has been dead for so long has been told of."""

RESUMED_SECONDS = 5 * 60.0
"""Longer than Prometheus takes to see it down and to say so, also at slow intervals."""

TIMEOUT_SECONDS = 3.0

MAX_PAGE = 1 << 20
"""Bytes of a page that are read: the run's state stands at its beginning."""


class TargetState(StrEnum):
    """What is behind a target file.

    RUNNING, FINISHED, STOPPED, FAILED, INTERRUPTED: a process answers and says so. STALLED: it
    answers that it runs, but its steps have ceased. SILENT: it takes connections and does not
    answer. DEAD: nobody is there, or another run. ELSEWHERE: a loopback address of another machine,
    which cannot be asked from here. UNREADABLE: not a target file of ours.
    """

    RUNNING = "running"
    STALLED = "stalled"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    SILENT = "silent"
    DEAD = "dead"
    ELSEWHERE = "elsewhere"
    UNREADABLE = "unreadable"


ANSWERING = frozenset(TargetState(state.value) for state in RunState) | {TargetState.STALLED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One target file and what is behind it.

    Attributes:
        path: The file.
        content: Its text.
        address: host:port, empty where the file cannot be read.
        run: Its label `run`.
        run_id: Its label `run_id`; empty in a file of an older phasewatch.
        host: Its label `host`.
        scheme: "http" or "https".
        state: What is behind it.
        reason: Why, where it does not answer.
        written_at: When the file was written, in Unix seconds.
        dead_since: When it was first seen dead, in Unix seconds; None if it is not.
    """

    path: Path
    content: str
    address: str = ""
    run: str = ""
    run_id: str = ""
    host: str = ""
    scheme: str = "http"
    state: TargetState = TargetState.UNREADABLE
    reason: str = ""
    written_at: float = 0.0
    dead_since: float | None = None


def examine(folder: Path, *, timeout: float = TIMEOUT_SECONDS) -> list[Target]:
    """Look at every target file, and note which are dead.

    Args:
        folder: Where they lie.
        timeout: Longest wait for an answer of one, in seconds.

    Raises:
        OSError: The folder cannot be read or written.
    """
    found = [_examine(path, timeout) for path in sorted(folder.glob(f"{PREFIX}*.json"))]
    return [item for item in found if item is not None]


def reap(targets: Iterable[Target]) -> list[Target]:
    """Remove the files whose time has come, and say which.

    Raises:
        OSError: A file cannot be removed.
    """
    targets = list(targets)
    gone = []
    for target in targets:
        if target.dead_since is None:
            continue
        resumed = any(
            (other.run_id, other.run_id or other.run)
            == (target.run_id, target.run_id or target.run)
            and other.state in ANSWERING
            and other.written_at > target.written_at
            for other in targets
        )
        patience = RESUMED_SECONDS if resumed else STALE_SECONDS
        if time.time() - target.dead_since < patience:
            continue
        if remove_unchanged(target.path, target.content):
            gone.append(target)
        _mark(target.path).unlink(missing_ok=True)
    return gone


def _examine(path: Path, timeout: float) -> Target | None:
    try:
        content, written_at = path.read_text(encoding="utf-8"), path.stat().st_mtime
    except FileNotFoundError:  # its run has just ended
        return None
    except (OSError, UnicodeDecodeError) as error:
        return Target(path=path, content="", reason=str(error))
    try:
        (group,) = json.loads(content)
        (address,) = group["targets"]
        labels = group["labels"]
        run, host = str(labels["run"]), str(labels.get("host", ""))
        run_id = str(labels.get("run_id", ""))
        scheme = str(labels.get("__scheme__", "http"))
        if not isinstance(address, str) or scheme not in ("http", "https"):
            raise ValueError(f"no address of ours: {address!r}")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        return Target(path=path, content=content, written_at=written_at, reason=reason)
    if host not in ("", platform.node()) and _is_loopback(address):
        state, reason = TargetState.ELSEWHERE, f"{address} of {host}"
    else:
        wanted = ("run_id", run_id) if run_id else ("run", run)
        state, reason = _ask(f"{scheme}://{address}/metrics", wanted, timeout)
    return Target(
        path=path,
        content=content,
        address=address,
        run=run,
        run_id=run_id,
        host=host,
        scheme=scheme,
        state=state,
        reason=reason,
        written_at=written_at,
        dead_since=_dead_since(path, written_at, state is TargetState.DEAD),
    )


def _mark(path: Path) -> Path:
    return path.with_name(f".{path.name}.dead")


def _dead_since(path: Path, written_at: float, dead: bool) -> float | None:
    """Keep beside the file when its target was first seen dead."""
    mark, now = _mark(path), time.time()
    if not dead:
        mark.unlink(missing_ok=True)
        return None
    try:
        since = float(mark.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        since = -1.0
    if not written_at <= since <= now:  # of a former run with this file, or of a wrong clock
        since = now
        write_whole(mark, f"{since!r}\n")
    return since


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _ask(url: str, wanted: tuple[str, str], timeout: float) -> tuple[TargetState, str]:
    # Nothing secret is sent, and what is answered only tells whether the run is there.
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        answer = fetch(url, seconds=timeout, max_bytes=MAX_PAGE, context=context)
    except NoAnswerError as error:
        if "not by HTTP" in str(error):
            return TargetState.DEAD, f"something else answers there: {error}"
        if _connects(url, timeout):
            return TargetState.SILENT, f"takes connections and does not answer: {error}"
        return TargetState.DEAD, str(error)
    if answer.status >= 500:
        return TargetState.SILENT, f"answers with HTTP {answer.status}"
    if not 200 <= answer.status < 300:
        return TargetState.DEAD, f"something else answers there: HTTP {answer.status}"
    page = answer.text
    try:
        return _state(page, wanted)
    except (KeyError, ValueError) as error:
        return TargetState.SILENT, f"its page cannot be read: {type(error).__name__}: {error}"


def _connects(url: str, timeout: float) -> bool:
    parts = urllib.parse.urlsplit(url)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 0), timeout).close()
    except OSError:
        return False
    return True


_SAMPLE = re.compile(r'^(phasewatch_\w+)\{((?:\w+="(?:[^"\\]|\\.)*",?)*)\} (\S+)', re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def _state(page: str, wanted: tuple[str, str]) -> tuple[TargetState, str]:
    state = None
    values: dict[str, float] = {}
    for name, text, value in _SAMPLE.findall(page):
        labels = {
            key: re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], quoted)
            for key, quoted in _LABEL.findall(text)
        }
        if labels.get(wanted[0]) != wanted[1]:
            continue
        if name == "phasewatch_run_state" and float(value) == 1.0:
            state = TargetState(labels["state"])
        elif set(labels) <= {"run", "run_id"}:
            values[name] = float(value)
    if state is None:
        return TargetState.DEAD, "another run answers there"
    age = time.time() - values["phasewatch_last_step_timestamp_seconds"]
    if state is TargetState.RUNNING and age > _patience(values["phasewatch_steps_per_second"]):
        return TargetState.STALLED, f"its last step was {age:.0f} s ago"
    return state, ""


def _patience(steps_per_second: float) -> float:
    """When a run counts as stalled, as in the alert rules: 30 usual steps, 5 to 30 minutes."""
    usual = 30 / steps_per_second if steps_per_second > 0 else float("inf")
    return min(max(usual, 300.0), 1800.0)
