"""A sink of one's own: one class, one entry point."""

from __future__ import annotations

import json
from pathlib import Path

from phasewatch import Observation, Transition


class JsonLines:
    """Writes every observation and every state of a transition as a line of JSON."""

    def __init__(self, folder: str, run_name: str) -> None:
        self._file = (Path(folder) / f"{run_name}.jsonl").open("w", encoding="utf-8")

    def emit(self, observation: Observation) -> None:
        self._write(name=observation.name, step=observation.step, value=observation.value)

    def notify(self, transition: Transition) -> None:
        self._write(
            kind=transition.kind, status=transition.status, onset_step=transition.onset_step
        )

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _write(self, **content: object) -> None:
        self._file.write(json.dumps(content) + "\n")
