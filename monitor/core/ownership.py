"""Whose code it is."""

from __future__ import annotations


def is_ours(thing: object) -> bool:
    """Whether the code of an object is phasewatch's own, not the user's."""
    return type(thing).__module__.partition(".")[0] == __name__.partition(".")[0]
