"""Saved checkpoints of a run: which there are, of which step, and their weights.

Read are checkpoints of Lightning, checkpoint folders of Hugging Face's Trainer, files of
safetensors and of `torch.save`. Nothing in a file is run.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phasewatch.monitor.core.errors import ConfigError, UnreadableError

SUFFIXES = frozenset({".ckpt", ".pt", ".pth", ".bin", ".safetensors"})

STEP_KEYS = ("global_step", "step", "iteration", "iter_num", "steps")
"""Where a file of `torch.save` holds its step, the likeliest first."""

FOLDER_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""The weights in a checkpoint folder of transformers."""

_NAMED = re.compile(r"(?:global_step|step|checkpoint|ckpt|iter)[=_-]?(\d+)", re.IGNORECASE)
_NUMBER = re.compile(r"(\d+)")


@dataclass(frozen=True, slots=True, order=True)
class Checkpoint:
    """One saved checkpoint.

    Attributes:
        step: Optimizer steps completed.
        path: The file with its weights.
        mark: What the file was when it was looked at; measured is no other. None takes any.
    """

    step: int
    path: Path
    mark: Mark | None = field(default=None, compare=False)


Mark = tuple[int, int]
"""Size of a file in bytes, and when it was last written, in nanoseconds."""


def mark_of(path: Path) -> Mark | None:
    """What a file is by now; None if it is gone."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def find_checkpoints(patterns: Iterable[str]) -> list[Checkpoint]:
    """The checkpoints that the patterns name, by step; of several of one step the first by name.

    Args:
        patterns: Paths of files or of folders of transformers, with `*`, `?` and `**`.

    Raises:
        ConfigError: There is none, or the step of one is not known.
    """
    patterns = list(patterns)
    paths = matching(patterns)
    if not paths:
        raise ConfigError(
            f"no checkpoint matches {', '.join(map(repr, patterns))}; give files "
            f"({', '.join(sorted(SUFFIXES))}) or checkpoint folders of transformers"
        )
    found: dict[int, Checkpoint] = {}
    for path in paths:
        step = step_of(path)
        found.setdefault(step, Checkpoint(step, weights_of(path)))
    return sorted(found.values())


def matching(patterns: Iterable[str]) -> list[Path]:
    """What may be a checkpoint by its name; those whose names tell most come first.

    Args:
        patterns: As for `find_checkpoints`.
    """
    paths = {Path(p) for pattern in patterns for p in glob.glob(pattern, recursive=True)}
    files = [path for path in paths if path.is_dir() or path.suffix in SUFFIXES]
    # Copies such as "last.ckpt" come after the files that they are of.
    return sorted(files, key=lambda path: (not _NUMBER.search(path.name), path))


def step_of(path: Path) -> int:
    """Optimizer steps completed when a checkpoint was saved.

    As it says itself; else as its name says.

    Raises:
        UnreadableError: Neither tells.
    """
    held = _step_in_folder(path) if path.is_dir() else _step_in_file(path)
    if held is not None:
        return held
    named = _NAMED.findall(path.stem) or _NUMBER.findall(path.stem)
    if not named:
        raise UnreadableError(
            f"the step of checkpoint {str(path)!r} is not known: it holds none under "
            f"{', '.join(STEP_KEYS)}, and its name has no number; name it like step-1200"
            f"{path.suffix}"
        )
    return int(named[-1])


def weights_of(path: Path) -> Path:
    """The file of weights of a checkpoint.

    Raises:
        UnreadableError: A folder has none, or has them in several files.
    """
    if not path.is_dir():
        return path
    for name in FOLDER_WEIGHTS:
        if (path / name).is_file():
            return path / name
    held = sorted(file.name for file in path.iterdir())[:8]
    raise UnreadableError(
        f"checkpoint folder {str(path)!r} has none of {', '.join(FOLDER_WEIGHTS)}; it has "
        f"{', '.join(held) or 'nothing'}. Weights in several files, and adapters alone, cannot be "
        "read yet"
    )


def _step_in_folder(path: Path) -> int | None:
    state = path / "trainer_state.json"
    try:
        content = json.loads(state.read_text(encoding="utf-8"))
        return int(content["global_step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _step_in_file(path: Path) -> int | None:
    content: Any
    if path.suffix == ".safetensors":
        content = _metadata(path)
    else:
        import torch

        try:
            # The tensors are mapped, not read.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception:  # said in full when its weights are wanted
            return None
    if not isinstance(content, Mapping):
        return None
    for key in STEP_KEYS:
        value: Any = content.get(key)
        if hasattr(value, "numel") and value.numel() == 1:
            value = value.item()
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return int(value)
        if isinstance(value, str) and value.isdigit():  # safetensors knows strings only
            return int(value)
    return None


def _metadata(path: Path) -> Mapping[str, str]:
    """What the head of a file of safetensors says beside its tensors."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > 100 * 2**20:
                return {}
            head = json.loads(file.read(size))
        found = head.get("__metadata__", {})
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError, AttributeError):
        return {}
