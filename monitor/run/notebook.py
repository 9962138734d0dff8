"""A table of the run where it trains in a Jupyter notebook: one display, brought up to date.

Nothing is asked of IPython before its kernel is there, and nothing is installed for it. The table
is a sink that the training thread calls when it hands over what was logged: no thread of its own,
and its time is in the ledger.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.health import Health
from phasewatch.monitor.core.meaning import Meanings, Role
from phasewatch.monitor.core.transitions import Transition
from phasewatch.monitor.run.shown import as_table, in_a_line

EVERY_SECONDS = 1.0
"""Least time between two pictures of the table."""

SHARE = 0.005
"""Of wall time, what showing it may take: a slow front end sees it less often."""

MAX_ROWS = 12
"""Streams that are shown; of more, their number."""

_RANK = {role: rank for rank, role in enumerate(Role)}


class LiveTable:
    """State, latest values and transitions of a run, where a notebook shows them.

    Args:
        run_name: Name of the run.
        health: Where it stands.
        meanings: What its streams mean: those that can open a transition come first.
        show: Shows a picture of it, in place of the one before: HTML and plain text, by MIME type.
        clock: Monotonic seconds.
    """

    latest_only = True
    """Only the latest value of a stream is shown."""

    def __init__(
        self,
        run_name: str,
        health: Health,
        meanings: Meanings,
        show: Callable[[Mapping[str, str]], object],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._run_name = run_name
        self._health = health
        self._meanings = meanings
        self._show = show
        self._clock = clock
        self._latest: dict[str, Observation] = {}
        self._transitions: dict[str, Transition] = {}
        self._next = -float("inf")

    def emit(self, observation: Observation) -> None:
        """Keep the latest value of a stream, and show it when it is time."""
        self._latest[observation.name] = observation
        self._refresh()

    def notify(self, transition: Transition) -> None:
        """Keep a transition as it stands, and show it when it is time."""
        self._transitions[transition.id] = transition
        self._refresh()

    def flush(self) -> None:
        """What is held back waits for its time, or for the end."""

    def close(self) -> None:
        """Show how it ended."""
        self._draw()

    def _refresh(self) -> None:
        begin = self._clock()
        if begin < self._next:
            return
        self._next = begin + EVERY_SECONDS  # also where it fails
        self._draw()
        end = self._clock()
        self._next = max(end + EVERY_SECONDS, end + (end - begin) / SHARE)

    def _draw(self) -> None:
        names = sorted(self._latest, key=lambda name: _RANK[self._meanings.of(name).role])
        transitions = sorted(self._transitions.values(), key=lambda t: t.onset_step)
        self._show(
            {
                "text/plain": in_a_line(self._run_name, self._health, transitions),
                "text/html": as_table(
                    self._run_name,
                    self._health,
                    [self._latest[name] for name in names[:MAX_ROWS]],
                    transitions,
                    num_more=max(0, len(names) - MAX_ROWS),
                ),
            }
        )


def open_notebook(
    run_name: str, health: Health, meanings: Meanings, *, key: str
) -> list[LiveTable]:
    """The table of a run, if this process is the kernel of a notebook; else nothing.

    Args:
        run_name: Name of the run.
        health: Where it stands, and where failures are counted.
        meanings: What its streams mean.
        key: Names the display, one for each fit.
    """
    if not _in_a_notebook():
        return []
    show = import_module("IPython.display").display
    handles: list[Any] = []

    def in_place(picture: Mapping[str, str]) -> None:
        if handles:
            handles[0].update(picture, raw=True)
        else:
            handles.append(show(picture, raw=True, display_id=key))

    health.born((), [LiveTable.__name__])
    return [LiveTable(run_name, health, meanings, in_place)]


def _in_a_notebook() -> bool:
    """Whether a kernel of IPython runs this process itself: a child of it has no front end."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None and multiprocessing.parent_process() is None
