"""Runs one case of the zoo, with or without a monitor, and records it."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning.pytorch as pl
import torch

from support.bitwise import (
    Record,
    finish,
    make_logger,
    make_recorder,
    quietly,
    seed_everything,
)
from support.zoo import Case

STOPPED = (SystemExit, KeyboardInterrupt)


def make_trainer(
    folder: Path, callbacks: Any, *, namespace: ModuleType = pl, **options: Any
) -> pl.Trainer:
    """A quiet Trainer on one CPU that logs every step into memory."""
    settings = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 2,
        "logger": make_logger(namespace),
        "log_every_n_steps": 1,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": str(folder),
    }
    return namespace.Trainer(callbacks=callbacks, **(settings | options))


def record(
    build: Callable[[], Any],
    loaders: Callable[[], dict[str, Any]],
    folder: Path,
    *,
    monitors: Callable[[], Sequence[Any]] = list,
    callbacks: Callable[[], Sequence[Any]] = list,
    last: bool = False,
    drive: Callable[[pl.Trainer, Any, dict[str, Any]], None] | None = None,
    catch: tuple[type[BaseException], ...] = STOPPED,
    namespace: ModuleType = pl,
    **options: Any,
) -> Record:
    """Train from one seed and write down everything.

    The monitors are made after seeding: making one must not draw either.

    Args:
        build: Makes the module.
        loaders: Makes what `fit` gets beside the module.
        folder: Where the trainer may write.
        monitors: Makes the callbacks under suspicion.
        callbacks: Makes the callbacks that both runs have.
        last: The monitors come after `callbacks` instead of before.
        drive: Calls the trainer; `trainer.fit` if not given.
        catch: What the run may raise; it becomes part of the record.
        namespace: `lightning.pytorch` or `pytorch_lightning`.
        options: Options of the Trainer.
    """
    result = Record()

    def go() -> None:
        seed_everything()
        suspects, others = list(monitors()), list(callbacks())
        module = build()
        data = loaders()
        both = [*others, *suspects] if last else [*suspects, *others]
        recorder = make_recorder(namespace, result)
        trainer = make_trainer(folder, [*both, recorder], namespace=namespace, **options)
        try:
            if drive is None:
                trainer.fit(module, **data)
            else:
                drive(trainer, module, data)
        except catch as error:
            result.error = error
        finish(result, trainer, module, _state_of(data))

    try:
        quietly(go)
    finally:  # what a Trainer option left behind
        torch.use_deterministic_algorithms(False)
    return result


def _state_of(data: dict[str, Any]) -> dict[str, Any]:
    """The data objects whose own state must not move: datasets, datamodule, generators."""
    watched: dict[str, Any] = {}
    datamodule = data.get("datamodule")
    if datamodule is not None:
        hidden = ("_trainer", "trainer", "train", "val")
        watched |= {k: v for k, v in vars(datamodule).items() if k not in hidden}
    loader = data.get("train_dataloaders")
    if hasattr(loader, "dataset"):
        watched |= {f"dataset.{k}": v for k, v in getattr(loader.dataset, "__dict__", {}).items()}
        watched["generator"] = loader.generator
    return watched


def record_case(case: Case, folder: Path, **more: Any) -> Record:
    return record(
        case.build,
        case.loaders,
        folder,
        callbacks=more.pop("callbacks", case.callbacks),
        **(dict(case.trainer) | more),
    )


@functools.cache
def unmonitored(case_name: str) -> Record:
    """The run without a monitor; the same for all that compare with it."""
    from support.zoo import find

    case = find(case_name)
    with tempfile.TemporaryDirectory() as folder:
        return record_case(case, Path(folder))
