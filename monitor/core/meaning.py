"""What a stream of numbers means: the one place that knows it.

An observable declares it for the streams it measures, as `streams`: names to `StreamMeaning`. Of a
logged metric it is guessed from the words of its name (`WORDS`). The configuration has the last
word, under `streams`. Everything that treats streams differently asks `Meanings`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import lru_cache
from importlib.resources import files
from typing import Any, Literal, TypeVar

from phasewatch.detectors.types import Direction

T = TypeVar("T")

TABLE = "streams.json"
"""What the observables that come along declare; `make docs` writes it from their classes."""


class Role(StrEnum):
    """What an alarm on a stream may do.

    LEADING: open a transition. SUPPORTING: add evidence to one; norms and ratios move with every
    change of the learning rate. DIAGNOSTIC: nothing, the stream is stored and not watched.
    """

    LEADING = "leading"
    SUPPORTING = "supporting"
    DIAGNOSTIC = "diagnostic"


class Tells(StrEnum):
    """What a move of a stream says about the model.

    QUALITY: it does better or worse, by `better` and `held_out`. LLC: λ̂ rises or falls. FORMATION:
    something is learnt when it rises; a fall says nothing. RESTRICTED_LOSS and EXCLUDED_LOSS: those
    of Nanda et al. 2023 (arXiv 2301.05217). NOTHING: a move is evidence of no kind.
    """

    QUALITY = "quality"
    LLC = "llc"
    FORMATION = "formation"
    RESTRICTED_LOSS = "restricted_loss"
    EXCLUDED_LOSS = "excluded_loss"
    NOTHING = "nothing"


class Panel(StrEnum):
    """Where a stream is drawn; OWN is a panel of its own."""

    LOSSES = "losses"
    LLC = "llc"
    NORMS = "norms"
    FRACTIONS = "fractions"
    OWN = "own"


DetectorKind = Literal["loss", "measured", "scalar"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamMeaning:
    """What one stream means.

    Attributes:
        role: What an alarm on it may do.
        better: Which way is better; None where that is not known.
        held_out: Whether it says how well the model does on held-out data.
        tells: What a move of it says.
        unit: Unit of its values; "1" for a plain number.
        panel: Where it is drawn.
        metric: The exported metric that shows it; None is `phasewatch_observable_value`.
        detector: Which default detector it gets while its values carry no standard error: "loss"
            for what falls over orders of magnitude, "measured" for sparse values, "scalar" else.
    """

    role: Role = Role.LEADING
    better: Direction | None = None
    held_out: bool = False
    tells: Tells = Tells.NOTHING
    unit: str = "1"
    panel: Panel = Panel.OWN
    metric: str | None = None
    detector: DetectorKind = "scalar"

    @property
    def is_loss(self) -> bool:
        """Whether it is made small: falls of two such streams can be compared."""
        return self.better is Direction.DOWN

    def __str__(self) -> str:
        """For tables: "leading, down is better, held-out"."""
        said = [self.role.value]
        if self.better is not None:
            said.append(f"{self.better} is better")
        elif self.tells not in (Tells.QUALITY, Tells.NOTHING):
            said.append(self.tells.value.replace("_", " "))
        if self.held_out:
            said.append("held-out")
        return ", ".join(said)

    def settings(self) -> dict[str, Any]:
        """What differs from the default, as a configuration would say it."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: v for k, v in own.items() if v != getattr(_DEFAULT, k)}


_DEFAULT = StreamMeaning()

LOSS = StreamMeaning(
    better=Direction.DOWN, tells=Tells.QUALITY, unit="nats", panel=Panel.LOSSES, detector="loss"
)
"""A loss in nats."""

ERROR = replace(LOSS, unit="1", panel=Panel.OWN)
"""An error: positive, and made small."""

SCORE = StreamMeaning(better=Direction.UP, tells=Tells.QUALITY)
FRACTION = replace(SCORE, panel=Panel.FRACTIONS)
"""A score between 0 and 1."""

SUPPORTING = StreamMeaning(role=Role.SUPPORTING)
NORM = replace(SUPPORTING, panel=Panel.NORMS)
SETTING = StreamMeaning(role=Role.DIAGNOSTIC)
LLC = StreamMeaning(tells=Tells.LLC, panel=Panel.LLC, detector="measured")
DERIVED = StreamMeaning(panel=Panel.LLC, detector="measured")
"""What the chains tell beside λ̂."""

