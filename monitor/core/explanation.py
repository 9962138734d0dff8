"""A transition in words: the one wording that alerts, tables, pages, notebooks and Grafana show.

    explain(transition).title        # "generalisation, from step 80"
    explain(transition).facts        # ("What", …), ("When", …), ("How much", …), …

Every face shows these texts as they are, so that none can say another number than the others.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePath
from statistics import median
from typing import Any

from phasewatch.detectors.types import Alarm, AlarmKind, Direction
from phasewatch.monitor.core.meaning import Meanings, Role
from phasewatch.monitor.core.transitions import (
    HindsightVerdict,
    Transition,
    TransitionKind,
    TransitionStatus,
)

MAX_NAME = 120
"""Letters of a name that are shown."""

NUM_STREAMS = 6
"""Streams that are named; of more, their number."""

NUM_GROUPS = 3
"""Parameter groups that are named as the place of a change."""

PLACE_ERROR = 0.0625
"""Relative standard error of how far a group moved against before: each of the two distances is
known to √(1/512), from a sketch of 256 numbers. Small groups are known exactly."""

WHAT = {
    TransitionKind.INSTABILITY: "a loss or norm has jumped away from where it was",
    TransitionKind.GENERALISATION: "held-out data improve, training data do not",
    TransitionKind.MEMORISATION: "training data improve, held-out data do not",
    TransitionKind.SIMPLIFICATION: "λ̂ falls at the same loss",
    TransitionKind.ACQUISITION: "something new is learnt",
    TransitionKind.CIRCUIT_FORMATION: "a general solution forms",
    TransitionKind.CLEANUP: "what was memorised goes, the general circuit stays",
    TransitionKind.UNCLASSIFIED: "a transition that fits no known kind",
}

_IMPROVES = "training improves, validation improves"
_CIRCUITS = "restricted loss falls or excluded loss rises"

WHY = {
    TransitionKind.INSTABILITY: f"unstable; or training gets worse, and none of: {_IMPROVES}",
    TransitionKind.CLEANUP: f"{_CIRCUITS} or circuits formed before, with: validation improves, "
    "and none of: training improves",
    TransitionKind.CIRCUIT_FORMATION: f"{_CIRCUITS}, and none of: {_IMPROVES}",
    TransitionKind.GENERALISATION: "validation improves, and none of: training improves",
    TransitionKind.MEMORISATION: "training improves, and none of: validation improves, in a run "
    "with held-out data",
    TransitionKind.SIMPLIFICATION: "λ̂ falls, and none of: training improves, training gets worse",
    TransitionKind.ACQUISITION: "training improves or λ̂ rises or an attention pattern, a singular "
    "value or a feature is learnt",
    TransitionKind.UNCLASSIFIED: "no rule fits what moved",
}
"""The rule behind each kind; `transitions/classification.py` has the rules, a test holds them
equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What is to be said of a transition, as plain text.

    Attributes:
        transition: What is explained.
        state: The state of its life that is told.
        title: The news in a line.
        facts: Headings and texts: what, when, how much, how sure, where, checkpoints, why; in
            hindsight.
    """

    transition: Transition
    state: TransitionStatus
    title: str
    facts: tuple[tuple[str, str], ...]

    @property
    def lines(self) -> list[str]:
        """The facts, one a line: "When: from step 80"."""
        return [f"{heading}: {text}" for heading, text in self.facts]

    def __str__(self) -> str:
        return "\n".join([self.title, *self.lines])

    @property
    def html(self) -> str:
        """A card for pages and notebooks, every text escaped."""
        rows = "".join(
            f"<dt>{html.escape(heading)}</dt><dd>{html.escape(text)}</dd>"
            for heading, text in self.facts
        )
        return f"<h3>{html.escape(self.title)}</h3><dl>{rows}</dl>"

    def plain(self) -> dict[str, Any]:
        """For JSON: the title, and each fact under its heading."""
        return {"title": self.title, "facts": dict(self.facts)}


def explain(
    transition: Transition,
    *,
    state: TransitionStatus | None = None,
    config: Mapping[str, Any] | None = None,
    units: Mapping[str, str] | None = None,
) -> Explanation:
    """Put a transition into words.

    Args:
        transition: The transition as it stands.
        state: The state to tell; None is the one it is in.
        config: The configuration that is stored with the run: it says what the streams mean and
            how many false alarms are expected.
        units: Unit by stream; of others it is what their names say.

    Example:
        >>> from phasewatch.detectors.types import Alarm, Direction
        >>> fall = Alarm(
        ...     detected_step=90, onset_step=80, direction=Direction.DOWN, score=1.5,
        ...     run_length=11, value_before=2.0, value_after=0.02,
        ... )
        >>> found = Transition(
        ...     id="t", run="r", attempt=1, kind=TransitionKind.GENERALISATION,
        ...     status=TransitionStatus.CONFIRMED, onset_step=80, detected_step=90,
        ...     detected_at=0.0, severity=2.0, evidence={"val_loss": fall},
        ...     before={"val_loss": 2.0}, after={"val_loss": 0.02},
        ... )
        >>> print(explain(found).title)
        generalisation, from step 80
        >>> print(dict(explain(found).facts)["How much"])
        severity 2 (1 is tenfold); val_loss: 2 → 0.02 nats
    """
    meanings = Meanings.stored(config)
    state = transition.status if state is None else state
    facts = {
        "What": f"{transition.kind}: {WHAT[transition.kind]}",
        "When": _when(transition),
        "How much": _how_much(transition, meanings, units or {}),
        "How sure": _how_sure(transition, meanings, config),
        "Where": _where(transition.where),
        "Checkpoints": _checkpoints(transition.checkpoints),
        "Why": _why(transition),
        "In hindsight": _in_hindsight(transition),
    }
    return Explanation(
        transition=transition,
        state=state,
        title=_title(transition, state),
        facts=tuple((heading, text) for heading, text in facts.items() if text),
    )


def witnesses(evidence: Mapping[str, Alarm], meanings: Meanings) -> list[str]:
    """Streams that speak for a change by themselves.

    Parts of one measurement are one witness, by that which spoke first; norms and ratios follow the
    losses, and precursors only foretell: neither is one.

    Args:
        evidence: The alarms, by stream.
        meanings: What the streams mean.
    """
    told: dict[str, str] = {}
    for name, alarm in evidence.items():
        follows = meanings.of(name).role is Role.SUPPORTING and alarm.kind is AlarmKind.SHIFT
        if alarm.kind is not AlarmKind.PRECURSOR and not follows:
            told.setdefault(name.partition("/")[0], name)
    return [*told.values()]


def onset_interval(transition: Transition) -> tuple[int, int]:
    """Steps between which the change began: the last point before it, and the first in it.

    Of the densest of the streams whose onset is that of the transition.
    """
    found = [
        alarm.onset_interval or (alarm.onset_step - _cadence(alarm), alarm.onset_step)
        for alarm in transition.evidence.values()
        if alarm.onset_step == transition.onset_step
    ]
    onset = transition.onset_step
    return min(found, key=lambda pair: pair[1] - pair[0], default=(onset, onset))


def clean(text: str) -> str:
    """A name as one line of printable text, cut where it is very long."""
    shown = "".join(c if c.isprintable() else "\ufffd" for c in text)
    shown = shown.encode("utf-8", "replace").decode()
    return shown if len(shown) <= MAX_NAME else shown[: MAX_NAME - 1] + "…"


def _cadence(alarm: Alarm) -> int:
    return round((alarm.detected_step - alarm.onset_step) / max(alarm.run_length - 1, 1))


def _title(transition: Transition, state: TransitionStatus) -> str:
    said = {
        TransitionStatus.SUSPECTED: f"{transition.kind} suspected",
        TransitionStatus.CONFIRMED: f"{transition.kind}",
        TransitionStatus.ENDED: f"{transition.kind} has ended",
        TransitionStatus.WITHDRAWN: f"withdrawn: it was no {transition.kind}",
    }[state]
    return f"{said}, from step {transition.onset_step:,}"


def _when(transition: Transition) -> str:
    low, high = onset_interval(transition)
    between = "" if high - low <= 1 else f" (began between {low:,} and {high:,})"
    moment = datetime.fromtimestamp(transition.detected_at, UTC)
    epoch = "" if transition.epoch is None else f", epoch {transition.epoch}"
    end = "" if transition.end_step is None else f", ended at step {transition.end_step:,}"
    return (
        f"from step {transition.onset_step:,}{between}, detected at step "
        f"{transition.detected_step:,}{epoch}{end}, {moment:%Y-%m-%d %H:%M:%S} UTC"
    )


def _how_much(transition: Transition, meanings: Meanings, units: Mapping[str, str]) -> str:
    def change(name: str) -> str:
        unit = units.get(name) or meanings.of(name).unit
        shown = "" if unit == "1" else f" {clean(unit)}"
        return f"{clean(name)}: {transition.before[name]:.4g} → {transition.after[name]:.4g}{shown}"

    moved = [change(name) for name in transition.before if name in transition.after]
    return "; ".join([f"severity {transition.severity:.3g} (1 is tenfold)", *_some(moved)])


def _how_sure(transition: Transition, meanings: Meanings, config: Mapping[str, Any] | None) -> str:
    seen = witnesses(transition.evidence, meanings)

    def said(name: str) -> str:
        alarm = transition.evidence[name]
        lag = transition.lags[name]
        behind = f", {lag:+,} steps" if lag else ""
        return f"{clean(name)} at {alarm.score:.3g} times its threshold{behind}"

    count = f"{len(seen)} independent witness{'' if len(seen) == 1 else 'es'}"
    parts = [": ".join([count, ", ".join(_some([said(name) for name in seen]))]) if seen else count]
    others = [clean(name) for name in transition.evidence if name not in seen]
    if others:
        parts.append(f"beside {'it' if len(seen) == 1 else 'them'} {', '.join(_some(others))}")
    chances = [a.probability for a in transition.evidence.values() if a.probability is not None]
    if chances:
        parts.append(f"a change with probability {max(chances):.2g}")
    if transition.repeats:
        parts.append(f"{transition.repeats:,} more alarm{'s' if transition.repeats > 1 else ''}")
    expected = (config or {}).get("false_alarms_per_run")
    if expected is not None:
        parts.append(f"{expected:g} false alarms are expected in a whole run")
    return "; ".join(parts)


def _where(groups: Sequence[tuple[str, float]]) -> str:
    """The groups that moved farthest against before, if any did by more than the error."""
    if not groups:
        return ""
    (_, most), others = groups[0], [times for _, times in groups[1:]]
    if others and not most - median(others) > 2.0 * PLACE_ERROR * most:
        return f"no place stands out: {len(groups)} groups, the first {_place(*groups[0])}"
    shown = ", ".join(_place(name, times) for name, times in groups[:NUM_GROUPS])
    return f"{shown} as far as over an equal stretch before"


def _checkpoints(paths: Sequence[str]) -> str:
    """How many are kept, and where."""
    if not paths:
        return ""
    names = [PurePath(path).stem for path in paths]
    span = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
    return f"{len(paths)} kept, {clean(span)}, in {clean(str(PurePath(paths[0]).parent))}"


def _place(name: str, times: float) -> str:
    return f"{clean(name)} ({times:.2g} ± {PLACE_ERROR * times:.1g} times)"


def _why(transition: Transition) -> str:
    """Which way the streams moved, and the rule that names it."""
    ways = {Direction.UP: "rises", Direction.DOWN: "falls"}
    words = {AlarmKind.INSTABILITY: "is unstable", AlarmKind.PRECURSOR: "foretells a change"}
    moved = [
        f"{clean(name)} {words.get(alarm.kind, ways[alarm.direction])}"
        for name, alarm in transition.evidence.items()
    ]
    return f"{', '.join(_some(moved))}; the rule: {WHY[transition.kind]}"


def _in_hindsight(transition: Transition) -> str:
    seen = transition.hindsight
    if seen is None:
        return ""
    reasons = {
        HindsightVerdict.CONFIRMED: "the whole history shows it where it was said to be",
        HindsightVerdict.CORRECTED: "the whole history shows it at other steps than the "
        f"{transition.onset_step:,} to {_end(transition.end_step)} that were told",
        HindsightVerdict.WITHDRAWN: "the whole history shows no abrupt change in its streams",
        HindsightVerdict.FOUND: "only the whole history shows it",
    }
    steep = f", {seen.score:.2g} times as steep as what is around it" if seen.score > 0 else ""
    return f"{seen}: {reasons[seen.verdict]}{steep if math.isfinite(seen.score) else ''}"


def _end(step: int | None) -> str:
    return "the end" if step is None else f"{step:,}"


def _some(said: Iterable[str]) -> list[str]:
    known = [*said]
    left = len(known) - NUM_STREAMS
    return known if left <= 0 else [*known[:NUM_STREAMS], f"{left} more"]
