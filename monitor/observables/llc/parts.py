"""Which parts of a model have a learning coefficient of their own, and whose turn it is."""

from __future__ import annotations

import glob
import logging
import math
from collections.abc import Mapping, Sequence

from torch import nn

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.errors import RefusedError
from phasewatch.monitor.observables.weights.norms import OTHER, group_of
from phasewatch.monitor.sampling import attention_heads
from phasewatch.monitor.sampling.restrictions import Selection

log = logging.getLogger("phasewatch")

MODULES, HEADS = "modules", "heads"


def find_parts(context: MeasureContext, wanted: str, limit: int) -> dict[str, Selection]:
    """Parts of the model, at most `limit` of them.

    Args:
        context: The model.
        wanted: "modules": the parameter groups, as `weight_norm` has them; where there are more
            than `limit`, the largest, and all the rest as "other". "heads": the attention heads of
            each `nn.MultiheadAttention`.
        limit: Most parts.

    Raises:
        RefusedError: There is one group only, no attention, or there are more heads than `limit`.
    """
    return _heads(context, limit) if wanted == HEADS else _modules(context, limit)


def _modules(context: MeasureContext, limit: int) -> dict[str, Selection]:
    groups: dict[str, list[str]] = {}
    sizes: dict[str, int] = {}
    for name, parameter in context.params.items():
        group = group_of(name)
        groups.setdefault(group, []).append(name)
        sizes[group] = sizes.get(group, 0) + parameter.numel()
    if len(groups) < 2:
        raise RefusedError(
            f"looked for two parameter groups or more; the model has {', '.join(groups) or 'none'},"
            " and of the whole `llc` is the coefficient. Name the parts with `parts`"
        )
    largest = sorted(groups, key=lambda group: -sizes[group])[: limit - 1]
    small = [group for group in groups if group not in largest] if len(groups) > limit else []
    parts: dict[str, list[str]] = {}
    for group, names in groups.items():
        parts.setdefault(OTHER if group in small else group, []).extend(map(glob.escape, names))
    return dict(parts)


def _heads(context: MeasureContext, limit: int) -> dict[str, Selection]:
    found: dict[str, Selection] = {}
    for name, module in context.model.named_modules():
        if not isinstance(module, nn.MultiheadAttention):
            continue
        for head, masks in attention_heads(context.model, name).items():
            trainable = {key: mask for key, mask in masks.items() if key in context.params}
            if trainable:
                found[head] = trainable
    if not found:
        raise RefusedError(
            "looked for attention heads that are trained; the model has no nn.MultiheadAttention "
            "with such. Cut your own layers with `attention_heads`, and give that as `parts`"
        )
    if len(found) > limit:
        raise RefusedError(
            f"the model has {len(found)} attention heads, more than max_parts={limit}; raise "
            "max_parts (what the time does not reach for is measured in turn), or name some in "
            "`parts`"
        )
    return found


class Turns:
    """Whose turn it is: as many as the time reaches for, those that have waited longest first.

    Args:
        name: Of the observable, for what is told.
        parts: Everything that has a turn.
    """

    def __init__(self, name: str, parts: Sequence[str]) -> None:
        self._name = name
        self._queue = list(parts)
        self._seconds = dict.fromkeys(parts, 0.0)
        self._told = False

    def next(self, step: int, deadline_seconds: float) -> list[str]:
        """The parts to measure now; what is left is told, by a warning at the first time."""
        chosen: list[str] = []
        planned = 0.0
        for part in self._queue:
            planned += self._seconds[part]
            if chosen and planned > deadline_seconds:
                break
            chosen.append(part)
        if left := self._queue[len(chosen) :]:
            log.log(
                logging.INFO if self._told else logging.WARNING,
                "%s at step %d: the %.2g s that the budget leaves reach for %s; left for next "
                "time: %s%s",
                self._name,
                step,
                deadline_seconds,
                ", ".join(chosen),
                ", ".join(left),
                "" if self._told else ". Raise `overhead` to measure all of them each time",
            )
            self._told = True
        return chosen

    def took(self, seconds: Mapping[str, float], deadline_seconds: float = math.inf) -> None:
        """Book what was measured. A part that the deadline may have cut short costs no less."""
        cut = sum(seconds.values()) >= deadline_seconds
        for part, duration in seconds.items():
            self._queue.remove(part)
            self._queue.append(part)
            self._seconds[part] = max(duration, self._seconds[part]) if cut else duration
