"""What the name of a stream says: held-out data or not, and which way is better."""

from __future__ import annotations

import re

from phasewatch.detectors.types import Direction

SUPPORTING = frozenset(
    {"gradient_norm", "update_ratio", "weight_norm"}
    | {"hessian_trace", "hessian_top", "hessian_rank", "basin_broadness", "gradient_noise_scale"}
)
"""These move with every change of the learning rate: evidence beside another stream, not alone."""

HELD_OUT_WORDS = frozenset(
    {"val", "valid", "validation", "test", "heldout", "holdout", "eval", "dev"}
)
LOSS_WORDS = frozenset(
    {"loss", "losses", "nll", "perplexity", "ppl", "error", "err", "mse", "rmse", "mae", "wer"}
)
SCORE_WORDS = frozenset(
    {"acc", "accuracy", "f1", "auc", "auroc", "precision", "recall", "iou", "dice", "bleu", "map"}
)
LONG_WORDS = 4
"""Words of so many letters are found inside others too: "trainloss", "MulticlassAccuracy"."""


def is_validation(name: str) -> bool:
    """Whether a logged name speaks of held-out data."""
    return not HELD_OUT_WORDS.isdisjoint(_words(name))


def is_loss(name: str) -> bool:
    """Whether a logged name is that of something to be made small."""
    return _speaks_of(name, LOSS_WORDS)


def better_direction(name: str) -> Direction | None:
    """Which way is better, as far as the name tells."""
    if is_loss(name):
        return Direction.DOWN
    return Direction.UP if _speaks_of(name, SCORE_WORDS) else None


def _speaks_of(name: str, known: frozenset[str]) -> bool:
    return any(
        word == one or (len(one) >= LONG_WORDS and one in word)
        for word in _words(name)
        for one in known
    )


def _words(name: str) -> list[str]:
    """The words of a name: "val/topAcc1" holds val, top and acc; "f1" stays whole."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    parts = re.split(r"[^a-z0-9]+", spaced)
    return [part if part in SCORE_WORDS else part.strip("0123456789") for part in parts]
