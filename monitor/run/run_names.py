"""Names that runs get when nobody names them, and how a fit that goes back is told apart."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import time
from collections.abc import Iterable, Mapping
from typing import Any

log = logging.getLogger("phasewatch")

_CONSONANTS = "bdfgklmnprstvz"
_VOWELS = "aeiou"
NUM_SYLLABLES = 5


def new_name() -> str:
    """A name for people: the date, the time, and a random word that nobody else has.

    The word has 1,700 million forms and comes from the system, not from a generator that training
    draws from: a thousand runs of one minute share a word once in three thousand times.

    Example:
        >>> new_name().count("-")
        3
    """
    letters = os.urandom(2 * NUM_SYLLABLES)
    word = "".join(
        _CONSONANTS[letters[i] % len(_CONSONANTS)] + _VOWELS[letters[i + 1] % len(_VOWELS)]
        for i in range(0, len(letters), 2)
    )
    return f"run-{time.strftime('%Y%m%d-%H%M')}-{word}"


class Runs:
    """The runs that one watch sees in turn, such as the folds of a cross-validation.

    Args:
        name: Name of the first.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._number = 1
        self._pristine: dict[int, Any] | None = None

    def go_on_from(self, name: str) -> None:
        """The run in sight is one that was resumed."""
        self._name, self._number = name, 1

    def next_name(self) -> str:
        """Name of the next run: `NAME/2`, `NAME/3` and on."""
        self._number += 1
        return f"{self._name}/{self._number}"

    def make_fresh(
        self,
        observables: Iterable[Any] | None,
        detectors: Mapping[str, Any] | None,
    ) -> None:
        """Put objects of the user's back to where they were before the first run.

        What was given by name is made anew for each run. An object keeps what it has seen unless
        it has `load_state_dict` or `reset`.
        """
        given = [o for o in observables or () if not isinstance(o, str)]
        if self._pristine is None:
            self._pristine = {}
            for item in given:
                if hasattr(item, "state_dict"):
                    with contextlib.suppress(Exception):  # told when it is asked for a checkpoint
                        self._pristine[id(item)] = copy.deepcopy(item.state_dict())
            return
        for item in (*given, *(d for d in (detectors or {}).values() if not isinstance(d, str))):
            try:
                if id(item) in self._pristine and hasattr(item, "load_state_dict"):
                    item.load_state_dict(copy.deepcopy(self._pristine[id(item)]))
                elif hasattr(item, "reset"):
                    item.reset()
            except Exception as error:
                log.warning("%r cannot be put back for a new run: %s", item, error)


class StepCount:
    """Steps of a plain loop, counted on where the loop begins anew at each epoch.

    A loop that counts 1…16 in every epoch would store each step once an epoch. It is noticed where
    a step comes again that was the first: from there on the steps count on from the last.
    """

    def __init__(self) -> None:
        self._first: int | None = None
        self._last = -1
        self._offset = 0
        self._names: set[str] = set()

    def at(self, step: int, names: Iterable[str] | None = None) -> int:
        """The step of the run for a step of the loop.

        Args:
            step: As the loop counts.
            names: Streams observed at it. One that was not seen before may be counted otherwise,
                such as by epochs, and begins nothing anew.
        """
        is_back = self._first is not None and step < self._last and step <= self._first
        if is_back and (names is None or not self._names.isdisjoint(names)):
            self._offset += self._last + 1 - (self._first or 0)
            self._first = self._last = step
        return step + self._offset

    def passed(self, step: int, names: Iterable[str]) -> int:
        """The same, where the loop has come to this step."""
        known = self.at(step, names)
        if self._first is None:
            self._first = step
        if step > self._last:
            self._last = step
        self._names.update(names)
        return known
