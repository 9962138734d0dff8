"""A target file for Prometheus' file-based service discovery.

It is written when a run starts to serve metrics and removed when the run ends in good order. The
file of a crashed run stays: Prometheus then sees its target down, which is what an alert is for.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
from pathlib import Path

_EVERY_ADDRESS = {"", "0.0.0.0", "::"}  # noqa: S104 - recognised, not bound


def address(host: str, port: int) -> str:
    """Where a Prometheus can reach what is bound to `host`."""
    if host in _EVERY_ADDRESS:
        host = socket.gethostname()
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class TargetFile:
    """One run's target file.

    The name follows from the run and its address, so a run that is resumed after a crash writes
    over the file its predecessor left behind.

    Args:
        folder: Folder that Prometheus watches; made if missing.
        run: Value of the label `run`.
        target: Address of the endpoint.

    Raises:
        OSError: The file cannot be written.
    """

    def __init__(self, folder: Path, run: str, target: str) -> None:
        readable = re.sub(r"[^A-Za-z0-9._-]+", "-", run).strip("-.")[:60]
        digest = hashlib.sha256(f"{run}\0{target}".encode()).hexdigest()[:8]
        self.path = folder / f"phasewatch-{readable}-{digest}.json"
        self._content = json.dumps([{"targets": [target], "labels": {"run": run}}], indent=2) + "\n"
        folder.mkdir(parents=True, exist_ok=True)
        # Prometheus may read at any moment: it must see all of the file or none of it.
        temporary = folder / f".{self.path.name}.{os.getpid()}.tmp"
        temporary.write_text(self._content, encoding="utf-8")
        temporary.replace(self.path)

    def remove(self) -> None:
        """Take the file away, unless somebody else has written it anew."""
        try:
            if self.path.read_text(encoding="utf-8") == self._content:
                self.path.unlink()
        except FileNotFoundError:
            return
