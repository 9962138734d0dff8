"""What all settings have in common, and how a wrong one is told."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from phasewatch.monitor.core.errors import ConfigError, did_you_mean
from phasewatch.monitor.core.redaction import redact


class Settings(BaseModel):
    """Settings that refuse unknown keys and do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def read_yaml(path: Path) -> Mapping[str, Any]:
    """What a YAML file says; an empty one says nothing.

    Raises:
        ConfigError: It cannot be read, or does not hold `key: value` lines.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"configuration file {str(path)!r} cannot be read ({error.strerror}); "
            "give the path of a YAML file"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"configuration file {str(path)!r} is not text ({error.reason}); it must be "
            "YAML in UTF-8"
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"configuration file {str(path)!r} is not YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise ConfigError(
            f"configuration file {str(path)!r} holds a {type(content).__name__}; "
            "it must hold `key: value` lines"
        )
    return content


def describe(error: ValidationError, where: str, model: type[BaseModel]) -> str:
    """Say each wrong key, the value received and what is allowed: a line for each.

    Args:
        error: What pydantic found.
        where: Name of the configuration, for the first line.
        model: The model that was validated.
    """
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]) or "(whole)"
        if item["type"] == "extra_forbidden":
            known = sorted(_fields_at(model, item["loc"][:-1]))
            hint = did_you_mean(item["loc"][-1], known)
            lines.append(f"{key}: unknown key{hint}; known here: {', '.join(known) or 'none'}")
        elif item["loc"][:1] == ("alerts",):  # its URLs are secrets
            lines.append(f"{key}: {_allowed(item['msg'])}")
        else:
            shown = redact(repr(item["input"]))
            lines.append(f"{key}: got {shown}; {_allowed(item['msg'])}")
    if len(lines) == 1:
        return f"{where} is wrong: {lines[0]}"
    return "\n  ".join([f"{where} is wrong:", *lines])


def _allowed(message: str) -> str:
    """What pydantic says is allowed, in the words of a user, who knows none of our classes."""
    message = message.removeprefix("Value error, ").replace("Input should be", "it must be")
    return re.sub(r"a valid dictionary or instance of \w+", "a mapping of settings", message)


def _fields_at(model: type[BaseModel], path: tuple[int | str, ...]) -> set[str]:
    """Field names of the model that sits at `path`."""
    current: Any = model
    for part in path:
        field = getattr(current, "model_fields", {}).get(part)
        if field is None:  # inside a mapping: its values are all of one model
            continue
        current = field.annotation
        for candidate in getattr(current, "__args__", ()):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                current = candidate
    return set(getattr(current, "model_fields", {}))
