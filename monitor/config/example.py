"""The configuration as a YAML file that explains itself: every key, its default, what it does."""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from typing import Any

import yaml
from pydantic import BaseModel

from phasewatch.monitor.config.monitor import MonitorConfig

WIDTH = 96

HEAD = """\
## What phasewatch does with a run: TransitionMonitor("{name}").
## A line that begins with one # holds a default: take the "# " away from what you want to change,
## and from the line that it stands in.
"""


def commented_yaml(name: str = "phasewatch.yaml") -> str:
    """Every setting with its default and its explanation, all of it commented out.

    Args:
        name: Name of the file, for its head.
    """
    return HEAD.format(name=name) + "".join(_section(MonitorConfig(), 0))


def _section(model: BaseModel, depth: int) -> list[str]:
    explained = explanations(type(model))
    parts = []
    for name in type(model).model_fields:
        value = getattr(model, name)
        said = textwrap.wrap(explained.get(name, ""), WIDTH - 2 * depth - 5)
        indent = "  " * depth
        parts.append("\n" if depth == 0 else "")
        parts += [f"## {indent}{line}\n" for line in said]
        if isinstance(value, BaseModel):
            parts += [f"# {indent}{name}:\n", *_section(value, depth + 1)]
        else:
            parts.append(f"# {indent}{name}: {_flow(_plain(model, name))}\n")
    return parts


def _plain(model: BaseModel, name: str) -> Any:
    value = getattr(model, name)
    if isinstance(value, dict):  # of settings: those that were not given go without saying
        return {
            key: one.model_dump(mode="json", exclude_unset=True)
            if isinstance(one, BaseModel)
            else one
            for key, one in value.items()
        }
    return model.model_dump(mode="json", include={name})[name]


def _flow(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False)
    return str(yaml.safe_dump(value, default_flow_style=True).splitlines()[0])


def explanations(model: type[BaseModel]) -> dict[str, str]:
    """What the docstring of a model says of each of its fields.

    Args:
        model: The model.
    """
    found: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        text = inspect.cleandoc(kind.__doc__ or "")
        _, _, listed = text.partition("Attributes:\n")
        for match in re.finditer(r"^    (\w+): (.*(?:\n     +.*)*)", listed, re.MULTILINE):
            if match[1] in model.model_fields:
                found[match[1]] = " ".join(match[2].split())
    return found
