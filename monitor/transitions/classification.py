"""What kind of transition it is, from what moved which way; and how large it is.

Each alarm is read as a `Move`, by what its stream means; `RULES` turn the moves of a transition
into its kind. A new kind of transition needs a line in `RULES`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from phasewatch.detectors.types import Alarm, AlarmKind, Direction
from phasewatch.monitor.core.meaning import Meanings, Role, Tells
from phasewatch.monitor.core.transitions import Transition, TransitionKind

FLAT = 0.1
"""A loss that falls by less than this share of what another falls by, in nats, is flat beside it:
a training loss that goes from 1e-4 to 1e-7 nats has nothing left to learn."""


class Move(StrEnum):
    """What an alarm says about the model."""

    UNSTABLE = "unstable"
    TRAIN_BETTER = "training improves"
    TRAIN_WORSE = "training gets worse"
    VALIDATION_BETTER = "validation improves"
    VALIDATION_WORSE = "validation gets worse"
    LLC_UP = "λ̂ rises"
    LLC_DOWN = "λ̂ falls"
    RESTRICTED_BETTER = "restricted loss falls"
    EXCLUDED_WORSE = "excluded loss rises"
    FORMED = "circuits formed before"
    PART_LEARNT = "an attention pattern, a singular value or a feature is learnt"


@dataclass(frozen=True, slots=True)
class Rule:
    """A kind, the moves it needs (any one of them) and those that rule it out.

    Attributes:
        kind: The kind.
        needs: One of these must be there.
        lacks: None of these may be there.
        beside: All of these must be there as well.
        held_out: Whether the run must have a stream of held-out data.
    """

    kind: TransitionKind
    needs: frozenset[Move]
    lacks: frozenset[Move] = frozenset()
    beside: frozenset[Move] = frozenset()
    held_out: bool = False

    def fits(self, moves: frozenset[Move], *, has_validation: bool) -> bool:
        """Whether the kind describes these moves."""
        there = bool(self.needs & moves) and self.beside <= moves and not self.lacks & moves
        return there and (has_validation or not self.held_out)


_LEARNS = frozenset({Move.TRAIN_BETTER})
_VALIDATES = frozenset({Move.VALIDATION_BETTER})
_CIRCUITS = frozenset({Move.RESTRICTED_BETTER, Move.EXCLUDED_WORSE})

RULES = (
    Rule(TransitionKind.INSTABILITY, frozenset({Move.UNSTABLE})),
    Rule(TransitionKind.INSTABILITY, frozenset({Move.TRAIN_WORSE}), _LEARNS | _VALIDATES),
    # Nanda et al. 2023, arXiv 2301.05217, section 5: phases of modular addition.
    Rule(TransitionKind.CLEANUP, _CIRCUITS | {Move.FORMED}, _LEARNS, beside=_VALIDATES),
    Rule(TransitionKind.CIRCUIT_FORMATION, _CIRCUITS, _LEARNS | _VALIDATES),
    Rule(TransitionKind.GENERALISATION, _VALIDATES, _LEARNS),
    Rule(TransitionKind.MEMORISATION, _LEARNS, _VALIDATES, held_out=True),
    Rule(TransitionKind.SIMPLIFICATION, frozenset({Move.LLC_DOWN}), _LEARNS | {Move.TRAIN_WORSE}),
    Rule(TransitionKind.ACQUISITION, _LEARNS | {Move.LLC_UP, Move.PART_LEARNT}),
)
"""In order of precedence."""


def classify(
    evidence: Mapping[str, Alarm],
    *,
    has_validation: bool = True,
    meanings: Meanings | None = None,
    before: Mapping[str, float] | None = None,
    after: Mapping[str, float] | None = None,
    formed: bool = False,
) -> TransitionKind:
    """Kind of a transition from what moved which way: the first of `RULES` that fits.

    instability: an alarm of that kind, or training that only gets worse. circuit formation:
    restricted loss falls or excluded loss rises. cleanup: validation improves while it does, or
    after it did.
    generalisation: validation improves while training is flat. memorisation: training improves
    and validation does not. simplification: λ̂ falls while training is flat. acquisition: training
    and validation improve together, λ̂ rises, or an attention pattern, a singular value or a
    feature is learnt; without held-out data, also training alone.

    Args:
        evidence: The alarms, by stream.
        has_validation: Whether the run has a stream of held-out data.
        meanings: What the streams mean; None goes by their names.
        before: Values at the onset, by stream; None takes those of the alarms.
        after: The latest values, by stream; None takes those of the alarms.
        formed: Whether circuits formed in an earlier transition.
    """
    meanings = meanings or Meanings()
    moves: dict[Move, float] = {}
    for name, alarm in evidence.items():
        move = move_of(name, alarm, meanings)
        if move is None:
            continue
        old = (before or {}).get(name, alarm.value_before)
        new = (after or {}).get(name, alarm.value_after)
        fall = old - new if meanings.of(name).is_loss else math.nan
        # Only losses can be compared with one another; anything else counts as having moved.
        known = moves.get(move, 0.0)
        moves[move] = max(known, fall) if math.isfinite(known) and math.isfinite(fall) else math.nan
    train, validation = (moves.get(m, math.nan) for m in (Move.TRAIN_BETTER, *_VALIDATES))
    if train < FLAT * validation:
        del moves[Move.TRAIN_BETTER]
    elif validation < FLAT * train:
        del moves[Move.VALIDATION_BETTER]
    seen = frozenset(moves) | ({Move.FORMED} if formed else set())
    for rule in RULES:
        if rule.fits(seen, has_validation=has_validation):
            return rule.kind
    return TransitionKind.UNCLASSIFIED


def move_of(name: str, alarm: Alarm, meanings: Meanings) -> Move | None:
    """What an alarm says about the model; None where the stream does not tell.

    Args:
        name: Name of the stream.
        alarm: The alarm.
        meanings: What the streams mean.
    """
    if alarm.kind is not AlarmKind.SHIFT:
        return Move.UNSTABLE if alarm.kind is AlarmKind.INSTABILITY else None
    down = alarm.direction is Direction.DOWN
    meaning = meanings.of(name)
    if meaning.tells in _TOLD:
        return _TOLD[meaning.tells][down]
    if meaning.better is None:
        return None
    is_good = alarm.direction is meaning.better
    if meaning.held_out:
        return Move.VALIDATION_BETTER if is_good else Move.VALIDATION_WORSE
    return Move.TRAIN_BETTER if is_good else Move.TRAIN_WORSE


_TOLD = {
    Tells.LLC: (Move.LLC_UP, Move.LLC_DOWN),
    Tells.FORMATION: (Move.PART_LEARNT, None),
    Tells.RESTRICTED_LOSS: (None, Move.RESTRICTED_BETTER),
    Tells.EXCLUDED_LOSS: (Move.EXCLUDED_WORSE, None),
}
"""What a rise says, and what a fall says."""


def seen_by(transition: Transition) -> str:
    """The observables in words, the lead first, each with its lag in steps: "val_loss, llc +40"."""
    lags = transition.lags
    lead = next((name for name, lag in lags.items() if lag == 0), "")
    said = [lead, *(f"{name} {lag:+,}" for name, lag in lags.items() if name != lead)]
    if transition.repeats:
        said.append(f"{transition.repeats:,} more alarm{'s' if transition.repeats > 1 else ''}")
    return ", ".join(said)


def displacement(before: float, after: float) -> float:
    """Signed change: in dex where both values are positive, else relative to the larger one."""
    if before > 0 and after > 0:
        return math.log10(after / before)
    scale = max(abs(before), abs(after))
    return (after - before) / scale if scale else 0.0


def progress(before: float, after: float, now: float) -> float:
    """How much of the change from `before` to `after` there is `now`: 0 none, 1 all of it.

    Args:
        before: Value before the change.
        after: Value after it.
        now: The value asked about.
    """
    if min(before, after, now) > 0:
        before, after, now = math.log(before), math.log(after), math.log(now)
    change = after - before
    return (now - before) / change if change else 0.0


def severity(
    before: Mapping[str, float], after: Mapping[str, float], meanings: Meanings | None = None
) -> float:
    """Largest effect over the observables: dex for positive values, else the relative change.

    Norms and ratios count only where nothing else moved: they follow the losses, often by more.
    A stream that stopped being a number has an infinite effect.

    Args:
        before: Values at the onset, by stream.
        after: The latest values, by stream.
        meanings: What the streams mean; None goes by their names.
    """
    meanings = meanings or Meanings()
    leading = [name for name in before if meanings.of(name).role is not Role.SUPPORTING]
    effects = [0.0]
    for name in leading or before:
        effect = abs(displacement(before[name], after[name]))
        effects.append(effect if math.isfinite(effect) else math.inf)
    return max(effects)
