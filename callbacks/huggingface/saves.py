"""Checkpoints around a suspicion, written by the parts of the Trainer that write its own.

`control.should_save` would write them among the user's: these are rotated by `save_total_limit`,
pushed to the hub and told to every callback. So the Trainer's own methods write to a folder of
ours, from which `train(resume_from_checkpoint=…)` goes on like from any other.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WRITERS = ("_save_optimizer_and_scheduler", "_save_rng_state")
"""Methods of a Trainer that write what is beside the weights."""

TRAINER_STATE = "trainer_state.json"


def refusal(trainer: Any) -> str:
    """Why no checkpoint can be written by the first process alone; empty where one can."""
    if trainer is None:
        return "the Trainer that trains is not known"
    for flag, what in (("is_deepspeed_enabled", "DeepSpeed"), ("is_fsdp_enabled", "FSDP")):
        if getattr(trainer, flag, False):
            return f"with {what} all processes must write together, and one decides alone"
    if missing := [name for name in WRITERS if not callable(getattr(trainer, name, None))]:
        return f"this version of transformers has no Trainer.{missing[0]}"
    return ""


def save_checkpoint(trainer: Any, state: Any, folder: Path) -> None:
    """Write a checkpoint as the Trainer would; what the Trainer keeps of its own does not move.

    Args:
        trainer: The live trainer.
        state: Its state.
        folder: Where to; it is made.
    """
    with _config_kept(trainer):
        trainer.save_model(str(folder), _internal_call=True)
    for name in (*WRITERS, "_save_scaler"):
        if (write := getattr(trainer, name, None)) is not None:
            write(str(folder))
    _with_callbacks(trainer, state).save_to_json(str(folder / TRAINER_STATE))


def _with_callbacks(trainer: Any, state: Any) -> Any:
    """A copy of the state with what callbacks have to say now, such as the patience left."""
    own = copy.copy(state)
    own.stateful_callbacks = copy.deepcopy(getattr(state, "stateful_callbacks", {}))
    told: dict[str, list[Any]] = {}
    for callback in (*trainer.callback_handler.callbacks, trainer.control):
        name = type(callback).__name__
        if name in own.stateful_callbacks and callable(getattr(callback, "state", None)):
            told.setdefault(name, []).append(callback.state())
    for name, states in told.items():
        several = isinstance(own.stateful_callbacks[name], list)
        own.stateful_callbacks[name] = states if several else states[-1]
    return own


@contextmanager
def _config_kept(trainer: Any) -> Iterator[None]:
    """Saving a model of transformers writes into its config: which class, which dtype."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    config = getattr(model, "config", None)
    before = dict(vars(config)) if hasattr(config, "__dict__") else None
    try:
        yield
    finally:
        if before is not None:
            vars(config).clear()
            vars(config).update(before)
