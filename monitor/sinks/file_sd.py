"""A target file for Prometheus' file-based service discovery.

It is written when a run starts to serve metrics and removed when the run says that it has ended:
finished, stopped, failed or interrupted. The file of a crashed run stays: Prometheus then sees its
target down, which is what an alert is for. `monitor/targets.py` removes it when its time has come.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path

PREFIX = "phasewatch-"
"""What the names of target files begin with."""

_EVERY_ADDRESS = {"", "0.0.0.0", "::"}  # noqa: S104 - recognised, not bound


def address(host: str, port: int) -> str:
    """Where a Prometheus can reach what is bound to `host`."""
    if host in _EVERY_ADDRESS:
        host = socket.gethostname()
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class TargetFile:
    """One run's target file.

    The name follows from the run and its address, so a run that is resumed after a crash at the
    same address writes over the file its predecessor left behind.

    Args:
        folder: Folder that Prometheus watches; made if missing.
        target: Address of the endpoint.
        labels: Labels of the target, `run` among them; empty ones are left out.

    Raises:
        OSError: The file cannot be written.
    """

    def __init__(self, folder: Path, target: str, labels: Mapping[str, str]) -> None:
        run = labels["run"]
        readable = re.sub(r"[^A-Za-z0-9._-]+", "-", run).strip("-.")[:60]
        digest = hashlib.sha256(f"{run}\0{target}".encode("utf-8", "surrogatepass")).hexdigest()[:8]
        self.path = folder / f"{PREFIX}{readable}-{digest}.json"
        group = {"targets": [target], "labels": {k: v for k, v in labels.items() if v}}
        self._content = json.dumps([group], indent=2) + "\n"
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, self._content)

    def remove(self) -> None:
        """Take the file away, unless somebody else has written it anew."""
        remove_unchanged(self.path, self._content)


def write_whole(path: Path, content: str) -> None:
    """Write a file so that who reads at any moment sees all of it or none of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(content, encoding="utf-8")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_unchanged(path: Path, content: str) -> bool:
    """Remove a file that still says `content`; whether it did."""
    try:
        if path.read_text(encoding="utf-8") != content:
            return False
        path.unlink()
    except FileNotFoundError:
        return False
    return True
