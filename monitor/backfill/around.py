"""The checkpoints around a transition, so that the moment can be studied afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from glob import escape
from pathlib import Path

from phasewatch.monitor.backfill.checkpoints import Checkpoint, find_checkpoints
from phasewatch.monitor.core.errors import ConfigError, did_you_mean
from phasewatch.monitor.core.transitions import Transition, TransitionStatus

ON_EACH_SIDE = 2
"""Checkpoints before the onset and after the end that are taken, however short it was."""

SHOWN_OF_ID = 8
"""Letters of an id by which a transition is told from others."""


def find_transition(transitions: Sequence[Transition], wanted: str) -> Transition:
    """The transition of an id, or the only one of a kind.

    Args:
        transitions: Those of a run.
        wanted: Its id or the first letters of it, or its kind. What was withdrawn has its id only.

    Raises:
        ConfigError: There is none, or there are several; lists those there are.
    """
    by_id = [t for t in transitions if wanted and t.id.startswith(wanted)]
    standing = [t for t in transitions if t.status is not TransitionStatus.WITHDRAWN]
    by_kind = [t for t in standing if t.kind.value == wanted.lower().replace("-", "_")]
    found = by_kind or by_id
    if len(found) == 1:
        return found[0]
    if found:
        what = f"{len(found)} transitions are meant by {wanted!r}; give the id of one"
    else:
        known = [*(t.kind.value for t in standing), *(t.id for t in transitions)]
        what = f"the run has no transition {wanted!r}{did_you_mean(wanted, dict.fromkeys(known))}"
    listed = ", ".join(_named(t) for t in found or transitions)
    raise ConfigError(f"{what}: {listed or 'none was found in it'}")


def _named(transition: Transition) -> str:
    first, last = span_of(transition)
    withdrawn = ", withdrawn" if transition.status is TransitionStatus.WITHDRAWN else ""
    kind = transition.kind.value
    return f"{transition.id[:SHOWN_OF_ID]} ({kind}, steps {first} to {last}{withdrawn})"


def span_of(transition: Transition) -> tuple[int, int]:
    """First and last step of a transition; in hindsight, where somebody has looked back."""
    onset, end = transition.onset_step, transition.end_step
    if (hindsight := transition.hindsight) is not None and hindsight.onset_step is not None:
        onset, end = hindsight.onset_step, hindsight.end_step or end
    return onset, max(onset, transition.detected_step if end is None else end)


def around(transition: Transition, checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The checkpoints from one length of a transition before its onset to one after its end.

    Args:
        transition: The transition.
        checkpoints: Of the run, by step.

    Returns:
        Those, and at least two on each side where there are so many.

    Raises:
        ConfigError: There is none on either side of it, nor in it.
    """
    first, last = span_of(transition)
    length = last - first
    before = [c for c in checkpoints if c.step < first]
    after = [c for c in checkpoints if c.step > last]
    near = {c for c in checkpoints if first - length <= c.step <= last + length}
    near.update(before[-ON_EACH_SIDE:], after[:ON_EACH_SIDE])
    if not near:
        raise ConfigError(f"there is no checkpoint around steps {first} to {last}; give others")
    return sorted(near)


def kept_for(transition: Transition) -> list[Checkpoint]:
    """The checkpoints that the run has kept around a transition, as its record says.

    Args:
        transition: The transition.

    Raises:
        ConfigError: None were kept, or none of them is there any more.
    """
    short = transition.id[:SHOWN_OF_ID]
    if not transition.checkpoints:
        raise ConfigError(
            f"no checkpoints were kept around transition {short}; name some, or set "
            "checkpoint_on: suspected in the next run"
        )
    there = [path for path in transition.checkpoints if Path(path).exists()]
    if not there:
        raise ConfigError(
            f"none of the {len(transition.checkpoints)} checkpoints that were kept around "
            f"transition {short} is there any more, such as {transition.checkpoints[0]!r}; name "
            "them where they lie now"
        )
    return find_checkpoints(map(escape, there))
