"""What the name of a stream says: held-out data or not, and which way is better."""

from __future__ import annotations

import re

from phasewatch.detectors.types import Direction

SUPPORTING = frozenset(
    {
        *("gradient_norm", "update_ratio", "weight_norm", "spectral_norm", "kept_weights"),
        *("distance_from_init", "distance_from_init_relative", "distance_moved", "update_angle"),
        *("squared_weights", "gini_embedding", "gini_unembedding", "key_frequencies"),
        *("excluded_loss_max", "composition", "copying_score", "feature_dimensionality"),
        *("effective_rank", "effective_rank_end_to_end"),
        *("hessian_trace", "hessian_top", "hessian_rank", "basin_broadness"),
        *("gradient_noise_scale",),
        *("mask_overlap", "dead_units", "nu_hat", "essential_dynamics"),
    }
)
"""Evidence beside another stream, not alone: norms and ratios move with every change of the
learning rate, and ν̂ has the chains, and their bad draws, in common with λ̂."""

HELD_OUT_WORDS = frozenset(
    {"val", "valid", "validation", "test", "heldout", "holdout", "eval", "dev"}
)
LOSS_WORDS = frozenset(
    {
        *("loss", "losses", "nll", "perplexity", "ppl", "error", "err", "mse", "rmse", "mae"),
        *("wer", "icl"),
    }
)
"""The score of in-context learning, "icl_score", is a difference of losses."""

SCORE_WORDS = frozenset(
    {"acc", "accuracy", "f1", "auc", "auroc", "precision", "recall", "iou", "dice", "bleu", "map"}
)
LONG_WORDS = 4
"""Words of so many letters are found inside others too: "trainloss", "MulticlassAccuracy"."""


COPIES = re.compile(r"(__(MIN|MAX|MEAN|min|max|mean)|[_/](step|epoch))$")
"""Ends of names under which loggers write one stream again."""


def source_of(name: str) -> str:
    """The stream that a name is a copy of: "train_loss_epoch" and "train_loss" are one."""
    return COPIES.sub("", name)


def is_validation(name: str) -> bool:
    """Whether a name speaks of how well the model does on held-out data; λ̂ there does not."""
    words = _words(name)
    return not HELD_OUT_WORDS.isdisjoint(words) and "llc" not in words


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
