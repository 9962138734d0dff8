"""How a fit of a trainer began and ended: what a checkpoint holds of us, what stopped it early."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PREFIX = "TransitionMonitor"


def stopped_early(trainer: Any) -> str:
    """What has stopped a trainer before its last epoch or step; empty if nothing has."""
    if not trainer.should_stop:
        return ""
    if 0 <= trainer.max_steps <= trainer.global_step:
        return ""
    epochs = trainer.fit_loop.epoch_progress.current.processed
    if trainer.max_epochs is not None and 0 <= trainer.max_epochs <= epochs:
        return ""
    for callback in trainer.callbacks:
        if getattr(callback, "stopped_epoch", 0):
            return f"{type(callback).__name__} in epoch {callback.stopped_epoch}"
    return "trainer.should_stop was set"


def renamed_state(checkpoint: Mapping[str, Any], key: str) -> dict[str, Any] | None:
    """The state of the one monitor that a checkpoint knows, where it has another name than `key`.

    None where the checkpoint has a state under `key`, which is loaded anyway, or several monitors.
    """
    states = checkpoint.get("callbacks") or {}
    ours = {
        name: state
        for name, state in states.items()
        if isinstance(name, str) and name.startswith(PREFIX) and isinstance(state, Mapping)
    }
    if key in ours or len(ours) != 1:
        return None
    (state,) = ours.values()
    return dict(state) if "watch" in state else None
