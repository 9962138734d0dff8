"""Files that a server on this machine was started with, from the command line of its process."""

from __future__ import annotations

import os
import urllib.parse
from pathlib import Path

HERE = ("127.0.0.1", "localhost", "::1")
DEFAULT_ADDRESS = ":9093"
DEFAULT_FILES = ("alertmanager.yml", "/etc/prometheus/alertmanager.yml")
"""What Alertmanager takes when it is told of no file: upstream, and in Debian."""


def alertmanager_file(url: str, processes: Path = Path("/proc")) -> Path | None:
    """The configuration of the Alertmanager at an address; None where it cannot be known.

    Alertmanager does not tell where its file is; its process does, on the same Linux machine.

    Args:
        url: Base URL.
        processes: Where the system shows processes.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.hostname not in HERE:
        return None
    for folder in processes.glob("[0-9]*"):
        try:
            program, *words = (folder / "cmdline").read_text("utf-8", "replace").split("\0")
            if "alertmanager" not in Path(program).name:
                continue
            place = Path(os.readlink(folder / "cwd"))
        except OSError:  # it has ended, or is somebody else's
            continue
        flags = _flags(words)
        address = flags.get("web.listen-address", DEFAULT_ADDRESS)
        if address.rpartition(":")[2] != str(parts.port):
            continue
        named = flags.get("config.file")
        files = [place / name for name in ((named,) if named else DEFAULT_FILES)]
        return next((file for file in files if file.is_file()), None)
    return None


def _flags(words: list[str]) -> dict[str, str]:
    """Flags by name: `--name=value`, or `--name value`."""
    found = {}
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word.startswith("-"):
            name, _, value = word.lstrip("-").partition("=")
            found[name] = value or following
    return found
