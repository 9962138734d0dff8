"""Other projects, run by an interpreter of their own (`make bench-peers` makes it)."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

VARIABLE = "PHASEWATCH_PEER_PYTHON"
ENVIRONMENT = Path(__file__).resolve().parents[2] / ".venv-peers" / "bin" / "python"


def interpreter(wanted: str = "devinterp") -> str | None:
    """The interpreter that has what is wanted, or None, with a line that says how to get it."""
    named = os.environ.get(VARIABLE)
    if named or ENVIRONMENT.exists():
        return named or str(ENVIRONMENT)
    print(f"{wanted} is skipped: run `make bench-peers`, or name an interpreter in {VARIABLE}")
    return None


class Server:
    """A process that answers each line of JSON with one line of JSON."""

    def __init__(self, *command: str) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, **question: Any) -> dict[str, Any]:
        """Send a question and wait for the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the peer's process ended; its message stands above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Let the process end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
