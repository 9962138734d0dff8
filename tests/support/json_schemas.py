"""Holds what a command prints with `--json` to its schema in docs/schemas.json."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

FILE = Path(__file__).parents[2] / "docs" / "schemas.json"


@cache
def schemas() -> dict[str, Any]:
    """The file, but without room for keys that it does not know."""
    content: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    for schema in content["$defs"].values():
        if "properties" in schema:
            schema["additionalProperties"] = False
    return content


def faults_of(arguments: tuple[Any, ...], out: str) -> list[str]:
    """What is wrong with the output of a command; empty where it fits.

    Args:
        arguments: The command, with its arguments.
        out: What it printed; of `follow`, one object a line.
    """
    command = next(
        name for name in schemas()["commands"] if [*arguments[: len(name.split())]] == name.split()
    )
    schema = {"$ref": f"#/commands/{command}", **schemas()}
    texts = out.splitlines() if command == "follow" else [out]
    check = Draft202012Validator(schema)
    return [fault.message for text in texts for fault in check.iter_errors(json.loads(text))]