FORMATION = StreamMeaning(tells=Tells.FORMATION)


def on_both(name: str, meaning: StreamMeaning) -> dict[str, StreamMeaning]:
    """A stream of the probe, and the same of the validation probe, whose name begins with val."""
    return {name: meaning, f"val_{name}": replace(meaning, held_out=True)}


WORDS: tuple[tuple[StreamMeaning, str], ...] = (
    (replace(LOSS, tells=Tells.RESTRICTED_LOSS), "restricted_loss"),
    (replace(LOSS, tells=Tells.EXCLUDED_LOSS, detector="measured"), "excluded_loss"),
    (LOSS, "loss losses nll ce cross_entropy"),
    (ERROR, "perplexity ppl bpb bpc bits_per_byte bits_per_character"),
    (ERROR, "mse rmse mae error errors err wer cer fid brier cost"),
    (replace(ERROR, detector="scalar"), "objective elbo energy"),
    (NORM, "norm norms"),
    (FRACTION, "acc accuracy f1 auc auroc map precision recall iou dice bleu rouge"),
    (FRACTION, "win_rate success_rate exact_match"),
    (SCORE, "reward return score"),
    (LLC, "llc"),
)
"""What words of a name say, the first line that fits; "_" joins words that stand together."""

THINNING = "detection_thinning"
"""Stream of the levels by which detection was thinned, each at the last step before it."""

DENSITY = "measuring_density"
"""Stream of how many times as often is measured from a step on, around suspected transitions."""

SETTINGS = (
    f"lr learning_rate momentum weight_decay epoch step global_step loss_scale {THINNING} {DENSITY}"
)
"""Whole names of what is set or counted: it changes because someone set it."""

HELD_OUT = frozenset({"val", "valid", "validation", "test", "heldout", "holdout", "eval", "dev"})
SPLITS = HELD_OUT | {"train", "training"}
"""A word that begins with one of these and goes on with one of `WORDS` is two: "trainloss"."""

AFTER = frozenset({"mean", "avg", "average", "total", "sum", "step", "epoch", *SPLITS})
"""Words that may come after "score"."""

NO_PRECISION = frozenset({"feature", "attention", "activation", "saliency", "heat", "class"})
""""map" after one of these is a picture, and no mean average precision."""


def words(name: str) -> list[str]:
    """The words of a name, small: "val/topAcc1" gives val, top and acc; "f1" stays whole.

    Example:
        >>> words("trainPPL"), words("val/mAP"), words("trainloss"), words("glossary_size")
        (['train', 'ppl'], ['val', 'map'], ['train', 'loss'], ['glossary', 'size'])
    """
    spaced = re.sub(r"(?<![A-Za-z])mAP(?![a-z])", "map", name)
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", spaced).lower()
    found: list[str] = []
    for part in re.split(r"[^a-z0-9]+", spaced):
        word = part if part in _SINGLE else part.strip("0123456789")
        head = next((s for s in _HEADS if word.startswith(s) and word[len(s) :] in _SINGLE), "")
        found += [head, word[len(head) :]] if head else [word] if word else []
    return found


_PHRASES = [
    (meaning, tuple(phrase.split("_"))) for meaning, text in WORDS for phrase in text.split()
]
_SETTINGS = frozenset(tuple(phrase.split("_")) for phrase in SETTINGS.split())
_SINGLE = frozenset(phrase[0] for _, phrase in _PHRASES if len(phrase) == 1)
_HEADS = sorted(SPLITS | _SINGLE, key=len, reverse=True)


COPIES = re.compile(r"(__(MIN|MAX|MEAN|min|max|mean)|[_/](step|epoch))$")
"""Ends of names under which loggers write one stream again."""


def source_of(name: str) -> str:
    """The stream that a name is a copy of.

    Example:
        >>> source_of("train_loss_epoch"), source_of("val/acc__MAX")
        ('train_loss', 'val/acc')
    """
    return COPIES.sub("", name)


