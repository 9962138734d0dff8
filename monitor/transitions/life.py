"""The life of a transition: which states follow which, and which of them are told.

suspected → confirmed → ended; or suspected → withdrawn. Nothing skips *confirmed* on the way to
*ended*, for what was never confirmed is never told to anybody.
"""

from __future__ import annotations

from enum import StrEnum

from phasewatch.monitor.core.transitions import TransitionStatus


class Event(StrEnum):
    """What may happen to a transition.

    AGREED: a second observable saw it, or it is an instability. HELD: the change stayed for the
    persistence window. RETURNED: it went back. OVER: nothing moves any more, or the run has ended.
    """

    AGREED = "agreed"
    HELD = "held"
    RETURNED = "returned"
    OVER = "over"


_SUSPECTED, _CONFIRMED = TransitionStatus.SUSPECTED, TransitionStatus.CONFIRMED
_NEXT: dict[tuple[TransitionStatus, Event], tuple[TransitionStatus, ...]] = {
    (_SUSPECTED, Event.AGREED): (_CONFIRMED,),
    (_SUSPECTED, Event.HELD): (_CONFIRMED,),
    (_SUSPECTED, Event.RETURNED): (TransitionStatus.WITHDRAWN,),
    (_SUSPECTED, Event.OVER): (_CONFIRMED, TransitionStatus.ENDED),
    (_CONFIRMED, Event.OVER): (TransitionStatus.ENDED,),
}


def advance(status: TransitionStatus, event: Event) -> tuple[TransitionStatus, ...]:
    """The states that a transition takes when something happens, in the order to tell them in.

    Args:
        status: Where it stands.
        event: What happened.

    Returns:
        The last is the new state; empty where nothing changes.

    Example:
        >>> [state.value for state in advance(TransitionStatus.SUSPECTED, Event.OVER)]
        ['confirmed', 'ended']
    """
    return _NEXT.get((status, event), ())
