"""The monitor's state in a checkpoint folder of the Trainer: a file beside `trainer_state.json`.

`TrainerState` has a place for callbacks' states, but it gives a callback made anew in place of the
user's. The file holds tensors and plain containers, and is read as such: nothing in it is run.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger("phasewatch")

STEM = "phasewatch"


def file_name(run_name: str | None) -> str:
    """Name of the file: by run name where one was given, so that two monitors have two."""
    if run_name is None:
        return f"{STEM}.pt"
    return f"{STEM}-{re.sub(r'[^A-Za-z0-9._-]', '_', run_name)}.pt"


def save_state(folder: Path, run_name: str | None, state: Mapping[str, Any]) -> None:
    """Write the state into a checkpoint folder, if there is one; whole or not at all.

    Args:
        folder: The checkpoint folder.
        run_name: Name of the run, where one was given.
        state: Tensors and plain containers.
    """
    if not folder.is_dir():
        return
    path = folder / file_name(run_name)
    part = path.with_suffix(".part")
    torch.save(dict(state), part)
    part.replace(path)


def load_state(folders: Sequence[Path], run_name: str | None) -> dict[str, Any]:
    """The state in the first of the folders that has one; empty where none has.

    A checkpoint of a run under another name is taken, too: the run goes on renamed.
    """
    for folder in folders:
        own = folder / file_name(run_name)
        others = sorted(folder.glob(f"{STEM}*.pt")) if folder.is_dir() else []
        path = own if own in others else others[0] if len(others) == 1 else None
        if path is None:
            continue
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            return dict(state) if state["watch"] else {}
        except Exception as error:
            log.warning(
                "the run begins anew: its state in %s cannot be read (%s: %s)",
                path,
                type(error).__name__,
                error,
            )
            return {}
    return {}
