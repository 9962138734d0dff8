"""Rows of JSON documents that hold a whole curve: of trainers, and of experiment trackers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from phasewatch.monitor.core.errors import CurveError

TRAINER_STATE = "trainer_state.json"
HISTORY = "log_history"
EPOCH = "epoch"

KNOWN = (
    "give a list of objects, an object of lists of one length (a Keras history), or the "
    f"{TRAINER_STATE} of a Hugging Face trainer"
)


def parse(text: str) -> Any:
    """The content of a JSON text; a number beyond all floats is infinite, as in other formats.

    Raises:
        ValueError: It is no JSON, or nested beyond all measure.
    """
    try:
        return json.loads(text, parse_int=_number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _number(digits: str) -> int | float:
    return int(digits) if len(digits) < MAX_DIGITS else float(digits)


MAX_DIGITS = 300


def newest_trainer_state(folder: Path) -> Path | None:
    """The state of a Hugging Face trainer in a folder, or in its last checkpoint."""
    if (folder / TRAINER_STATE).is_file():
        return folder / TRAINER_STATE

    def step(path: Path) -> int:
        digits = re.findall(r"\d+", path.parent.name)
        return int(digits[-1]) if digits else -1

    return max(folder.glob(f"checkpoint-*/{TRAINER_STATE}"), key=step, default=None)


def is_document(start: str) -> bool:
    """Whether a file that starts with this line is one JSON document, not a line of JSONL."""
    text = start.strip()
    if text.startswith("["):
        return True
    if not text.startswith("{"):
        return False
    try:
        content = parse(text)
    except ValueError:
        return text == "{" or not text.endswith("}")
    history = content.get("history")
    nested = isinstance(history, dict) and _is_columns(history)
    return HISTORY in content or nested or _is_columns(content)


def document_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Rows of a document, each with its number from 1.

    Raises:
        CurveError: It is no JSON, or of no known form.
    """
    try:
        content = parse(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise CurveError(f"{path} is no JSON: {error}") from error
    if isinstance(content, dict) and isinstance(content.get(HISTORY), list):
        content = content[HISTORY]
    elif (
        isinstance(content, dict) and "history" in content and isinstance(content["history"], dict)
    ):
        content = content["history"]
    if isinstance(content, dict) and _is_columns(content):
        content = _from_columns(content)
    if not isinstance(content, list) or not content:
        raise CurveError(f"{path} holds a JSON {type(content).__name__} of no known form; {KNOWN}")
    for number, row in enumerate(content, start=1):
        if isinstance(row, (int, float)) and not isinstance(row, bool):
            row = {"step": number, "value": row}
        if not isinstance(row, dict):
            raise CurveError(
                f"{path}: entry {number} is {str(row)[:40]!r}, which is no row; {KNOWN}"
            )
        yield number, row


def _is_columns(content: Mapping[str, Any]) -> bool:
    lists = [value for value in content.values() if isinstance(value, list)]
    return bool(lists) and len(lists) == len(content) and len({len(v) for v in lists}) == 1


def _from_columns(content: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    names = list(content)
    rows = [dict(zip(names, cells, strict=True)) for cells in zip(*content.values(), strict=True)]
    if EPOCH not in content and "step" not in content:
        for number, row in enumerate(rows, start=1):
            row[EPOCH] = number
    return rows