@lru_cache(maxsize=4096)
def guess(name: str) -> StreamMeaning:
    """What the words of a name say.

    Args:
        name: Name of a logged metric.

    Returns:
        Its meaning; a leading stream of which no more is known where no word tells.

    Example:
        >>> str(guess("val/lm_loss")), str(guess("glossary_size")), str(guess("my_gradient_norm"))
        ('leading, down is better, held-out', 'leading', 'supporting')
    """
    said = words(name)
    if name.startswith("lr-") or tuple(words(name.rpartition("/")[2])) in _SETTINGS:
        return SETTING  # "lr-AdamW/pg1" and "optim/lr", but not "loss_step"
    for meaning, phrase in _PHRASES:
        if _holds(said, phrase, meaning):
            held_out = meaning.tells is Tells.QUALITY and not HELD_OUT.isdisjoint(said)
            return replace(meaning, held_out=held_out)
    return StreamMeaning(held_out=not HELD_OUT.isdisjoint(said) and "llc" not in said)


def _holds(said: list[str], phrase: tuple[str, ...], meaning: StreamMeaning) -> bool:
    size = len(phrase)
    if meaning.panel is Panel.NORMS and said[-1:] != [phrase[0]] and "loss" in said:
        return False
    if meaning is LLC and (said[-1:] != ["llc"] or not HELD_OUT.isdisjoint(said)):
        return False
    places = [i for i in range(len(said) - size + 1) if tuple(said[i : i + size]) == phrase]
    if meaning is SCORE:  # a "score_entropy" is no score
        places = [i for i in places if AFTER.issuperset(said[i + 1 :])]
    if phrase == ("map",):
        places = [i for i in places if NO_PRECISION.isdisjoint(said[:i])]
    return bool(places)


class Meanings:
    """What the streams of one run mean.

    Args:
        settings: What the configuration says, by name of the stream or a pattern ("head_*").
        declared: What the run's own observables declare, by name or pattern.

    Example:
        >>> meanings = Meanings({"my_metric": {"role": "supporting", "better": "up"}})
        >>> str(meanings.of("my_metric")), str(meanings.of("gradient_norm"))
        ('supporting, up is better', 'supporting')
    """

    def __init__(
        self,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        declared: Mapping[str, StreamMeaning] | None = None,
    ) -> None:
        self._settings = {name: _values(given) for name, given in (settings or {}).items()}
        self._declared = dict(declared or {})
        self._known: dict[str, StreamMeaning] = {}

    @classmethod
    def stored(cls, config: Mapping[str, Any] | None) -> Meanings:
        """What the streams of a stored run mean, from the configuration that it keeps."""
        known = config or {}
        said = {name: {"better": way} for name, way in (known.get("better") or {}).items()}
        for name, given in (known.get("streams") or {}).items():
            said[name] = said.get(name, {}) | given
        return cls(said)

    def of(self, name: str) -> StreamMeaning:
        """What stream `name` means: as configured, else as declared, else as its words say."""
        meaning = self._known.get(name)
        if meaning is None:
            meaning = _match(self._declared, name) or _match(builtin(), name) or guess(name)
            if (given := _match(self._settings, name)) is not None:
                meaning = replace(meaning, **given)
            self._known[name] = meaning
        return meaning

    def is_told(self, name: str) -> bool:
        """Whether the configuration or an observable says what stream `name` means."""
        tables: tuple[Mapping[str, Any], ...] = (self._settings, self._declared, builtin())
        return any(_match(table, name) is not None for table in tables)

    def settings(self) -> dict[str, Any]:
        """Everything that was configured or declared for this run, to be stored with it."""
        declared = {name: meaning.settings() for name, meaning in self._declared.items()}
        return declared | {n: declared.get(n, {}) | given for n, given in self._settings.items()}


def _match(table: Mapping[str, T], name: str) -> T | None:
    """The entry of a name, else of a pattern it fits, else of what it is a part of."""
    if name in table:
        return table[name]
    for pattern, value in table.items():
        if "*" in pattern and fnmatchcase(name, pattern):
            return value
    whole, slash, _ = name.rpartition("/")
    return _match(table, whole) if slash else None


_TYPES = {"role": Role, "better": Direction, "tells": Tells, "panel": Panel}


def _values(given: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _TYPES[key](value) if key in _TYPES and value is not None else value
        for key, value in given.items()
    }


@lru_cache
def builtin() -> Mapping[str, StreamMeaning]:
    """What the observables that come along declare, by name or pattern of the stream."""
    text = files(__package__ or "").joinpath(TABLE).read_text(encoding="utf-8")
    return {name: StreamMeaning(**_values(given)) for name, given in json.loads(text).items()}
