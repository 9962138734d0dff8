"""Write docs/api.md from the `__all__` of the public packages: `make docs`."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path
from typing import Literal, get_origin

PAGE = Path(__file__).with_name("api.md")

PUBLIC = (
    "phasewatch",
    "phasewatch.callbacks",
    "phasewatch.monitor",
    "phasewatch.monitor.sampling",
    "phasewatch.monitor.observables",
    "phasewatch.detectors",
)
"""Packages whose names keep; what others hold may change with any version."""


def first_sentence(package: str, name: str) -> str:
    """What the docstring of a public name begins with."""
    value = getattr(import_module(package), name)
    if not (inspect.isclass(value) or inspect.isfunction(value)):
        return f"`{value if get_origin(value) is Literal else type(value).__name__}`"
    text = " ".join((inspect.getdoc(value) or "").partition("\n\n")[0].split())
    return text.replace("|", "\\|")


def render() -> str:
    """The whole page."""
    lines = [
        "# Public names",
        "",
        "This page is made from the `__all__` of the packages by `make docs`. Change it there.",
        "",
        "These names keep. They change only with a note in the changelog, and a name that goes is",
        "kept for one version. Everything else, and every module below these packages, may move",
        "or change with any version. Configuration keys, stored histories, checkpoints, names of",
        "metrics, and keys of `--json` keep as well.",
    ]
    for package in PUBLIC:
        module = import_module(package)
        lines += ["", f"## `{package}`", "", "| Name | What it is |", "| --- | --- |"]
        lines += [f"| `{name}` | {first_sentence(package, name)} |" for name in module.__all__]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
